"""Counts by arm what a worker sees, and hands it to the store every few seconds.

Invariant: counting asks nothing of the store, and what waits is bounded; of an experiment that has ended
nothing is kept.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from factors import Float64s
from featurestore.experiments import GROUPS, Experiment, Figure, Tallies, new_tally
from service.experiments.background import BackgroundSteps

# Figures are looked at by people; each flush is a call an arm.
_FLUSH_S = 2.0
# Users that wait to be counted, 60 bytes each. More are counted when they come again.
_MOST_MARKS = 50_000


class Membership(NamedTuple):
    """The arm of a user in an experiment: its position, and the user's mark."""

    experiment: Experiment
    arm: int
    mark: int

    @classmethod
    def of(cls, experiment: Experiment, user_id: bytes) -> "Membership | None":
        """Return the arm of a user, None for one who is in none."""
        mark = experiment.mark_of(user_id)
        arm = experiment.arm_of(mark)
        return cls(experiment, arm, mark) if arm >= 0 else None

    @property
    def name(self) -> str:
        """The name of the arm."""
        return self.experiment.arms[self.arm].name


class _Arm:
    """What waits of one arm."""

    def __init__(self) -> None:
        self.tally: Float64s = new_tally()
        self.marks: set[int] = set()


class ArmCounts:
    """What one worker has counted since the last flush, by experiment and arm."""

    def __init__(self) -> None:
        self._waiting = defaultdict[tuple[Experiment, int], _Arm](_Arm)

    def asked(self, experiment: Experiment, arm: int, marks: Iterable[int]) -> None:
        """Count users that an arm has answered."""
        waiting = self._waiting[experiment, arm].marks
        if len(waiting) < _MOST_MARKS:
            waiting.update(marks)

    def count(self, member: Membership, figure: Figure, number: float = 1.0) -> None:
        """Count something of a user."""
        self._waiting[member.experiment, member.arm].tally[figure, member.mark % GROUPS] += number

    async def flush(self, tallies: Tallies) -> None:
        """Hand what waits to the store. Raises `StoreUnavailable`; what had not been handed over is lost, as
        it may have been counted.
        """
        # Taken first: what is counted while the store is asked belongs to the next flush.
        waiting, self._waiting = self._waiting, defaultdict(_Arm)
        for (experiment, arm), found in waiting.items():
            await tallies.add(experiment, arm, found.tally, [*found.marks])

    async def run(self, tallies: Tallies, steps: BackgroundSteps) -> None:
        """Flush until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                await steps.make(self.flush(tallies))
        finally:
            await steps.make(self.flush(tallies))
