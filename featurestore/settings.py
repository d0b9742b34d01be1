"""Settings of the store, for every process that opens it. Invariant: the password is not shown."""

import ipaddress
import math
import re
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from factors import Scale
from featurestore.codecs import MAX_ITEM_ROW
from processes.settings import choice, real, secret_of, setting, url, whole

# The probability of each is answered in one list; hundredths of 0 to 10 still fit.
MAX_STEPS = 1000
FURTHEST = 5e8  # a wider scale cannot be kept in the float32 rows of a fit
# Of the larger end, or of 1: float32 has 16 numbers in a scale so narrow, and its priors are not yet 0.
NARROWEST = 1e-6
# A tenth of a millisecond of work for what asks all of them; and so that 64 servers have some each.
PARTITIONS, CLUSTER_PARTITIONS = 16, 256
# Events of a partition that wait for the trainer before more are refused.
STREAM_LIMIT = 100_000
# Of ratings that come before anything was said of their scale.
DEFAULT_SCALE = Scale(1.0, 5.0)


def parse_scale(text: str) -> Scale:
    """`low:high` or `low:high:step` as a rating scale. Raises `ValueError`, saying what does not fit."""
    parts = text.split(":")
    try:
        if not text.isascii() or "_" in text:
            raise ValueError
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ValueError(f"must be numbers, like 1:5 or 0.5:5:0.5, not {text!r}") from None
    if len(parts) not in {2, 3}:
        raise ValueError(f"must be low:high or low:high:step, like 1:5, not {text!r}")
    try:
        return scale_of(*numbers)
    except ValueError as exc:
        raise ValueError(f"{exc}, not {text!r}") from None


def scale_of(low: float, high: float, step: float | None = None) -> Scale:
    """These numbers as a rating scale. Raises `ValueError`, saying what does not fit."""
    if not all(map(math.isfinite, (low, high, step or 0.0))):
        raise ValueError("must be finite")
    if not low < high:
        raise ValueError("must have its low end under its high end")
    if max(-low, high) > FURTHEST:
        raise ValueError(f"must lie within {FURTHEST:g} of 0")
    if (least := NARROWEST * max(-low, high, 1.0)) > high - low:
        raise ValueError(f"must be {least:g} wide or wider")
    if step is None:
        return Scale(low, high)
    steps = (high - low) / step if step > 0 else 0.0
    if not 1 <= steps <= MAX_STEPS or not math.isclose(steps, round(steps), abs_tol=1e-9):
        raise ValueError(f"must have a step that divides it into 1 to {MAX_STEPS} equal parts")
    return Scale(low, high, step)


def format_scale(scale: Scale) -> str:
    """The text that `parse_scale` reads as `scale`."""
    numbers = [scale.low, scale.high] + ([] if scale.step is None else [scale.step])
    return ":".join(f"{number:g}" if float(f"{number:g}") == number else repr(number) for number in numbers)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """An address of the store, in parts. `login`: user and password as they are in a URL, None without an
    `@`; `hosts`: each with its port, if it has one; `rest`: what follows them.
    """

    scheme: str
    login: str | None
    hosts: tuple[str, ...]
    rest: str

    def __str__(self) -> str:
        at = "" if self.login is None else f"{self.login}@"
        return f"{self.scheme}://{at}{','.join(self.hosts)}{self.rest}"

    @property
    def user_and_password(self) -> tuple[str, str | None]:
        """Return the user, "" without one, and the password, None without one; both as in a URL."""
        user, colon, password = (self.login or "").partition(":")
        return user, password if colon else None


def split_address(url: str) -> Address:
    """Split an address. Raises ValueError where it has no form of one."""
    # Not urlsplit: it takes several hosts for one, and refuses a second one in brackets.
    found = re.fullmatch(r"([a-z+]+)://(?:([^/?#]*)@)?([^/?#@]*)(\S*)", url)
    if found is None:
        raise ValueError("is no address")
    scheme, login, hosts, rest = found.groups()
    return Address(scheme, login, tuple(hosts.split(",")), rest)


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """Split `host`, `host:port` or `[IPv6]:port`; `port` is that of a host without one.

    Raises ValueError where it is none.
    """
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^\s\[\]:]*))(?::([0-9]{1,5}))?", text)
    if found is None:
        raise ValueError("must be host, host:port or [IPv6]:port")
    bracketed, name, number = found.groups()
    if bracketed is not None:
        ipaddress.IPv6Address(bracketed)
    else:
        # What a connection does first; a label that is empty or too long is found by it.
        name.encode("idna")
    if number is not None and not 1 <= int(number) <= 65_535:  # the ports of TCP
        raise ValueError("must have a port from 1 to 65535")
    return bracketed or name, port if number is None else int(number)


def redacted(url: str) -> str:
    """A store's address without its password, for logs."""
    parts = split_address(url)
    user, password = parts.user_and_password
    return url if password is None else str(replace(parts, login=f"{user}:***"))


def _scale_text(text: str) -> str:
    parse_scale(text)
    return text


# What follows the hosts, by scheme: a database, or the name of a primary and one; then options.
_RESTS = {
    "redis": r"(/\d*/?)?(\?\S*)?",
    "unix": r"/[^\s?]+(\?\S*)?",
    "redis+sentinel": r"/[A-Za-z0-9._-]+(/\d+)?(\?\S*)?",
    "redis+cluster": r"/?(\?\S*)?",
}


def _address(text: str) -> str:
    try:
        parts = split_address(text)
        kind = parts.scheme.replace("rediss", "redis", 1)
        known = re.fullmatch(_RESTS[kind], parts.rest, re.ASCII) is not None
        several = kind in {"redis+sentinel", "redis+cluster"}
        known &= several or len(parts.hosts) == 1
        for host in parts.hosts:
            known &= host_and_port(host, 0)[0] != "" or not several
    except (KeyError, ValueError):
        known = False
    if not known or text == f"{parts.scheme}://":
        # What was given is not repeated: it may hold a password.
        raise ValueError(
            "must be an address like redis://host:6379/0, rediss://host:6379, unix:///path/to/socket, "
            "redis+sentinel://host:26379,host:26379/NAME or redis+cluster://host:6379,host:6379, with ports "
            "from 1 to 65535, IPv6 in brackets, and / ? # @ of a password as %2F %3F %23 %40"
        )
    return text


def _namespace(text: str) -> str:
    # A dot separates the namespace from the epoch in a key, braces would move its slot.
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) is None:
        raise ValueError(f"must be 1 to 64 letters, digits, - or _, not {text!r}")
    return text


def _collector(text: str) -> str:
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError("needs the extra: pip install 'foldin[telemetry]'")
    return url(text)


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
        0,
        "parts of the users' keys; fixed when a namespace is created",
        whole(1, 4096),
        variable="FOLDIN_PARTITIONS",
        shown="16, of a cluster 256",
    )
    scale: str | None = setting(
        None,
        "scale of the ratings, `low:high` or `low:high:step`; decided once in a namespace, without this by "
        "the first import, by `PUT /scale`, or by the first rating, which makes it `1:5`",
        _scale_text,
        variable="FOLDIN_SCALE",
        shown="what the store has",
    )
    timeout_s: float = setting(
        1.0,
        "seconds that the store may take to answer",
        real(0.05, 60.0, "seconds"),
        variable="FOLDIN_STORE_TIMEOUT_S",
    )
    stream_limit: int = setting(
        STREAM_LIMIT,
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
    traces_url: str | None = setting(
        None,
        "address of a collector of traces (OTLP over HTTP), like `http://127.0.0.1:4318`; needs the extra "
        "`telemetry`",
        _collector,
        variable="FOLDIN_TRACES_URL",
    )
    # Entries of histories have 27 bits for a row.
    max_items: int = setting(
        10_000_000, "item rows that an epoch may give", whole(1, MAX_ITEM_ROW), variable="FOLDIN_MAX_ITEMS"
    )

    def __post_init__(self) -> None:
        if not self.partitions:
            # Frozen.
            object.__setattr__(self, "partitions", CLUSTER_PARTITIONS if self.is_cluster else PARTITIONS)

    @property
    def is_cluster(self) -> bool:
        """Whether the store is a cluster."""
        return split_address(self.url).scheme.endswith("+cluster")

    def address(self) -> str:
        """Return `url` with the password of its file, where it names a user without one.

        Raises SettingsError where the file cannot be read.
        """
        parts = split_address(self.url)
        user, given = parts.user_and_password
        if not user or given is not None or self.password_file is None:
            return self.url
        password = quote(secret_of(None, self.password_file) or "", safe="")
        return str(replace(parts, login=f"{user}:{password}"))

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["url"] = redacted(self.url)
        return f"StoreSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
