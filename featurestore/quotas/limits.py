"""What one caller may take, a key or an address, as values.

Invariant: the text of a quota means the same in a setting and beside a key.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

Quota = Literal["requests", "probes", "ratings", "items", "history", "connections"]
QUOTAS: tuple[Quota, ...] = get_args(Quota)

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE = re.compile(r"([1-9]\d{0,11})/([smhd])", re.ASCII)
_COUNT = re.compile(r"[1-9]\d{0,11}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: it holds `size` tokens and fills up by `per_s`. `text`: as it was written."""

    size: float
    per_s: float
    text: str


class Part(NamedTuple):
    """One quota as it is written. `quota` None: all of them; `value` None: without a limit."""

    quota: Quota | None
    value: Rate | int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may take; None is no limit. `probes`: requests that a busy worker answers, too;
    `history`: entries of one user; `connections`: open ones, of an address, in one worker.
    """

    requests: Rate | None = None
    probes: Rate | None = None
    ratings: Rate | None = None
    items: Rate | None = None
    history: int | None = None
    connections: int | None = None

    def but(self, parts: Iterable[Part]) -> "Limits":
        """Return these limits with what `parts` say, one after the other."""
        limits = self
        for part in parts:
            change: dict[str, Any] = {} if part.quota is None else {part.quota: part.value}
            limits = replace(limits, **change) if change else Limits()
        return limits


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """What a call that writes ratings may add: new items by a bucket of the `caller` (a digest), and entries
    up to so many of one user.
    """

    caller: bytes
    items: Rate | None
    history: int | None


def parse_quota(text: str) -> Part:
    """Return what `requests=500/s`, `history=off` or `off` says. Raises ValueError with what it must be."""
    if text == "off":
        return Part(None, None)
    name, _, value = text.partition("=")
    quota = next((each for each in QUOTAS if each == name), None)
    counted = quota in {"history", "connections"}
    if quota is not None and value == "off":
        return Part(quota, None)
    if quota is not None and counted and _COUNT.fullmatch(value):
        return Part(quota, int(value))
    if quota is not None and not counted and (found := _RATE.fullmatch(value)):
        return Part(quota, Rate(float(found[1]), float(found[1]) / _SECONDS[found[2]], value))
    raise ValueError(
        "must be quotas like requests=500/s, probes=100/s, ratings=20000/m, items=5000/h, history=50000, "
        f"connections=100 (units s, m, h, d; `off` is none), not {text!r}"
    )


def parse_quotas(text: str) -> tuple[Part, ...]:
    """Return what several quotas say, separated by commas or spaces. Raises ValueError."""
    return tuple(parse_quota(part) for part in text.replace(",", " ").split())


# A worker answers some 20,000 GET /predict a second; a call has up to 10,000 ratings; as many entries of one
# user as events of a partition may wait by default; 32 addresses then fill a worker. A scrape takes some ms.
DEFAULT_TEXT = "requests=1000/s,probes=50/s,ratings=10000/s,items=10000/h,history=100000,connections=256"
DEFAULT = Limits().but(parse_quotas(DEFAULT_TEXT))
