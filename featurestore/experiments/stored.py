"""Begins and ends experiments. Invariant: an arm's generation was whole when the experiment began, and stays
until it ends; an experiment that began is never changed.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import GenerationUnknown, StoreError, StoreRefused
from featurestore.experiments.definition import (
    Arm,
    Definition,
    Experiment,
    Experiments,
    read_experiments,
)
from featurestore.keys import Keys, whole

# A worker reads all of them ten times a second, and each is about its own scenario.
MOST_EXPERIMENTS = 32


class ExperimentExists(StoreError):  # noqa: N818 -- the name says what happened, as those of `errors` do
    """Another experiment has this name, or is about the same calls: `name`. End that one first."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the experiment {name!r} runs")
        self.name = name


@dataclass(frozen=True, slots=True)
class Winner:
    """What goes on when an experiment ends: a `generation`, live, or a `scenario`, for calls that ask for
    none. `hold`: automatic refits then do not go live.
    """

    generation: int | None = None
    scenario: str | None = None
    hold: bool = False


class StoredExperiments:
    """Reads and changes experiments. Every method may raise `StoreUnavailable`, and may then be repeated."""

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation) -> None:
        self._keys = keys
        self._client = client
        self._confirmation = confirmation

    async def all(self) -> Experiments:
        """Return the experiments that run."""
        fields: Any = await self._client.hgetall(self._keys.experiments)
        return read_experiments(fields)

    async def begin(self, name: str, definition: Definition) -> Experiment:
        """Begin an experiment, and return it; one that runs already with the same arms is returned as it is.

        Those over generations of a history that has ended, which do nothing, give way where one of them has
        the name, or the room. Raises `ExperimentExists`, `GenerationUnknown` for one that is not whole or
        belongs to another history, `StoreRefused` where there are too many.
        """
        found = Experiment(name, definition)
        text = msgspec.json.encode(definition)
        numbers = [b"%d" % number for number in found.generations]
        since = self._confirmation.begin()
        args = [name.encode(), text, b"%d" % MOST_EXPERIMENTS, *numbers]
        (reply,) = await self._client.call("begin_experiment", (self._keys.switched, args))
        if reply[0] in {b"FULL", b"EXISTS"} and await self._drop_ended():
            (reply,) = await self._client.call("begin_experiment", (self._keys.switched, args))
        if reply[0] == b"UNKNOWN":
            raise GenerationUnknown(int(reply[1]), "is not kept, or belongs to another history")
        if reply[0] == b"FULL":
            raise StoreRefused(f"there may be {MOST_EXPERIMENTS} experiments")
        if reply[0] == b"BUSY":
            raise ExperimentExists(reply[1].decode())
        if reply[0] == b"EXISTS":
            stands = read_experiments({name.encode(): reply[1]}).named(name)
            if stands is None or not _alike(stands.definition, definition):
                raise ExperimentExists(name)
            found = stands
        await self._confirmation.wait(since)
        return found

    async def end(self, name: str, arms: int, winner: Winner) -> bool:
        """End an experiment of so many `arms` with what came of it; the `winner` goes on, in the same step.
        False: there is none of this name.

        Raises `GenerationUnknown` where the generation that is kept is gone.
        """
        number = b"" if winner.generation is None else b"%d" % winner.generation
        args = [name.encode(), number, b"1" if winner.hold else b"0", (winner.scenario or "").encode()]
        since = self._confirmation.begin()
        (reply,) = await self._client.call("end_experiment", (self._names(name, arms), args))
        if reply[0] == b"GONE":
            return False
        if reply[0] != b"OK":
            raise GenerationUnknown(winner.generation or 0, reply[1].decode())
        await self._confirmation.wait(since)
        return True

    async def _drop_ended(self) -> bool:
        """Remove experiments of histories that have ended; whether there was any."""
        fields: Any = await self._client.hgetall(self._keys.experiments)
        epoch = whole(await self._client.hget(self._keys.live, b"epoch") or b"0", self._keys.live)
        ended = read_experiments(fields).of_ended(epoch)
        # Unless another call has put one of its own under the name since.
        calls = [
            (self._names(e.name, len(e.arms)), [e.name.encode(), b"", b"0", b"", fields[e.name.encode()]])
            for e in ended
        ]
        if calls:
            await self._client.call("end_experiment", *calls)
        return bool(calls)

    def _names(self, name: str, arms: int) -> list[bytes]:
        """Return the keys that the end of an experiment of so many `arms` touches."""
        of_arms = [self._keys.experiment_users(name, arm) for arm in range(max(arms, 1))]
        return [*self._keys.switched, self._keys.experiment_sums(name), *of_arms]


def _alike(one: Definition, other: Definition) -> bool:
    """Whether two definitions differ in nothing but when they began."""
    return (one.arms, one.epoch, one.scenario) == (other.arms, other.epoch, other.scenario)


def arm_named(experiment: Experiment, name: str) -> Arm | None:
    """Return an arm, None where there is none of this name."""
    return next((arm for arm in experiment.arms if arm.name == name), None)
