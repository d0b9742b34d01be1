"""The types of attributes. Invariant: an attribute has one type, told or inferred at its first use; a value
of another type is refused.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from featurestore.catalogue.item import AttributeType, AttributeValue, Time, type_of
from featurestore.client import Client
from featurestore.errors import StoreDamaged, StoreError, StoreRefused
from featurestore.keys import Keys, shown_key

Kind = Literal["items", "users"]
Types = Mapping[str, AttributeType]
KINDS: tuple[Kind, ...] = get_args(Kind)
TYPES: tuple[AttributeType, ...] = get_args(AttributeType)

# Of a kind. Of items each is a column in every worker, of a number an item: 8 MB at a million items.
MOST_NAMES = 256
MOST_NAME_BYTES = 64  # as long as a word that people write; a name stands in each item that has it
# Before the type of an attribute that is being deleted.
_LEAVING = "-"
# As ISO 8601 writes a day or a moment of one. What Python reads besides, such as `20240101`, may be a number.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?")
# Years 1 to 9999, in seconds since 1970: what ISO 8601 can write.
FIRST_S, LAST_S = -62_135_596_800.0, 253_402_300_799.0
_NAMES: Mapping[AttributeType, str] = {
    "number": "a finite number",
    "text": "a text",
    "list": "a list of texts",
    "time": "a time (ISO 8601, or seconds since 1970)",
    "boolean": "true or false",
}


class ValueRefused(ValueError):  # noqa: N818 - says what happened
    """An attribute cannot have this value. Refuse the input; `name`: of the attribute, the text says why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name


def parse_time(value: object) -> float | None:
    """Return a moment in seconds since 1970 from ISO 8601 (UTC where it says no zone) or a number; None for
    any other value. What is within the last second of the year 9999 is its beginning: many programs write
    the end of that second for "never".
    """
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        seconds: float | None = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    else:
        seconds = _number(value)
    # A zone may lead out of these years. As a float the last microsecond is the next second.
    return min(seconds, LAST_S) if seconds is not None and FIRST_S <= seconds <= LAST_S + 1 else None


def shown_time(seconds: float) -> str:
    """Return a moment as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def shown(value: AttributeValue) -> object:
    """Return a value as JSON has it; `typed` reads it back with the same type."""
    if isinstance(value, Time):
        return shown_time(value.seconds)
    # A whole number looks like one: most are years and counts.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def typed(name: str, value: object, held: AttributeType | None) -> AttributeValue:
    """Return the value of an attribute whose type is `held`, inferred where that is None.

    Raises `ValueRefused`.
    """
    if not 0 < len(name.encode()) <= MOST_NAME_BYTES:
        raise ValueRefused(name[:MOST_NAME_BYTES], f"must have 1 to {MOST_NAME_BYTES} bytes as a name")
    found = _inferred(value) if held is None else _as(held, value)
    if found is None:
        wanted = "a number, a text, a list of texts, a time or a boolean" if held is None else _NAMES[held]
        since = "" if held is None else ": that is its type"
        raise ValueRefused(name, f"must be {wanted}, not {_kind(value)}{since}")
    return found


def _inferred(value: object) -> AttributeValue | None:
    if isinstance(value, str) and (seconds := parse_time(value)) is not None:
        return Time(seconds)
    kinds: tuple[AttributeType, ...] = ("boolean", "number", "text", "list")
    return next((found for kind in kinds if (found := _as(kind, value)) is not None), None)


def _as(kind: AttributeType, value: object) -> AttributeValue | None:
    match kind:
        case "number":
            return _number(value)
        case "time":
            seconds = parse_time(value)
            return None if seconds is None else Time(seconds)
        case "text":
            return composed(value) if isinstance(value, str) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "list":
            texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
            return list(map(composed, value)) if texts and isinstance(value, list) else None


def composed(text: str) -> str:
    """Return a text as Unicode composes it (NFC), so that the same letters are the same text."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "this text", list: "this list"}
    return names.get(type(value), "this value")


class SchemaChanged(StoreError):  # noqa: N818 - says what happened
    """Another call has fixed the type of an attribute meanwhile, or there is no room for one. Look again:
    the values are read by the types that hold now.
    """


class SchemaFull(StoreError):  # noqa: N818 - says what happened
    """There are as many attributes as there may be. Refuse the input."""


class AttributeLeaving(StoreRefused):
    """An attribute is being deleted, or was when that was cut off: no value of it is taken."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"{name} is being deleted: DELETE /schema/{kind}/{name} again if that does not end")


class Schema:
    """The types of the attributes of items and of users, as the store holds them."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._key = keys.schema
        self._client = client

    async def types(self, kind: Kind) -> dict[str, AttributeType]:
        """Return the type of each attribute. Raises `StoreDamaged`."""
        prefix, found = f"{kind}:", dict[str, AttributeType]()
        stored: Any = await self._client.hgetall(self._key)
        for field, value in stored.items():
            name, text = field.decode("utf-8", "replace"), value.decode("utf-8", "replace")
            known = next((each for each in TYPES if each == type_named(text)), None)
            if known is None:
                raise StoreDamaged(shown_key(self._key), f"{text[:20]!r} is no type of an attribute")
            if name.startswith(prefix) and not text.startswith(_LEAVING):
                found[name.removeprefix(prefix)] = known
        return found

    async def hold(self, kind: Kind, types: Types) -> None:
        """Fix types; one that is fixed already stays. Safe to repeat.

        Raises `SchemaChanged` where one is fixed as another type, `AttributeLeaving`, `SchemaFull`.
        """
        await self.hold_all({kind: types})

    async def hold_all(self, told: Mapping[Kind, Types]) -> None:
        """The same of several kinds, all in one step."""
        named = {f"{kind}:{name}": each for kind, types in told.items() for name, each in types.items()}
        if not named:
            return
        pairs = [part.encode() for pair in named.items() for part in pair]
        reply: Any
        (reply,) = await self._client.call("hold_types", ([self._key], [b"%d" % MOST_NAMES, *pairs]))
        if reply[0] == b"TYPE":
            kind, _, name = reply[1].decode().partition(":")
            if reply[2].decode().startswith(_LEAVING):
                raise AttributeLeaving(name, kind)
            raise SchemaChanged(f"{name} is {_NAMES[reply[2].decode()]}")
        if reply[0] == b"FULL":
            raise SchemaFull(f"there may be {MOST_NAMES} attributes of {reply[1].decode()}")

    async def text(self, field: str) -> str:
        """Return what a field, of kind and name, is; "" where there is none."""
        held: Any = await self._client.hget(self._key, field.encode())
        return "" if held is None else held.decode("utf-8", "replace")


def leaving(text: str, token: str) -> str:
    """Return what the field of an attribute becomes while the deletion of this `token` is under way."""
    return f"{_LEAVING}{type_named(text)}:{token}"


def type_named(text: str) -> str:
    """Return the type that a field names, of an attribute that leaves, too."""
    return text.removeprefix(_LEAVING).partition(":")[0]


def types_of(
    kind: Kind, before: Mapping[str, AttributeValue], after: Mapping[str, AttributeValue]
) -> dict[str, AttributeType]:
    """Return the types that the fields of a schema must have for what is new or changed in `after`."""
    changed = {name: each for name, each in after.items() if before.get(name) != each}
    return {f"{kind}:{name}": type_of(each) for name, each in changed.items()}


def new_types(values: Mapping[str, Any], held: Types) -> dict[str, AttributeType]:
    """Return the types of those `values` whose attribute has none yet."""
    return {name: type_of(value) for name, value in values.items() if name not in held}
