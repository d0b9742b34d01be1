"""Experiments: a hash of the user splits users among arms, each a scenario; and what came of these, and of
the lists of each generation.

Invariant: the arm of a user depends on the id and on the experiment alone, in every process, for ever; an
experiment that began is never changed.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from factors import Float64s
from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreError, StoreRefused
from featurestore.keys import Keys, shown_key, whole

# Users of an arm are counted in so many groups: how much these differ says how sure a figure is, though the
# ratings of one user are alike. A power of two; with 31 degrees of freedom an interval is 4 % wider than with
# infinitely many.
GROUPS = 32
# Shares that are written with a few digits add up to 1 within this.
ROUNDING = 1e-9
# Finalizer of SplitMix64 (Steele, Lea and Flood, 2014): each bit of the result depends on each of the input.
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Its arithmetic is that of words of 64 bits.
_WORD = (1 << 64) - 1
# A double holds so many of the 64 bits exactly.
_DROPPED_BITS, _UNIT = 11, 2.0**-53
# The field of the hash of experiments that holds no experiment: a name is not empty.
DEFAULT_SCENARIO = b""
# A worker reads all of them ten times a second, and each is about its own scenario.
MOST_EXPERIMENTS = 32
# Positives come up to a week after a showing, and there may be a fit an hour, of which not all go live.
MOST_GENERATIONS = 168
# Three doubles.
_SUMS_BYTES = 24
# Users, or rows of items, that one step counts: half a millisecond of the store.
COUNTED_AT_ONCE = 1_000


class Arm(msgspec.Struct, frozen=True, omit_defaults=True):
    """A share of the users, and the scenario that they get."""

    name: str
    share: float
    scenario: str


class Definition(msgspec.Struct, frozen=True, omit_defaults=True):
    """An experiment as it is stored. `began`: seconds since 1970; `scenario`: the calls that take part ask
    for this one; None: those that ask for none.
    """

    arms: tuple[Arm, ...]
    began: float
    scenario: str | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment that runs."""

    name: str
    definition: Definition
    _salt: int = field(init=False, repr=False)
    _ends: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        salt = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        ends = list(accumulate(arm.share for arm in self.arms))
        if ends[-1] >= 1.0 - ROUNDING:
            ends[-1] = 1.0
        object.__setattr__(self, "_salt", int.from_bytes(salt, "little"))
        object.__setattr__(self, "_ends", tuple(ends))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, of which the first is compared with the others."""
        return self.definition.arms

    def mark_of(self, user_id: bytes) -> int:
        """Return a number of 64 bits that looks random, of a user in this experiment."""
        # Added to a checksum: with the salt alone, users would be in the same order in every experiment.
        word = (crc32(user_id) + self._salt) & _WORD
        word = ((word ^ (word >> 30)) * _FIRST) & _WORD
        word = ((word ^ (word >> 27)) * _SECOND) & _WORD
        return word ^ (word >> 31)

    def arm_of(self, mark: int) -> int:
        """Return the position of the arm of a user by its mark; -1 for one who is in none."""
        place = bisect_right(self._ends, (mark >> _DROPPED_BITS) * _UNIT)
        return place if place < len(self._ends) else -1


@dataclass(frozen=True, slots=True)
class Experiments:
    """The experiments that run. `default_scenario`: that of calls which ask for none; `damaged`: names of
    those that cannot be read, and do nothing.
    """

    running: tuple[Experiment, ...] = ()
    default_scenario: str | None = None
    version: str = ""
    damaged: tuple[str, ...] = ()
    # By the scenario that calls ask for.
    by_scenario: Mapping[str | None, Experiment] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_scenario", {each.definition.scenario: each for each in self.running})

    def named(self, name: str) -> Experiment | None:
        """Return an experiment, None where there is none of this name."""
        return next((each for each in self.running if each.name == name), None)


def read_experiments(fields: Mapping[bytes, bytes]) -> Experiments:
    """Return the experiments from the fields of their hash."""
    if not fields:
        return Experiments()
    running, damaged = [], []
    digest = hashlib.blake2b(digest_size=8)
    for name, text in sorted(fields.items()):
        digest.update(b"%d %d " % (len(name), len(text)) + name + text)
        if name == DEFAULT_SCENARIO:
            continue
        try:
            running.append(_read(name.decode(), text))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            damaged.append(name.decode("utf-8", "replace"))
    default = fields.get(DEFAULT_SCENARIO, b"").decode("utf-8", "replace") or None
    return Experiments(tuple(running), default, digest.hexdigest(), tuple(damaged))


def _read(name: str, text: bytes) -> Experiment:
    definition = msgspec.json.decode(text, type=Definition)
    if not definition.arms or any(not 0 < arm.share <= 1 for arm in definition.arms):
        raise ValueError(name)
    return Experiment(name, definition)


def require_readable(experiments: Experiments, name: str, key: bytes) -> None:
    """Raise `StoreDamaged` where the experiment of this name cannot be read."""
    if name in experiments.damaged:
        raise StoreDamaged(shown_key(key), f"the experiment {name!r} cannot be read; delete it")


class ExperimentExists(StoreError):  # noqa: N818 -- the name says what happened, as those of `errors` do
    """Another experiment has this name, or is about the same calls: `name`. End that one first."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the experiment {name!r} runs")
        self.name = name


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

    async def definitions(self) -> dict[str, Definition]:
        """Return what defines each experiment that runs, by name. Raises `StoreDamaged`."""
        found = await self.all()
        for name in found.damaged:
            require_readable(found, name, self._keys.experiments)
        return {each.name: each.definition for each in found.running}

    async def begin(self, name: str, definition: Definition) -> Experiment:
        """Begin an experiment, and return it; one that runs already with the same arms is returned as it is.

        Raises `ExperimentExists`, `StoreRefused` where there are too many.
        """
        found = Experiment(name, definition)
        text = msgspec.json.encode(definition)
        since = self._confirmation.begin()
        args = [name.encode(), text, b"%d" % MOST_EXPERIMENTS]
        (reply,) = await self._client.call("begin_experiment", ([self._keys.experiments], args))
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

    async def end(self, name: str, arms: int, default: str | None = None) -> bool:
        """End an experiment of so many `arms` with what came of it. `default`: the scenario of calls that ask
        for none from then on, in the same step. False: there is none of this name.
        """
        of_arms = [self._keys.experiment_users(name, arm) for arm in range(max(arms, 1))]
        names = [self._keys.experiments, self._keys.experiment_sums(name), *of_arms]
        since = self._confirmation.begin()
        (reply,) = await self._client.call(
            "end_experiment", (names, [name.encode(), (default or "").encode()])
        )
        if reply[0] == b"GONE":
            return False
        await self._confirmation.wait(since)
        return True


def _alike(one: Definition, other: Definition) -> bool:
    """Whether two definitions differ in nothing but when they began."""
    return (one.arms, one.scenario) == (other.arms, other.scenario)


def arm_named(experiment: Experiment, name: str) -> Arm | None:
    """Return an arm, None where there is none of this name."""
    return next((arm for arm in experiment.arms if arm.name == name), None)


class Figure(IntEnum):
    """A row of a tally."""

    LISTS = 0
    SHOWN = 1
    POSITIVES = 2


def new_tally() -> Float64s:
    """Return a tally of nothing: a figure a row, a group of users a column."""
    return np.zeros((len(Figure), GROUPS))


class Tallies:
    """Adds to tallies and reads them: sums by arm and group of users, so that all workers and restarts agree.
    Nothing is added to an experiment that has ended. Every method may raise `StoreUnavailable`. What was
    added may or may not count then: it is not to be repeated.
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
        for start in range(0, max(len(marks), 1), COUNTED_AT_ONCE):
            packed = np.array(marks[start : start + COUNTED_AT_ONCE], dtype="<u8").tobytes()
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


@dataclass(slots=True)
class Showings:
    """Of one generation: answered lists, items shown in lists, and of these those that a positive event
    followed. `distinct`: how many different items were shown, to about a percent.
    """

    lists: int = 0
    shown: int = 0
    positives: int = 0
    distinct: int = 0


class StoredShowings:
    """Adds to showings and reads them, the same for all replicas. Every method may raise `StoreUnavailable`;
    what was added may or may not count then, and is not to be repeated.
    """

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def add(self, generation: int, showings: Showings, rows: Collection[int]) -> None:
        """Add showings, and the rows of the items that were shown."""
        names = [self._keys.showings, self._keys.shown_items(generation)]
        sums = np.array([showings.lists, showings.shown, showings.positives], dtype="<f8").tobytes()
        packed = np.fromiter(rows, dtype="<u4", count=len(rows))
        for start in range(0, max(len(packed), 1), COUNTED_AT_ONCE):
            part = packed[start : start + COUNTED_AT_ONCE].tobytes()
            (reply,) = await self._client.call("add_showings", (names, [b"%d" % generation, sums, part]))
            sums = b""
            if int(reply[1]) > MOST_GENERATIONS:
                await self._drop_oldest()

    async def read(self) -> Mapping[int, Showings]:
        """Return the showings by generation. Raises `StoreDamaged`."""
        key, found = self._keys.showings, dict[int, Showings]()
        for number, data in (await self._client.hgetall(key)).items():
            if len(data) != _SUMS_BYTES:
                raise StoreDamaged(shown_key(key), f"{len(data)} bytes are no sums of showings")
            sums = np.frombuffer(data if isinstance(data, bytes) else data.encode(), dtype="<f8")
            found[whole(number, key)] = Showings(*(round(value) for value in sums.tolist()))
        counts = await self._client.of_each("PFCOUNT", map(self._keys.shown_items, found))
        for showings, distinct in zip(found.values(), counts, strict=True):
            showings.distinct = int(distinct)
        return found

    async def _drop_oldest(self) -> None:
        key = self._keys.showings
        numbers = sorted(whole(number, key) for number in await self._client.hkeys(key))
        pipe = self._client.pipeline()
        for number in numbers[:-MOST_GENERATIONS]:
            pipe.hdel(key, str(number))
            pipe.unlink(self._keys.shown_items(number))
        await pipe.execute()
