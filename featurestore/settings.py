"""Settings of the store, for every process that opens it. Invariant: the password is not shown."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit

from factors import Scale
from processes.settings import choice, real, secret_of, setting, whole

# Each step of a scale is a cut point that the ordinal link learns; hundredths of 0 to 10 still fit.
MAX_STEPS = 1000


def parse_scale(text: str) -> Scale:
    """`low:high` or `low:high:step` as a rating scale. Raises `ValueError`, saying what does not fit."""
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ValueError(f"must be numbers, like 1:5 or 0.5:5:0.5, not {text!r}") from None
    if len(parts) not in {2, 3}:
        raise ValueError(f"must be low:high or low:high:step, like 1:5, not {text!r}")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"must be finite, not {text!r}")
    low, high = numbers[:2]
    if not low < high:
        raise ValueError(f"must have its low end under its high end, not {text!r}")
    if len(numbers) == 2:
        return Scale(low, high)
    step = numbers[2]
    steps = (high - low) / step if step > 0 else 0.0
    if not 1 <= steps <= MAX_STEPS or not math.isclose(steps, round(steps), abs_tol=1e-9):
        raise ValueError(f"must have a step that divides it into 1 to {MAX_STEPS} equal parts, not {text!r}")
    return Scale(low, high, step)


def format_scale(scale: Scale) -> str:
    """The text that `parse_scale` reads as `scale`."""
    numbers = [scale.low, scale.high] + ([] if scale.step is None else [scale.step])
    return ":".join(f"{number:g}" if float(f"{number:g}") == number else repr(number) for number in numbers)


def redacted(url: str) -> str:
    """A store's address without its password, for logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


def _scale_text(text: str) -> str:
    parse_scale(text)
    return text


def _address(text: str) -> str:
    if not text.startswith(("redis+sentinel:", "rediss+sentinel:")):
        known = re.fullmatch(r"(redis|rediss|unix)://\S+", text)
    else:
        host = r"[A-Za-z0-9._-]+(:\d{1,5})?"
        known = re.fullmatch(
            rf"rediss?\+sentinel://([^@/\s]+@)?{host}(,{host})*/[A-Za-z0-9._-]+(/\d+)?(\?\S*)?", text
        )
    if known is None:
        # What was given is not repeated: it may hold a password.
        raise ValueError(
            "must be an address like redis://host:6379, rediss://host:6379, unix:///path/to/socket or "
            "redis+sentinel://host:26379,host:26379/NAME"
        )
    return text


def _namespace(text: str) -> str:
    # A dot separates the namespace from the epoch in a key, braces would move its slot.
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) is None:
        raise ValueError(f"must be 1 to 64 letters, digits, - or _, not {text!r}")
    return text


@dataclass(frozen=True, slots=True, repr=False)
class StoreSettings:
    """How to reach the store and what to ask of it."""

    url: str = setting(
        "redis://127.0.0.1:6379", "address of the store", _address, variable="FOLDIN_REDIS_URL"
    )
    password_file: Path | None = setting(
        None,
        "file with the password of the user that the address of the store names without one",
        Path,
        variable="FOLDIN_REDIS_PASSWORD_FILE",
    )
    namespace: str = setting(
        "foldin", "begins every key; several may share a store", _namespace, variable="FOLDIN_NAMESPACE"
    )
    partitions: int = setting(
        16,
        "parts of the users' keys; fixed when a namespace is created",
        whole(1, 1024),
        variable="FOLDIN_PARTITIONS",
    )
    scale: str = setting(
        "1:5",
        "scale of the ratings, `low:high` or `low:high:step`; fixed when a namespace is created",
        _scale_text,
        variable="FOLDIN_SCALE",
    )
    timeout_s: float = setting(
        1.0,
        "seconds that the store may take to answer",
        real(0.05, 60.0, "seconds"),
        variable="FOLDIN_STORE_TIMEOUT_S",
    )
    stream_limit: int = setting(
        100_000,
        "events of a partition that may wait for the trainer; then ratings are refused with 429",
        whole(1),
        variable="FOLDIN_STREAM_LIMIT",
    )
    durability: Literal["store", "fsync", "replicated"] = setting(
        "store",
        "a rating is answered when the store has it as it is configured (`store`), its disk (`fsync`), or "
        "its replicas (`replicated`)",
        choice(("store", "fsync", "replicated")),
        variable="FOLDIN_DURABILITY",
    )
    # Rows are int32, and -1 stands for none.
    max_items: int = setting(
        10_000_000, "item rows that an epoch may give", whole(1, 2**31 - 2), variable="FOLDIN_MAX_ITEMS"
    )

    def address(self) -> str:
        """Return `url` with the password of its file, where it names a user without one.

        Raises SettingsError where the file cannot be read.
        """
        parts = urlsplit(self.url)
        if not parts.username or parts.password is not None or self.password_file is None:
            return self.url
        password = quote(secret_of(None, self.password_file) or "", safe="")
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}:{password}@{host}"))

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["url"] = redacted(self.url)
        return f"StoreSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
