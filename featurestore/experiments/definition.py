"""Experiments: a hash of the user splits users among arms, each a scenario.

Invariant: the arm of a user depends on the id and on the experiment alone, in every process, for ever.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from zlib import crc32

import msgspec

from featurestore.errors import StoreDamaged
from featurestore.keys import shown_key

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
