"""Settings from the environment.

Invariant: read once, checked at once, every error told together, secrets not shown.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from factors import Scale

MAX_STEPS = 1000


class SettingsInvalid(ValueError):  # noqa: N818 - says what happened
    """One or more settings cannot be used; the message has a line for each. Exit code 2."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def parse_scale(text: str) -> Scale:
    """`low:high` or `low:high:step` as a rating scale. Raises `ValueError`, saying what does not fit."""
    parts = text.split(":")
    if len(parts) not in {2, 3}:
        raise ValueError("must be low:high or low:high:step, like 1:5")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ValueError("must be numbers, like 1:5 or 0.5:5:0.5") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("must be finite")
    low, high = numbers[:2]
    if not low < high:
        raise ValueError("its low end must be under its high end")
    if len(numbers) == 2:
        return Scale(low, high)
    step = numbers[2]
    steps = (high - low) / step if step > 0 else 0.0
    if not 1 <= steps <= MAX_STEPS or not math.isclose(steps, round(steps), abs_tol=1e-9):
        raise ValueError(f"its step must divide it into 1 to {MAX_STEPS} equal parts")
    return Scale(low, high, step)


def format_scale(scale: Scale) -> str:
    """The text that `parse_scale` reads as `scale`."""
    numbers = [scale.low, scale.high] + ([] if scale.step is None else [scale.step])
    return ":".join(f"{number:g}" if float(f"{number:g}") == number else repr(number) for number in numbers)


class EnvironmentReader:
    """Typed reads from an environment that collect what is wrong; `finish` tells it all at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def problem(self, name: str, why: str) -> None:
        """Note that a setting cannot be used."""
        self._problems.append(f"{name} {why}")

    def text(self, name: str, default: str, pattern: str | None = None, what: str = "text") -> str:
        """A setting that matches `pattern` as a whole; `what` names what it must be."""
        value = self._environ.get(name, "") or default
        if pattern is not None and re.fullmatch(pattern, value) is None:
            self.problem(name, f"must be {what}, not {value!r}")
            return default
        return value

    def integer(self, name: str, default: int, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """A whole number within bounds, both included."""
        text = self._environ.get(name, "")
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            self.problem(name, f"must be a whole number from {minimum} to {maximum}, not {text!r}")
            return default
        return value

    def seconds(self, name: str, default: float, minimum: float = 0.001, maximum: float = 86_400.0) -> float:
        """A time in seconds within bounds, both included."""
        text = self._environ.get(name, "")
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:
            self.problem(name, f"must be seconds from {minimum:g} to {maximum:g}, not {text!r}")
            return default
        return value

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """One of the options."""
        value = self._environ.get(name, "") or default
        if value not in options:
            self.problem(name, f"must be {' or '.join(options)}, not {value!r}")
            return default
        return value

    def scale(self, name: str, default: str) -> str:
        """A rating scale, as text that `parse_scale` takes."""
        value = self._environ.get(name, "") or default
        try:
            parse_scale(value)
        except ValueError as exc:
            self.problem(name, f"{exc} (it is {value!r})")
            return default
        return value

    def finish(self) -> None:
        """Raise `SettingsInvalid` if anything was wrong."""
        if self._problems:
            raise SettingsInvalid(self._problems)


def redacted(url: str) -> str:
    """A store's address without its password, for logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


@dataclass(frozen=True, slots=True, repr=False)
class StoreSettings:
    """How to reach the store and what to ask of it. `namespace`, `partitions` and `scale` are fixed at
    creation.

    `timeout_s`: bound of each wait. `stream_limit`: events of a partition that may wait for the trainer.
    `durability`: `store` acknowledges when the store has it, as it is configured; `fsync` when its disk has
    it. `max_items`: item rows that an epoch may give.
    """

    url: str = "redis://127.0.0.1:6379"
    namespace: str = "foldin"
    partitions: int = 16
    scale: str = "1:5"
    timeout_s: float = 1.0
    stream_limit: int = 100_000
    durability: Literal["store", "fsync"] = "store"
    max_items: int = 10_000_000

    @classmethod
    def from_environment(cls, reader: EnvironmentReader) -> "StoreSettings":
        """The settings in an environment; the reader keeps what is wrong."""
        durability = reader.choice("FOLDIN_DURABILITY", "store", ("store", "fsync"))
        return cls(
            url=reader.text(
                "FOLDIN_REDIS_URL",
                "redis://127.0.0.1:6379",
                r"(redis|rediss|unix)://\S+",
                "an address like redis://host:6379, rediss://host:6379 or unix:///path/to/socket",
            ),
            namespace=reader.text(
                "FOLDIN_NAMESPACE", "foldin", r"[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, - or _"
            ),
            partitions=reader.integer("FOLDIN_PARTITIONS", 16, 1, 1024),
            scale=reader.scale("FOLDIN_SCALE", "1:5"),
            timeout_s=reader.seconds("FOLDIN_STORE_TIMEOUT_S", 1.0, 0.05, 60.0),
            stream_limit=reader.integer("FOLDIN_STREAM_LIMIT", 100_000, 1),
            durability="fsync" if durability == "fsync" else "store",
            max_items=reader.integer("FOLDIN_MAX_ITEMS", 10_000_000, 1, 2**31 - 2),
        )

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["url"] = redacted(self.url)
        return f"StoreSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
