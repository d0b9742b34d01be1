"""Filters of items: JSON in the shape of Qdrant's becomes a value.

Invariant: a filter that was parsed can be evaluated; its depth, its conditions and its values are bounded.

`must`: all conditions hold, `should`: one does, `must_not`: none does. A condition is a filter, or on a key
`match` (`value`, `any` or `except`) or `range` (`gt`, `gte`, `lt`, `lte`), or `is_empty`, or `has_id`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from featurestore.catalogue.item import AttributeType
from featurestore.catalogue.schema import Types, composed, parse_time
from featurestore.ratings.context_schema import category_name
from service.http.parsing import MAX_ID_BYTES
from service.http.problems import Problem
from service.rules.filters import Condition, Filter, HasId, IsEmpty, Leaf, NumberMatch, Range, TextMatch

# A person writes three; each more is a call more on the stack of this program.
MAX_DEPTH = 8
# One takes up to a millisecond where there are a million items.
MAX_CONDITIONS = 64
# Of all conditions together. Rows of an answer that go back in, and hardly more than a request has room for.
MAX_VALUES = 10_000

# Of a float64, nearly.
_LARGEST = 1e300

# What every item has besides its attributes. An attribute of one of these names is not to be asked for.
_FIELDS: Types = {"title": "text", "categories": "list", "available_from": "time", "available_until": "time"}
_CLAUSES = ("must", "should", "must_not")
_ENDS = ("gt", "gte", "lt", "lte")


class UnknownAttribute(Problem):
    """A filter names an attribute that is not among the types. These may have been read before it came."""


def parse_filter(value: object, types: Types, pointer: str) -> Filter:
    """Return the filter that a JSON value says. `types`: of the attributes of items; `pointer`: where it
    stands in the body (RFC 6901).

    Raises `invalid_rule`, whose field is the pointer of what is wrong: an attribute that there is not
    (`UnknownAttribute`), a value of another type, an operator that there is not.
    """
    return _Parser(types).filter(value, pointer, 1)


def refused(pointer: str, detail: str) -> Problem:
    """Return the problem of rules that are wrong at `pointer`."""
    return Problem("invalid_rule", f"{pointer}: {detail}", field=pointer)


def pointer_to(pointer: str, step: str | int) -> str:
    """Return the pointer of a member or an element below `pointer`."""
    return f"{pointer}/{str(step).replace('~', '~0').replace('/', '~1')}"


class _Parser:
    """Parses one filter; counts what is bounded."""

    def __init__(self, types: Types) -> None:
        self._types = types
        self._conditions = self._values = 0

    def filter(self, value: object, pointer: str, depth: int) -> Filter:
        members = _members(value, pointer, _CLAUSES)
        if depth > MAX_DEPTH:
            raise refused(pointer, f"filters may stand {MAX_DEPTH} deep in one another")
        clauses: list[tuple[Condition, ...]] = []
        for clause in _CLAUSES:
            found, where = members.get(clause, []), pointer_to(pointer, clause)
            # As Qdrant has it: one condition may stand without its list.
            if isinstance(found, dict):
                clauses.append((self._condition(found, where, depth),))
            else:
                each = enumerate(_list(found, where))
                clauses.append(
                    tuple(self._condition(one, pointer_to(where, place), depth) for place, one in each)
                )
        return Filter(*clauses)

    def _condition(self, value: object, pointer: str, depth: int) -> Condition:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise refused(pointer, f"a filter may have {MAX_CONDITIONS} conditions")
        if not isinstance(value, dict):
            raise refused(pointer, "must be an object")
        if "has_id" in value:
            members = _members(value, pointer, ("has_id",))
            where = pointer_to(pointer, "has_id")
            return HasId(tuple(self._each(members["has_id"], where, _item_id)))
        if "is_empty" in value:
            members = _members(value, pointer, ("is_empty",))
            where = pointer_to(pointer, "is_empty")
            return IsEmpty(self._key(_members(members["is_empty"], where, ("key",)), where)[0])
        if "key" in value or "match" in value or "range" in value:
            return self._on_key(_members(value, pointer, ("key", "match", "range")), pointer)
        return self.filter(value, pointer, depth + 1)

    def _on_key(self, members: dict[str, Any], pointer: str) -> Leaf:
        key, kind = self._key(members, pointer)
        if ("match" in members) == ("range" in members):
            raise refused(pointer, "must have either match or range")
        if "match" in members:
            return self._match(key, kind, members["match"], pointer_to(pointer, "match"))
        return self._range(key, kind, members["range"], pointer_to(pointer, "range"))

    def _key(self, members: dict[str, Any], pointer: str) -> tuple[str, AttributeType]:
        key, where = members.get("key"), pointer_to(pointer, "key")
        if not isinstance(key, str):
            raise refused(where, "must name an attribute")
        kind = _FIELDS.get(key) or self._types.get(key)
        if kind is None:
            raise UnknownAttribute("invalid_rule", f"{where}: there is no attribute {key!r}", field=where)
        return key, kind

    def _match(self, key: str, kind: AttributeType, value: object, pointer: str) -> Leaf:
        members = _members(value, pointer, ("value", "any", "except"))
        if len(members) != 1:
            raise refused(pointer, "must have one of value, any, except")
        ((operator, operand),) = members.items()
        where = pointer_to(pointer, operator)
        if operator == "value":
            self._values += 1
            values = [_typed(operand, key, kind, where)]
        else:
            values = self._each(operand, where, lambda each, place: _typed(each, key, kind, place))
        if key == "categories":
            values = [name for each in values for name in category_names(each)]
        match = TextMatch if kind in ("text", "list") else NumberMatch
        return match(key, tuple(values), operator == "except")

    def _range(self, key: str, kind: AttributeType, value: object, pointer: str) -> Range:
        members = _members(value, pointer, _ENDS)
        if kind not in ("number", "time"):
            raise refused(pointer, f"only numbers and times have a range; the type of {key} is {kind}")
        if not members or {"gt", "gte"} <= members.keys() or {"lt", "lte"} <= members.keys():
            raise refused(pointer, "must have one of gt and gte, or one of lt and lte, or one of each")
        ends = {end: _typed(each, key, kind, pointer_to(pointer, end)) for end, each in members.items()}
        return Range(
            key,
            float(ends.get("gt", ends.get("gte", -math.inf))),
            float(ends.get("lt", ends.get("lte", math.inf))),
            open_low="gt" in ends,
            open_high="lt" in ends,
        )

    def _each(self, value: object, pointer: str, parse: Callable[[object, str], Any]) -> list[Any]:
        values = _list(value, pointer)
        self._values += len(values)
        if self._values > MAX_VALUES:
            raise refused(pointer, f"a filter may have {MAX_VALUES} values")
        return [parse(each, pointer_to(pointer, place)) for place, each in enumerate(values)]


_SAID: Mapping[AttributeType, str] = {
    "number": "a number",
    "text": "a text",
    "list": "a list of texts",
    "time": "a time, as seconds since 1970 or like 2024-05-01T12:00:00Z",
    "boolean": "true or false",
}


def _typed(value: object, key: str, kind: AttributeType, pointer: str) -> Any:
    """Return a value as a column of `kind` has it: a text, or a float."""
    match kind, value:
        case (("text" | "list"), str()):
            # Of categories there are some from before they were kept so.
            return value if key == "categories" else composed(value)
        case "boolean", bool():
            return float(value)
        case "time", _:
            if (seconds := parse_time(value)) is not None:
                return seconds
        case "number", (int() | float()) if not isinstance(value, bool):
            # JSON has whole numbers that no float reaches.
            if abs(value) > _LARGEST:
                raise refused(pointer, "is too large")
            return float(value)
    wanted = "a text" if kind == "list" else _SAID[kind]
    raise refused(pointer, f"must be {wanted}; the type of {key} is {kind}")


def category_names(text: str) -> tuple[str, ...]:
    """Return the names by which items may have a category: as it is said, which an item has from before names
    were kept as `category_name` makes them, and as that makes it.
    """
    return tuple(dict.fromkeys((text, category_name(text))))


def _item_id(value: object, pointer: str) -> bytes:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise refused(pointer, "must be an id: a text or a whole number")
    item_id = str(value).encode()
    if not 0 < len(item_id) <= MAX_ID_BYTES:
        raise refused(pointer, f"must have 1 to {MAX_ID_BYTES} bytes")
    return item_id


def _members(value: object, pointer: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refused(pointer, "must be an object")
    for name in value:
        if name not in allowed:
            raise refused(pointer_to(pointer, name), f"is not known here; there are {', '.join(allowed)}")
    return value


def _list(value: object, pointer: str) -> list[Any]:
    if not isinstance(value, list):
        raise refused(pointer, "must be a list")
    return value
