"""What came of an experiment, in the store: sums by arm and group of users, so that all workers and restarts
agree. Invariant: nothing is added to an experiment that has ended.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float64s
from featurestore.client import Client
from featurestore.errors import StoreDamaged
from featurestore.experiments.definition import GROUPS, Experiment
from featurestore.keys import Keys, shown_key

# Users that one step counts: half a millisecond of the store.
MARKS_AT_ONCE = 1_000


class Figure(IntEnum):
    """A row of a tally."""

    LISTS = 0
    SHOWN = 1
    POSITIVES = 2


def new_tally() -> Float64s:
    """Return a tally of nothing: a figure a row, a group of users a column."""
    return np.zeros((len(Figure), GROUPS))


class Tallies:
    """Adds to tallies and reads them. Every method may raise `StoreUnavailable`. What was added may or may
    not count then: it is not to be repeated.
    """

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def add(self, experiment: Experiment, arm: int, tally: Float64s, marks: Sequence[int]) -> None:
        """Add a tally (figures, groups) to that of an arm, and users by their marks."""
        keys, name = self._keys, experiment.name
        began = repr(experiment.definition.began).encode()
        names = [keys.experiments, keys.experiment_sums(name), keys.experiment_users(name, arm)]
        numbers = tally.astype("<f8").tobytes()
        for start in range(0, max(len(marks), 1), MARKS_AT_ONCE):
            packed = np.array(marks[start : start + MARKS_AT_ONCE], dtype="<u8").tobytes()
            args = [name.encode(), b"%d" % arm, numbers, packed, began]
            await self._client.call("add_tally", (names, args))
            numbers = b""

    async def read(self, experiment: Experiment) -> "list[tuple[Float64s, int]]":
        """Return of each arm the tally, and how many users it has had, to about a percent.

        Raises `StoreDamaged`.
        """
        key, arms = self._keys.experiment_sums(experiment.name), range(len(experiment.arms))
        pipe = self._client.pipeline()
        pipe.hmget(key, [str(arm) for arm in arms])
        for arm in arms:
            pipe.pfcount(self._keys.experiment_users(experiment.name, arm))
        stored, *users = await pipe.execute()
        return [(_tally(text, key), int(count)) for text, count in zip(stored, users, strict=True)]


def _tally(data: Any, key: bytes) -> Float64s:
    if data is None:
        return new_tally()
    empty = new_tally()
    if len(data) != empty.nbytes:
        raise StoreDamaged(shown_key(key), f"{len(data)} bytes are no tally of {empty.nbytes}")
    found: npt.NDArray[np.float64] = np.frombuffer(data, dtype="<f8").reshape(empty.shape)
    # NaN is neither.
    if not ((found >= 0) & (found < np.inf)).all():
        raise StoreDamaged(shown_key(key), "a sum is negative or no number")
    return found
