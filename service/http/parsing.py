"""Input: ids, queries and bodies become values, or a problem that names the field and the row.

Invariant: nothing behind this module sees an id that is not 1 to 256 bytes of UTF-8 or a number that is not
finite.

msgspec checks types and says where a value is wrong. What it does not say (the place of a syntax error, of a
NaN, of half a surrogate pair) is found by reading the refused body once more with `json`.
"""

import asyncio
import base64
import binascii
import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, get_args
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np

from factors import Float64s
from featurestore.catalogue.schema import parse_time
from featurestore.codecs import MAX_TIMESTAMP
from processes.errors import in_plain_words
from service.http.problems import Problem

# Decoded and checked in about 2 ms: 10,000 pairs or ratings with ids of usual length. A broken body takes
# longer. What is larger is decoded in a thread.
INLINE_BYTES = 262_144
# The keys of the store and the head of a request stay small; longer ids are texts, which can be hashed.
MAX_ID_BYTES = 256

# As JSON writes numbers: float() alone would take nan, infinity, underscores and the digits of other scripts.
_NUMBER = re.compile(r"-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?")

# How the description of the API shows ids; `checked_id` and `body_id` hold requests to it.
_ID_LENGTHS = {"minLength": 1, "maxLength": MAX_ID_BYTES}
TEXT_ID_SCHEMA: dict[str, Any] = {"type": "string", **_ID_LENGTHS}
ID_SCHEMA: dict[str, Any] = {"anyOf": [TEXT_ID_SCHEMA, {"type": "integer"}]}

T = TypeVar("T")
# An id in a body.
Id = Annotated[str, msgspec.Meta(extra_json_schema=_ID_LENGTHS)] | int
DescribedId = Annotated[
    Id,
    msgspec.Meta(
        description="An id: text of 1 to 256 bytes of UTF-8, or a whole number, which counts as its decimal "
        "text."
    ),
]
_SECONDS = {"type": "number", "minimum": -MAX_TIMESTAMP, "maximum": MAX_TIMESTAMP}
MOMENT_SCHEMA: dict[str, Any] = {"anyOf": [_SECONDS, {"type": "string", "format": "date-time"}]}
# When something happened: `checked_times` holds it to the present.
Timestamp = Annotated[float | str, msgspec.Meta(extra_json_schema=MOMENT_SCHEMA)]
# Clocks of devices are wrong by hours; what is later is no moment that has been.
_AHEAD_S = 86_400.0


def checked_id(raw: bytes, field: str) -> bytes:
    """Return `raw` if it is 1 to 256 bytes of UTF-8; else raise `invalid_parameter`."""
    if not 0 < len(raw) <= MAX_ID_BYTES:
        raise Problem(
            "invalid_parameter", f"{field} must have 1 to {MAX_ID_BYTES} bytes, not {len(raw)}", field=field
        )
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise Problem("invalid_parameter", f"{field} is not UTF-8", field=field) from None
    return raw


def path_id(raw_path: str, position: int, field: str) -> bytes:
    """Return the id in segment `position` (0 = first) of a path as it was sent, percent-decoded."""
    # aiohttp decodes the request line so that the bytes come back as they were sent.
    segments = raw_path.partition("?")[0].split("/")
    return checked_id(unquote_to_bytes(segments[position + 1].encode("utf-8", "surrogateescape")), field)


class Query:
    """The parameters of a query string, each given once at most. `check_names` has refused other names."""

    def __init__(self, raw_path: str) -> None:
        self._values: dict[str, bytes] = {}
        self._twice: set[str] = set()
        # urllib's parse_qsl gives text, in which bytes that are not UTF-8 cannot be told any more.
        for part in raw_path.partition("#")[0].partition("?")[2].split("&"):
            if part:
                raw_name, _, raw = part.partition("=")
                name = unquote_to_bytes(raw_name.replace("+", " ")).decode("utf-8", "replace")
                if name in self._values:
                    self._twice.add(name)
                text = raw.replace("+", " ").encode("utf-8", "surrogateescape")
                self._values[name] = unquote_to_bytes(text)

    @property
    def names(self) -> Collection[str]:
        """The names that were sent."""
        return self._values.keys()

    def raw(self, *names: str) -> bytes | None:
        """Return the value of the one of `names` (synonyms) that was sent; two of them are refused."""
        sent = [name for name in names if name in self._values]
        if not sent:
            return None
        if len(sent) > 1 or sent[0] in self._twice:
            raise Problem("invalid_parameter", f"{names[0]} is given more than once", field=names[0])
        return self._values[sent[0]]

    def id(self, *names: str) -> bytes:
        """Return an id; raise `missing_parameter` where it was not sent."""
        raw = self.raw(*names)
        if raw is None:
            raise Problem("missing_parameter", f"{names[0]} is missing", field=names[0])
        return checked_id(raw, names[0])

    def text(self, name: str) -> str | None:
        """Return a text, or None."""
        raw = self.raw(name)
        if raw is None:
            return None
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Problem("invalid_parameter", f"{name} is not UTF-8", field=name) from None

    def bytes64(self, name: str) -> bytes:
        """Return what the URL-safe base64 of a cursor stands for, nothing where none was sent."""
        try:
            return base64.b64decode(self.raw(name) or b"", altchars=b"-_", validate=True)
        except binascii.Error:
            raise Problem("invalid_parameter", f"{name} must be `next` of a page", field=name) from None

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        text = self.text(name)
        return default if text is None else whole_number(text, name, low, high)

    def number(self, name: str) -> float | None:
        """Return a finite number, or None."""
        text = self.text(name)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text) or abs(float(text)) > MAX_TIMESTAMP:
            raise Problem("invalid_parameter", f"{name} must be a number, like 1700000000", field=name)
        return float(text)

    def time(self, name: str) -> float | None:
        """Return seconds since 1970, or None; they may be sent as ISO 8601."""
        text = self.text(name)
        if text is None or _NUMBER.fullmatch(text):
            return self.number(name)
        if (moment := parse_time(text)) is None:
            detail = f"{name} must be seconds since 1970 or ISO 8601, like 1700000000"
            raise Problem("invalid_parameter", detail, field=name)
        return moment

    def flag(self, name: str, default: bool) -> bool:
        """Return what is written as `true` or `false` (also `1`, `0`)."""
        text = self.text(name)
        if text is not None and text.lower() not in ("true", "false", "1", "0"):
            raise Problem("invalid_parameter", f"{name} must be true or false", field=name)
        return default if text is None else text.lower() in ("true", "1")

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """Return one of `allowed`."""
        text = self.text(name)
        if text is not None and text not in allowed:
            raise Problem("invalid_parameter", f"{name} must be one of {', '.join(allowed)}", field=name)
        return default if text is None else text


def cursor_of(after: bytes | None) -> str | None:
    """Return the cursor of the page behind `after`, which `Query.bytes64` reads; None for no further page."""
    return None if after is None else base64.urlsafe_b64encode(after).decode()


def check_names(raw_path: str, known: Collection[str]) -> None:
    """Raise `unknown_parameter` where the query of `raw_path` has a name that is not `known`."""
    for name in Query(raw_path).names:
        if name not in known:
            raise Problem("unknown_parameter", f"there is no parameter {hint(name, known)}", field=name[:256])


def hint(name: str, known: Collection[str]) -> str:
    """Return an unknown `name` with what it may stand for: the nearest known one, else all of a few."""
    near = difflib.get_close_matches(name[:256], known, 1, 0.5)
    if near:
        return f"{name[:256]!r}: is {near[0]!r} meant?"
    return f"{name[:256]!r}; there is {', '.join(sorted(known)) or 'none here'}"


def whole_number(text: str, field: str, low: int, high: int) -> int:
    """Return `text` as a whole number from `low` to `high`; raises `invalid_parameter`."""
    # int() alone would take signs, spaces, underscores and the digits of other scripts.
    if not (re.fullmatch(r"-?[0-9]{1,19}", text) and low <= int(text) <= high):
        raise Problem(
            "invalid_parameter", f"{field} must be a whole number from {low} to {high}", field=field
        )
    return int(text)


def body_id(value: Id, field: str, row: int | None = None) -> bytes:
    """Return an id of a body as bytes; a number counts as its decimal text. Raises `invalid_body`."""
    raw = value.encode() if isinstance(value, str) else b"%d" % value
    if not 0 < len(raw) <= MAX_ID_BYTES:
        detail = f"{field} must have 1 to {MAX_ID_BYTES} bytes, not {len(raw)}"
        raise Problem("invalid_body", detail, field=field, row=row)
    return raw


def body_ids(values: Sequence[Id], field: str) -> list[bytes]:
    """Return `body_id` of each; the problem names the row."""
    try:
        # Nearly all calls send text alone, which takes a third of the time this way.
        ids = list(map(str.encode, values))  # type: ignore[arg-type]  # a number is a TypeError
    except TypeError:
        ids = [value.encode() if isinstance(value, str) else b"%d" % value for value in values]
    lengths = set(map(len, ids))
    if lengths and not 0 < min(lengths) <= max(lengths) <= MAX_ID_BYTES:
        for row, value in enumerate(values):
            body_id(value, field, row)
    return ids


def checked_times(timestamps: Sequence[float | str | None], now: float, field: str) -> list[float]:
    """Return when something happened in seconds since 1970, `now` for None. Raises `invalid_body` for the
    first that is no time, or lies more than a day ahead: milliseconds that are taken for seconds would be
    the newest of all for good.
    """
    latest, times = now + _AHEAD_S, list[float]()
    for row, sent in enumerate(timestamps):
        if sent is None:
            times.append(now)
            continue
        moment = parse_time(sent) if isinstance(sent, str) else sent
        if moment is not None and -MAX_TIMESTAMP <= moment <= latest:
            times.append(moment)
            continue
        detail = f"{field} must be seconds since 1970 or ISO 8601, at most a day ahead, not {sent!r:.40}"
        if isinstance(sent, float) and now / 2 < sent / 1000 <= latest:
            detail += ": are these milliseconds? Divide them by 1000"
        raise Problem("invalid_body", detail, field=field, row=row)
    return times


def moments(timestamps: Sequence[float | str | None], field: str) -> Float64s:
    """Return moments in seconds since 1970, NaN for None. Raises `invalid_body` at one that is no time."""
    found = [parse_time(each) if isinstance(each, str) else each for each in timestamps]
    for row, (sent, moment) in enumerate(zip(timestamps, found, strict=True)):
        if sent is not None and (moment is None or not -MAX_TIMESTAMP <= moment <= MAX_TIMESTAMP):
            detail = f"{field} must be seconds since 1970 or ISO 8601, like 1700000000, not {sent!r:.40}"
            raise Problem("invalid_body", detail, field=field, row=row)
    return np.array(found, dtype=np.float64)


def check_rows(count: int, limit: int, field: str | None = None) -> None:
    """Raise `too_many_rows` above `limit`."""
    if count > limit:
        raise Problem("too_many_rows", f"one call takes {limit} rows, not {count}", field=field)


# Where one object ends and the next begins on a later line.
_NEXT_LINE = re.compile(rb"\}[ \t\r]*\n\s*\{")
# What msgspec raises of a body that is not what it should be; `problem_of` tells what is wrong.
NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Body(Generic[T]):
    """Decodes bodies of one type; the problem names what is wrong by field and row."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._names = field_names(kind)

    def decode(self, body: bytes | bytearray) -> T:
        """Return the value. Raises `invalid_body` or `malformed_json`."""
        try:
            return self._decoder.decode(body)
        except NOT_DECODED as exc:
            raise problem_of(exc, body, lines=False, names=self._names) from None

    async def decode_off_loop(self, body: bytes | bytearray) -> T:
        """Return the value, decoded in a thread where that would hold up the event loop."""
        return await parsed(self.decode, body)


class Rows(Generic[T]):
    """Decodes bodies of rows of one type: one object, an array, or an object a line; `limit` rows at most.
    `guesses_lines`: objects on lines of their own are taken for rows, too, where the body is not declared so.
    """

    def __init__(self, kind: Any, limit: int, *, guesses_lines: bool = False) -> None:
        self._one: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._many: msgspec.json.Decoder[list[T]] = msgspec.json.Decoder(list[kind])
        self._limit = limit
        self._guesses_lines = guesses_lines
        self._names = field_names(kind)

    def decode(self, body: bytes | bytearray, *, lines: bool) -> tuple[list[T], bool]:
        """Return the rows, and whether the body is one object. Raises a `Problem` that names a field, and the
        first bad row where there are rows.
        """
        is_object = body[:64].lstrip()[:1] == b"{"
        if is_object and self._guesses_lines and not lines:
            # Between two members of one object there would be a comma, and in a string no newline stands as
            # it is.
            lines = _NEXT_LINE.search(body) is not None
        try:
            if lines:
                rows, is_object = self._one.decode_lines(body), False
            else:
                rows = [self._one.decode(body)] if is_object else self._many.decode(body)
        except NOT_DECODED as exc:
            raise problem_of(exc, body, lines=lines, names=self._names) from None
        check_rows(len(rows), self._limit)
        return rows, is_object


@cache
def field_names(kind: Any) -> frozenset[str]:
    """Return the names of the fields of a struct and of the structs in it, however these stand in it."""
    return frozenset(
        field.encode_name for each in _structs_of(kind) for field in msgspec.structs.fields(each)
    )


def _structs_of(kind: Any) -> set[type[msgspec.Struct]]:
    """Return the structs that a type is made of."""
    found: set[type[msgspec.Struct]] = set()
    waiting: list[Any] = [kind]
    while waiting:
        each = waiting.pop()
        waiting.extend(get_args(each))
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each not in found:
            found.add(each)
            waiting.extend(field.type for field in msgspec.structs.fields(each))
    return found


async def parsed(parse: Callable[..., T], body: bytes | bytearray, *more: Any, **options: Any) -> T:
    """Return `parse(body, *more, **options)`, made in a thread where that would hold up the event loop."""
    if len(body) <= INLINE_BYTES:
        return parse(body, *more, **options)
    return await asyncio.to_thread(parse, body, *more, **options)


_PATH = re.compile(r" - at `\$(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_SOME_KEY = "[...]"
_STEP = re.compile(r"\[(?P<row>\d+)\]|\.(?P<name>[^.\[]+)")
Path = list[str | int]


def problem_of(
    exc: Exception, body: bytes | bytearray, *, lines: bool, names: Collection[str] = ()
) -> Problem:
    """Return what is wrong with a `body` that msgspec refused with `exc`; `names`: those of its fields."""
    if not isinstance(exc, msgspec.ValidationError):
        return _locate(bytes(body), lines=lines)
    message = str(exc)
    path: Path = []
    if found := _PATH.search(message):
        # Of an object with any names msgspec does not say which: a number out of range can be looked for.
        if _SOME_KEY in found["path"] and (located := _locate(bytes(body), lines=lines)).field is not None:
            return located
        for step in _STEP.finditer(found["path"].replace(_SOME_KEY, "")):
            path.append(step["name"] or int(step["row"]))
    text = _PATH.sub("", message)
    if missing := _MISSING.match(text):
        path.append(missing["name"])
        text = "is missing"
    elif (unknown := _UNKNOWN.match(text)) and names:
        path.append(unknown["name"][:256])
        text = f"there is no field {hint(unknown['name'], names)}"
    else:
        text = in_plain_words(text)
    return _problem_at(path, text)


def _problem_at(path: Path, text: str) -> Problem:
    row = next((step for step in path if isinstance(step, int)), None)
    field = ".".join(step for step in path if isinstance(step, str)) or None
    where = " of ".join(filter(None, (field, None if row is None else f"row {row}"))) or "the body"
    return Problem("invalid_body", f"{where}: {text}", field=field, row=row)


class _Constant:
    """NaN or an infinity, which JSON does not have but some writers write."""

    def __init__(self, name: str) -> None:
        self.name = name


def _locate(body: bytes, *, lines: bool) -> Problem:
    """Find what makes `body` no JSON: a NaN, bytes that are not UTF-8, half a surrogate pair, its syntax."""
    text = body.decode("utf-8", "surrogateescape")
    # As a float: digits without end are no error of their own, and no work that grows with their square.
    decoder = json.JSONDecoder(parse_constant=_Constant, parse_int=float)
    try:
        if lines:
            return _locate_line(text, decoder)
        start = len(text) - len(text.lstrip(" \t\r\n"))
        if text[start : start + 1] == "[":
            return _locate_element(text, start, decoder)
        value = decoder.decode(text)
    except json.JSONDecodeError as exc:
        return Problem("malformed_json", f"line {exc.lineno}, column {exc.colno}: {exc.msg}")
    except RecursionError:
        return Problem("malformed_json", "nested too deeply")
    return _at_strange(value, []) or Problem("malformed_json", "this is not JSON")


def _locate_line(text: str, decoder: json.JSONDecoder) -> Problem:
    rows = (line for line in text.split("\n") if line.strip(" \t\r"))
    for row, line in enumerate(rows):
        try:
            found = _at_strange(decoder.decode(line), [row])
        except json.JSONDecodeError as exc:
            return Problem("malformed_json", f"row {row}, column {exc.colno}: {exc.msg}", row=row)
        if found is not None:
            return found
    return Problem("malformed_json", "this is not JSON")


def _locate_element(text: str, start: int, decoder: json.JSONDecoder) -> Problem:
    blank = re.compile(r"[ \t\r\n]*")
    position, row = start + 1, 0
    while True:
        position = blank.match(text, position).end()  # type: ignore[union-attr] # matches nothing at least
        if row == 0 and text[position : position + 1] == "]":
            break
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as exc:
            return Problem("malformed_json", f"row {row}, character {exc.pos}: {exc.msg}", row=row)
        if (found := _at_strange(value, [row])) is not None:
            return found
        position = blank.match(text, position).end()  # type: ignore[union-attr] # matches nothing at least
        if text[position : position + 1] != ",":
            break
        position, row = position + 1, row + 1
    if text[position : position + 1] != "]":
        detail = f"row {row}, character {position}: expecting ',' or ']'"
        return Problem("malformed_json", detail, row=row)
    return Problem("malformed_json", f"character {position + 1}: something follows the array")


def _at_strange(value: object, path: Path) -> Problem | None:
    if isinstance(value, _Constant):
        return _problem_at(path, f"{value.name} is not a finite number")
    if isinstance(value, float) and not math.isfinite(value):
        return _problem_at(path, "is not a finite number: it is too large")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return _problem_at(path, "is not UTF-8")
    parts: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    for step, part in parts:
        if (found := _at_strange(part, [*path, step])) is not None:
            return found
    return None
