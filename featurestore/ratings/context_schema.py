"""Which context may be given with a rating: named fields, each of numbers or of categories.

Fields are named before their first use, by `PUT /schema` or by the header of what is imported; the categories
of a field are appended as ratings give them.

Invariant: a field keeps its place and its kind, and a category its code, for stored contexts have these. Both
are appended alone, so that a row of an older schema is the beginning of a row of a newer one. The place of a
field that was deleted is never given to another; its name is free.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from factors import Float32s
from featurestore.contexts.codec import MAX_FIELDS

ContextKind = Literal["number", "category"]
Values = Mapping[str, object]
"""The context of one rating by field: a finite number, a boolean, a text for a category; None: not given."""

# Of a store at a time: each may be a column of its own beside as many of categories.
MOST_FIELDS = 32
# Of a field. A model has at most 64 columns of context, so most of more would never have one.
MOST_CATEGORIES = 256
MOST_NAME_BYTES = 64  # as of an attribute
MOST_CATEGORY_BYTES = 64  # as of a name
# Grows when an older version could not read what is stored.
_FORMAT = 1
LARGEST_NUMBER = math.nextafter(2.0**128 - 2.0**103, 0.0)
"""Of those that are given: the largest that becomes a float32, the shortest decimal of the last one too."""
_WANTED: Mapping[ContextKind, str] = {
    "number": "a finite number, true or false",
    "category": f"a text of at most {MOST_CATEGORY_BYTES} bytes",
}


def category_name(text: str) -> str:
    """Return the name by which a category is kept, in a context or of an item: as Unicode composes it (NFC),
    without white space at its ends. What is empty then is none.
    """
    # Most are ASCII, and composed as they are.
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


class ContextRefused(ValueError):  # noqa: N818 - says what happened
    """A context cannot be taken. Refuse the input; `name`: of the field, `row`: which of the contexts, None
    where there is one schema and no row.
    """

    def __init__(self, name: str, why: str, row: int | None = None) -> None:
        super().__init__(f"{name[:MOST_NAME_BYTES]!r} {why}")
        self.name = name[:MOST_NAME_BYTES]
        self.row = row


class UnknownContextField(ContextRefused):
    """No such field was named, or it is deleted."""


class ContextField(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field; `categories`: texts by code, of numbers none. `deleted`: what was stored of it is neither
    shown nor learned.
    """

    name: str
    kind: ContextKind
    categories: tuple[str, ...] = ()
    deleted: bool = False


@dataclass(frozen=True)
class ContextSchema:
    """All fields of a store by place."""

    fields: tuple[ContextField, ...] = ()

    @property
    def named_fields(self) -> list[ContextField]:
        """The fields that are not deleted."""
        return [each for each in self.fields if not each.deleted]

    @cached_property
    def kinds(self) -> tuple[ContextKind | None, ...]:
        """The kind of each field (k,); None where it is deleted."""
        return tuple(None if each.deleted else each.kind for each in self.fields)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {each.name: place for place, each in enumerate(self.fields) if not each.deleted}

    @cached_property
    def _codes(self) -> tuple[dict[str, int], ...]:
        return tuple({text: code for code, text in enumerate(each.categories)} for each in self.fields)

    def rows(self, given: Sequence[Values | None]) -> Float32s | None:
        """Return contexts as rows (n, k): NaN where a value is not given, a category as its code, NaN where
        it has none. None where nothing at all is given.

        Raises `UnknownContextField`, `ContextRefused` for a value of the wrong kind.
        """
        places, values, width = list[int](), list[float](), len(self.fields)
        for row, place, value in self._each(given):
            found = number_of(value)
            if self.kinds[place] == "category":
                # A category that no rating was given with says nothing, as a value that is not given.
                codes = self._codes[place]
                found = codes.get(category_name(value), math.nan) if isinstance(value, str) else None
            if found is None:
                raise _wrong_kind(self.fields[place], value, row)
            places.append(row * width + place)
            values.append(found)
        if not places:
            return None
        table = np.full((len(given), width), np.nan, dtype=np.float32)
        table.reshape(-1)[places] = values
        return table

    def _each(self, given: Sequence[Values | None]) -> Iterable[tuple[int, int, object]]:
        """Yield row, place of the field, and value of what is given: null is not, nor is a category of white
        space alone.
        """
        for row, values in enumerate(given):
            for name, value in (values or {}).items():
                if value is None:
                    continue
                place = self._place(name, row)
                if not (isinstance(value, str) and self.kinds[place] == "category" and not value.strip()):
                    yield row, place, value

    def _place(self, name: str, row: int | None = None) -> int:
        place = self._places.get(name)
        if place is None:
            there = ", ".join(self._places) or "none yet"
            why = f"is no field of a context; there are {there}; PUT /schema names one"
            raise UnknownContextField(name, why, row)
        return place

    def named(self, row: Float32s) -> dict[str, float | str]:
        """Return what a row (k',) has by field; k' may be less or more than the fields there are."""
        found = dict[str, float | str]()
        for field, value in zip(self.fields, row, strict=False):
            if field.deleted or not np.isfinite(value):
                continue
            if field.kind == "number":
                # The shortest decimal that is this float32: 0.1 comes back as 0.1.
                number = float(str(value))
                found[field.name] = int(number) if number.is_integer() else number
            elif 0 <= value < len(field.categories):
                found[field.name] = field.categories[int(value)]
        return found

    def lacking(self, given: Sequence[Values | None]) -> "Lacking":
        """Return the categories that `given` has besides.

        Raises `UnknownContextField`, `ContextRefused` for a value of the wrong kind.
        """
        lacking: Lacking = {}
        for row, place, value in self._each(given):
            field = self.fields[place]
            if _kind_of(value) != field.kind:
                raise _wrong_kind(field, value, row)
            if isinstance(value, str) and (text := category_name(value)) not in self._codes[place]:
                _check_category(field.name, text, row)
                lacking.setdefault((field.name, text), row)
        return lacking

    def extended(self, lacking: "Lacking") -> "ContextSchema":
        """Return the schema with the categories of `lacking` that it has not; the same one where it has all.

        Raises `UnknownContextField`, `ContextRefused` where a field is of numbers, and beyond the limit.
        """
        fields = list(self.fields)
        for (name, text), row in lacking.items():
            place = self._place(name, row)
            field = fields[place]
            if field.kind == "number":
                raise _wrong_kind(field, text, row)
            if text not in field.categories:
                fields[place] = msgspec.structs.replace(field, categories=(*field.categories, text))
                _check_categories(fields[place], row)
        return self._with(fields)

    def merged(self, more: "ContextSchema", *, keep_deleted: bool = False) -> "ContextSchema":
        """Return the schema with the fields and categories of `more` that it lacks, those that are deleted
        there left out. `keep_deleted`: what is deleted here is not named anew.

        Raises `ContextRefused` where a field is of another kind there, and beyond the limits.
        """
        fields, places = list(self.fields), dict(self._places)
        gone = {each.name for each in self.fields if each.deleted} - places.keys() if keep_deleted else set()
        for each in more.named_fields:
            if each.name in gone:
                continue
            place = places.setdefault(each.name, len(fields))
            if place == len(fields):
                fields.append(ContextField(each.name, each.kind))
            field = fields[place]
            if field.kind != each.kind:
                raise ContextRefused(field.name, f"is a {field.kind} here, and a {each.kind} there")
            texts = dict.fromkeys((*field.categories, *map(category_name, each.categories)))
            fields[place] = msgspec.structs.replace(field, categories=tuple(texts))
            _check_field(fields[place])
        _check_count(fields)
        return self._with(fields)

    def continued(self, later: "ContextSchema") -> "ContextSchema":
        """Return what this and a `later` schema of the same store say together, place by place; either may
        lack the last ones. Raises `ContextRefused` where a place means another thing there.
        """
        longer, shorter = sorted((self.fields, later.fields), key=len, reverse=True)
        fields = list(longer)
        for place, field in enumerate(shorter):
            there = fields[place]
            more, less = sorted((there.categories, field.categories), key=len, reverse=True)
            if (field.name, field.kind) != (there.name, there.kind) or more[: len(less)] != less:
                raise ContextRefused(field.name, f"is another field, {there.name!r}, there")
            deleted = field.deleted or there.deleted
            fields[place] = ContextField(field.name, field.kind, more, deleted=deleted)
        return self._with(fields)

    def without(self, name: str) -> "ContextSchema":
        """Return the schema in which a field is deleted. Raises `UnknownContextField` where there is none."""
        place = self._place(name)
        field = msgspec.structs.replace(self.fields[place], deleted=True)
        return self._with([*self.fields[:place], field, *self.fields[place + 1 :]])

    def _with(self, fields: Sequence[ContextField]) -> "ContextSchema":
        return self if tuple(fields) == self.fields else ContextSchema(tuple(fields))

    def recoded(self, rows: Float32s, source: "ContextSchema") -> Float32s:
        """Return rows (n, k') of another schema as rows (n, k) of this one, which is `merged` with it. What
        is deleted in either stays where both have it at one place, as those of one store have: so that
        ratings of both compare.
        """
        table = np.full((len(rows), len(self.fields)), np.nan, dtype=np.float32)
        for at, (field, column) in enumerate(zip(source.fields, rows.T, strict=False)):
            same = at < len(self.fields) and (self.fields[at].name, self.fields[at].kind) == (
                field.name,
                field.kind,
            )
            place = None if field.deleted else self._places.get(field.name)
            if place is None and same:
                place = at
            if place is None:
                continue
            if field.kind == "number":
                table[:, place] = column
            else:
                known = self._codes[place]
                codes = np.array([known.get(text, np.nan) for text in field.categories], dtype=np.float32)
                told = np.isin(column, np.arange(len(codes)))
                table[told, place] = codes[column[told].astype(np.int64)]
        return table


Lacking = dict[tuple[str, str], int]
"""What contexts have that a schema has not: a field's name and a category; and the first row that has it."""


def _check_field(field: ContextField) -> None:
    if not 0 < len(field.name.encode()) <= MOST_NAME_BYTES:
        raise ContextRefused(field.name, f"must have 1 to {MOST_NAME_BYTES} bytes as a name")
    if field.kind == "number" and field.categories:
        raise ContextRefused(field.name, "is a number, and has no categories")
    for text in field.categories:
        _check_category(field.name, text)
    _check_categories(field)


def _check_count(fields: Sequence[ContextField]) -> None:
    name = fields[-1].name if fields else ""
    if sum(not each.deleted for each in fields) > MOST_FIELDS:
        why = (
            f"is one field too many: a context may have {MOST_FIELDS}; DELETE /schema/context/NAME makes room"
        )
        raise ContextRefused(name, why)
    if len(fields) > MAX_FIELDS:
        why = f"is one field too many: a store has at most {MAX_FIELDS}, those included that are deleted"
        raise ContextRefused(name, why)


def _check_category(name: str, text: str, row: int | None = None) -> None:
    if not text:
        raise ContextRefused(name, "has a category without a name", row)
    if len(text.encode()) > MOST_CATEGORY_BYTES:
        raise ContextRefused(name, f"must be {_WANTED['category']}", row)


def _check_categories(field: ContextField, row: int | None = None) -> None:
    if len(field.categories) > MOST_CATEGORIES:
        raise ContextRefused(field.name, f"has {MOST_CATEGORIES} categories, and may not have more", row)


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
    places: list[ContextField]


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
        raise ValueError(
            f"a schema of contexts has format {document.format}, this version reads {_FORMAT}: "
            "use the version that wrote it"
        )
    schema = ContextSchema(tuple(document.places))
    # Whatever could not have become so step by step is refused: a name twice, too many of anything.
    named = schema.named_fields
    _check_count(schema.fields)
    if list(ContextSchema().merged(schema).fields) != named:
        raise ValueError("a schema of contexts in which a name stands twice")
    return schema
