"""Requests and answers as values: what is sent, what an answer says, and whether to send a call again.

Nothing here waits or does I/O, so that both clients share it.
"""

import asyncio
import ipaddress
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from msgspec import UNSET

from foldin_client.errors import (
    BusyError,
    FoldinError,
    NoAnswerError,
    ProblemError,
    UnreadableAnswerError,
    class_of,
)
from foldin_client.problems import BY_CODE

T = TypeVar("T")
JSON, LINES = "application/json", "application/x-ndjson"
# Refusals that say that nothing was done, so that any call may be sent again.
NOTHING_DONE = {"quota_exceeded", "stream_full", "overloaded"}
# What does not change within the seconds for which a call waits.
LASTING = {"no_generation", "training_failed", "training_timeout", "data_damaged"}
# Of an unknown page its beginning says enough.
_SHOWN = 200
# Added to what `Retry-After` says, as a part of it: clients that were refused together come back one by one.
_SPREAD = 0.25
# Sockets fail with more than 2**63 nanoseconds, and no date is further away.
_MOST_S = 1e9


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `is_repeatable`: whether sending it twice does as little harm as once. `longer_s`: so much
    longer than others it may take.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = JSON
    is_repeatable: bool = False
    longer_s: float = 0.0

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of the query that are given."""
        return {name: _text(value) for name, value in self.query.items() if value is not None}


def part(value: str | int) -> str:
    """Return a value as a part of a path: whatever is in it stays in that part."""
    # Unlike other letters a dot is encoded, as `.` and `..` alone lead to another address.
    return quote(str(value), safe="").replace(".", "%2E")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        # The shortest text that reads back as the same number.
        return repr(value)
    if isinstance(value, Sequence):
        # A list stands in a query with commas between.
        return ",".join(map(_text, value))
    return msgspec.json.encode(value).decode()


def given(**fields: Any) -> bytes:
    """Return the body with the fields that are not left out."""
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not UNSET})


def given_any(**fields: Any) -> bytes | None:
    """Return the body with the fields that are not left out, None where all are: another call, then."""
    return None if all(value is UNSET for value in fields.values()) else given(**fields)


def encoded(body: Any) -> bytes:
    """Return a body that is one value."""
    return msgspec.json.encode(body)


def headers(key: str | None) -> dict[str, str]:
    """Return what every request says. Raises ValueError for a key that no header can have."""
    named = {"User-Agent": "foldin-client"}
    if key is not None:
        # A line break would begin another header.
        if not key.isascii() or not key.isprintable() or key != key.strip() or not key:
            raise ValueError("a key is printable ASCII without spaces around it")
        named["Authorization"] = f"Bearer {key}"
    return named


def is_address(url: str) -> bool:
    """Whether this is the address of a server."""
    try:
        parts = httpx.URL(url)
        # A part of a name that is empty or longer than 63 letters, and a large port, fail in sockets alone.
        named = parts.raw_host.decode().encode("idna")
        return parts.scheme in {"http", "https"} and bool(named) and (parts.port or 1) < 65_536
    except (httpx.InvalidURL, UnicodeError):
        return False


def without_user(url: str) -> str:
    """Return an address without the user and the password that may stand before its host: all that is shown
    of one goes through here. Of a text that is no address, what is behind its last `@` is left.
    """
    return re.sub(r"(?<=//)[^/?#]*@", "", url) if is_address(url) else url.rpartition("@")[2]


def user_of(url: str) -> httpx.Auth | None:
    """Return what sends the user and the password of an address; None where it names none."""
    parts = httpx.URL(url)
    return httpx.BasicAuth(parts.username, parts.password) if parts.userinfo else None


def limit_of(timeout_s: float) -> float | None:
    """Return a timeout as sockets take it, None for no limit. Raises ValueError for what is no time."""
    if timeout_s == math.inf:
        return None
    if not 0 < timeout_s < _MOST_S:
        raise ValueError(f"timeout_s is more than 0 and less than {_MOST_S:g}, or inf, not {timeout_s}")
    return timeout_s


def running_loop() -> object:
    """Return the event loop that runs: connections of one cannot be used in another."""
    return asyncio.get_running_loop()


def no_loop() -> object:
    """Return what stands for the loop of a client that blocks."""
    return None


def is_here(url: str) -> bool:
    """Whether an address is of this machine: what is asked there goes through no proxy of the environment."""
    host = urlsplit(url).hostname or ""
    try:
        # All of 127.0.0.0/8, and ::1.
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def decoded(response: httpx.Response, kind: type[T]) -> T:
    """Return the answer as a value. Raises UnreadableAnswerError."""
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise unreadable(response, f"cannot be read ({exc})") from exc


def unreadable(response: httpx.Response, why: str) -> UnreadableAnswerError:
    """Return the error of an answer that is not of this API."""
    location = response.headers.get("location", "")
    where = f", to {location}" if location else ""
    text = response.content[:_SHOWN].decode("utf-8", "replace")
    return UnreadableAnswerError(
        f"{_asked(response)}: status {response.status_code}{where} {why}: {text!r}",
        status=response.status_code,
    )


def unreadable_line(response: httpx.Response, error: Exception) -> UnreadableAnswerError:
    """Return the error of a line that is not of this API."""
    text = f"{_asked(response)}: a line cannot be read ({error})"
    return UnreadableAnswerError(text, status=response.status_code)


def problem(response: httpx.Response) -> FoldinError:
    """Return the error that an answer without success is. Its content was read."""
    if response.status_code < 400:
        # It is not followed: a POST would become a GET, and the key go to another server.
        return unreadable(response, "is a redirect: use the address that it names")
    try:
        told = msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The page of a proxy.
        told = {}
    code, detail = _str(told.pop("code", "")), _str(told.pop("detail", ""))
    kind = BY_CODE.get(code) or class_of(response.status_code)
    shown = detail or response.content[:_SHOWN].decode("utf-8", "replace")
    row, name = told.pop("row", None), told.pop("field", None)
    for known in ("type", "title", "status"):
        told.pop(known, None)
    return kind(
        f"{_asked(response)}: {f'{response.status_code} {code}'.rstrip()}: {shown}",
        status=response.status_code,
        code=code,
        detail=detail,
        request_id=_str(told.pop("request_id", "")),
        field=name if isinstance(name, str) else None,
        row=row if isinstance(row, int) else None,
        retry_after_s=retry_after(response.headers.get("retry-after")),
        more=told,
    )


def _str(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _asked(response: httpx.Response) -> str:
    # Without the query, which names users and items.
    return f"{response.request.method} {response.request.url.copy_with(query=None)}"


def retry_after(text: str | None) -> float | None:
    """Return the seconds that a `Retry-After` says, as a number or as a date; None where it does not."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time()
        except (ValueError, OverflowError):  # the latter of a year that no clock has
            return None
    # NaN is none of these.
    return max(seconds, 0.0) if -_MOST_S < seconds < _MOST_S else None


def no_answer(error: httpx.HTTPError, method: str, url: str) -> FoldinError:
    """Return the error of a request that has no answer."""
    text = f"{method} {url}: {str(error) or type(error).__name__}"
    if isinstance(error, httpx.DecodingError):
        return UnreadableAnswerError(text, status=0)
    # A write that failed may have arrived, as a server may answer before it has read all.
    unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
    return NoAnswerError(text, was_sent=not isinstance(error, unsent))


def repeats(call: Call, deadline: float, clock: Callable[[], float]) -> Callable[[Exception], bool | float]:
    """Return what says of an error whether to send `call` again, and in how many seconds where the service
    says that. No wait goes past `deadline` of `clock`.
    """

    def pause(error: Exception) -> bool | float:
        if isinstance(error, NoAnswerError):
            # In how long is left to the caller's back-off: nothing has said when.
            return (call.is_repeatable or not error.was_sent) and clock() < deadline
        if not isinstance(error, ProblemError) or error.code in LASTING:
            return False
        if error.code not in NOTHING_DONE and not (call.is_repeatable and isinstance(error, BusyError)):
            return False
        # To wait for less than the service says would be refused again, and count against a quota.
        if error.retry_after_s is None:
            return clock() < deadline
        seconds = error.retry_after_s * random.uniform(1.0, 1.0 + _SPREAD)  # noqa: S311  # no secret
        return seconds if clock() + seconds <= deadline else False

    return pause
