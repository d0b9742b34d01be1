"""Which context may be given with a rating: named fields, each of numbers or of categories.

Invariant: a field keeps its place and its kind, and a category its code, for stored contexts have these. Both
are appended alone, so that a row of an older schema is the beginning of a row of a newer one.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import msgspec
import numpy as np

from factors import Float32s
from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.keys import Keys
from featurestore.ratings.stored_document import StoredDocument

T = TypeVar("T")
ContextKind = Literal["number", "category"]
Values = Mapping[str, object]
"""The context of one rating by field: a finite number, a boolean, a text for a category; None: not given."""

# Of a store: the mask of a stored context has 32 bits.
MOST_FIELDS = 32
# Of a field. A model has at most 64 columns of context, so most of more would never have one of their own.
MOST_CATEGORIES = 256
MOST_NAME_BYTES = 64  # as of an attribute
MOST_CATEGORY_BYTES = 64  # the schema then has 0.5 MB at most
# Values of a call that are read in about 1 ms; more are read in a thread.
_AT_ONCE = 2_000
# Grows when an older version could not read what is stored.
_FORMAT = 1
LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""Of those that are given: contexts are stored as float32."""
_WANTED: Mapping[ContextKind, str] = {
    "number": "a finite number, true or false",
    "category": f"a text of at most {MOST_CATEGORY_BYTES} bytes",
}


class ContextRefused(ValueError):  # noqa: N818 - says what happened
    """A context cannot be taken. Refuse the input; `name`: of the field, `row`: which of the contexts, None
    where there is one schema and no row.
    """

    def __init__(self, name: str, why: str, row: int | None = None) -> None:
        super().__init__(f"{name[:MOST_NAME_BYTES]!r} {why}")
        self.name = name[:MOST_NAME_BYTES]
        self.row = row


class UnknownContextField(ContextRefused):
    """No rating was ever given with this field."""


@dataclass(frozen=True, slots=True)
class ContextField:
    """One field; `categories`: texts by code, of numbers none."""

    name: str
    kind: ContextKind
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContextSchema:
    """All fields of a store by place."""

    fields: tuple[ContextField, ...] = ()

    @cached_property
    def kinds(self) -> tuple[ContextKind, ...]:
        """The kind of each field (k,)."""
        return tuple(each.kind for each in self.fields)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {each.name: place for place, each in enumerate(self.fields)}

    @cached_property
    def _codes(self) -> tuple[dict[str, int], ...]:
        return tuple({text: code for code, text in enumerate(each.categories)} for each in self.fields)

    def rows(self, given: Sequence[Values | None]) -> Float32s | None:
        """Return contexts as rows (n, k): NaN where a value is not given, a category as its code, NaN where
        it has none. None where nothing at all is given.

        Raises `UnknownContextField`, `ContextRefused` for a value of the wrong kind.
        """
        places, values, width = list[int](), list[float](), len(self.fields)
        for row, each in enumerate(given):
            for name, value in (each or {}).items():
                if value is None:
                    continue
                place = self._places.get(name)
                if place is None:
                    there = ", ".join(self._places) or "none yet"
                    raise UnknownContextField(name, f"is no field of a context; there are {there}", row)
                found = number_of(value) if self.kinds[place] == "number" else self._code(place, value)
                if found is None:
                    raise _wrong_kind(self.fields[place], value, row)
                places.append(row * width + place)
                values.append(found)
        if not places:
            return None
        table = np.full((len(given), width), np.nan, dtype=np.float32)
        table.reshape(-1)[places] = values
        return table

    def _code(self, place: int, value: object) -> float | None:
        # A category that no rating was given with says nothing, as a value that is not given.
        return self._codes[place].get(value, math.nan) if isinstance(value, str) else None

    def named(self, row: Float32s) -> dict[str, float | str]:
        """Return what a row (k',) has by field; k' may be less or more than the fields there are."""
        found = dict[str, float | str]()
        for field, value in zip(self.fields, row, strict=False):
            if field.kind == "number" and np.isfinite(value):
                # The shortest decimal that is this float32: 0.1 comes back as 0.1.
                number = float(str(value))
                found[field.name] = int(number) if number.is_integer() else number
            elif field.kind == "category" and 0 <= value < len(field.categories) and value == int(value):
                found[field.name] = field.categories[int(value)]
        return found

    def extended(self, given: Sequence[Values | None]) -> "ContextSchema":
        """Return the schema with the fields and categories that `given` has besides; the same one where it
        has all.

        Raises `ContextRefused` for a value of the wrong kind, and beyond the limits.
        """
        fields = {each.name: each for each in self.fields}
        # As sets, and in order: a field may get many categories from many rows.
        categories = {each.name: dict.fromkeys(each.categories) for each in self.fields}
        for row, each in enumerate(given):
            for name, value in (each or {}).items():
                if value is None:
                    continue
                kind = _kind_of(value)
                if name not in fields:
                    fields[name] = _new_field(name, kind, len(fields), row)
                    categories[name] = {}
                if kind != fields[name].kind or kind is None:
                    raise _wrong_kind(fields[name], value, row)
                if isinstance(value, str) and value not in categories[name]:
                    _check_category(name, value, len(categories[name]), row)
                    categories[name][value] = None
        return self._with(fields, {name: tuple(each) for name, each in categories.items()})

    def merged(self, more: "ContextSchema") -> "ContextSchema":
        """Return the schema with the fields and categories of `more` that it lacks. Raises `ContextRefused`
        where a field is of another kind there, and beyond the limits.
        """
        fields = {each.name: each for each in self.fields}
        categories = {each.name: each.categories for each in self.fields}
        for each in more.fields:
            if each.name not in fields:
                fields[each.name] = _new_field(each.name, each.kind, len(fields))
            if fields[each.name].kind != each.kind:
                why = f"is a {fields[each.name].kind} here, and a {each.kind} there"
                raise ContextRefused(each.name, why)
            if each.kind == "number" and each.categories:
                raise ContextRefused(each.name, "is a number, and has no categories")
            known = dict.fromkeys(categories.get(each.name, ()))
            for text in each.categories:
                if text not in known:
                    _check_category(each.name, text, len(known))
                    known[text] = None
            categories[each.name] = tuple(known)
        return self._with(fields, categories)

    def _with(
        self, fields: Mapping[str, ContextField], categories: Mapping[str, tuple[str, ...]]
    ) -> "ContextSchema":
        found = tuple(replace(each, categories=categories[each.name]) for each in fields.values())
        return self if found == self.fields else ContextSchema(found)

    def recoded(self, rows: Float32s, source: "ContextSchema") -> Float32s:
        """Return rows (n, k') of another store's schema as rows (n, k) of this one, which has all that the
        other one has (`merged`).
        """
        table = np.full((len(rows), len(self.fields)), np.nan, dtype=np.float32)
        for field, column in zip(source.fields, rows.T, strict=False):
            place = self._places[field.name]
            if field.kind == "number":
                table[:, place] = column
            else:
                codes = np.array([self._codes[place][text] for text in field.categories], dtype=np.float32)
                known = np.isin(column, np.arange(len(codes)))
                table[known, place] = codes[column[known].astype(np.int64)]
        return table


def _new_field(name: str, kind: ContextKind | None, there_are: int, row: int | None = None) -> ContextField:
    if not 0 < len(name.encode()) <= MOST_NAME_BYTES:
        raise ContextRefused(name, f"must have 1 to {MOST_NAME_BYTES} bytes as a name", row)
    if there_are >= MOST_FIELDS:
        raise ContextRefused(name, f"is one field too many: a context may have {MOST_FIELDS}", row)
    if kind is None:
        raise ContextRefused(name, "must be a finite number, true or false, or a text", row)
    return ContextField(name, kind)


def _check_category(name: str, text: str, there_are: int, row: int | None = None) -> None:
    if len(text.encode()) > MOST_CATEGORY_BYTES:
        raise ContextRefused(name, f"must be {_WANTED['category']}", row)
    if there_are >= MOST_CATEGORIES:
        raise ContextRefused(name, f"has {MOST_CATEGORIES} categories, and may not have more", row)


def _kind_of(value: object) -> ContextKind | None:
    if isinstance(value, str):
        return "category"
    return None if number_of(value) is None else "number"


def _wrong_kind(field: ContextField, value: object, row: int) -> ContextRefused:
    kinds: Mapping[type, str] = {str: "a text", list: "a list", dict: "an object"}
    found = kinds.get(type(value), "this value" if number_of(value) is None else "a number")
    return ContextRefused(field.name, f"must be {_WANTED[field.kind]}, not {found}", row)


def number_of(value: object) -> float | None:
    """Return a number, or a boolean as 1 or 0; None for any other value, or one past what float32 has."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Not so of a NaN either.
    return number if abs(number) <= LARGEST_NUMBER else None


class _Document(msgspec.Struct, frozen=True):
    format: int
    fields: list[ContextField]


def schema_to_bytes(schema: ContextSchema) -> bytes:
    """Return a schema as it is stored."""
    return msgspec.json.encode(_Document(_FORMAT, list(schema.fields)))


def schema_from_bytes(data: bytes) -> ContextSchema:
    """Return the schema that `schema_to_bytes` wrote. Raises `ValueError` for anything else."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ValueError(f"no schema of contexts: {exc}") from exc
    if document.format != _FORMAT:
        raise ValueError(f"a schema of contexts of format {document.format}")
    # Whatever could not have become so step by step is refused: a name twice, too many of anything.
    schema = ContextSchema(tuple(document.fields))
    if ContextSchema().merged(schema) != schema:
        raise ValueError("a schema of contexts in which a name stands twice")
    return schema


class StoredContextSchema(StoredDocument[ContextSchema]):
    """Reads and changes the schema of a store."""

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation) -> None:
        super().__init__(
            *(client, confirmation),
            key=keys.contexts,
            default=ContextSchema(),
            to_bytes=schema_to_bytes,
            from_bytes=schema_from_bytes,
        )

    async def rows(self, given: Sequence[Values | None], *, extend: bool) -> Float32s | None:
        """Return contexts as `ContextSchema.rows` does. `extend`: those of ratings, whose new fields and
        categories are stored first; else those of questions, which are answered while the store is away.

        Raises what `ContextSchema.rows` and `ContextSchema.extended` raise.
        """
        values = sum(len(each) for each in given if each)
        if not values:
            return None
        run = asyncio.to_thread if values > _AT_ONCE else _now
        schema = await (self.current() if extend else self.known())
        if extend and await run(schema.extended, given) is not schema:
            # By the newest one: what this process lacks others may have stored, and then it is no change.
            wanted = await run((await self.fresh()).extended, given)
            schema = await self.change(lambda before: before.merged(wanted))
        try:
            return await run(schema.rows, given)
        except UnknownContextField:
            # Another process may have stored it since this one asked.
            return await run((await self.fresh()).rows, given)


async def _now(compute: Callable[[Sequence[Values | None]], T], given: Sequence[Values | None]) -> T:
    return compute(given)
