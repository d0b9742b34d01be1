"""Which context may be given with a rating: named fields, each of numbers or of categories.

Invariant: a field keeps its place and its kind, and a category its code, for stored contexts have these. Both
are appended alone, so that a row of an older schema is the beginning of a row of a newer one. What is retired
keeps its number too: nothing else ever gets it, and it means the same when it comes back.

New categories have names as `category_name` makes them. Those that were stored before stay as they are: the
exact text still names them.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np

from factors import Float32s
from featurestore.contexts.codec import MAX_FIELDS, MOST_GIVEN

ContextKind = Literal["number", "category"]
Values = Mapping[str, object]
"""The context of one rating by field: a finite number, a boolean, a text for a category; None: not given."""

# Of a store at a time: each may be a column of its own beside as many of categories.
MOST_FIELDS = MOST_GIVEN
# Of a field at a time. A model has at most 64 columns of context, so most of more would never have one.
MOST_CATEGORIES = 256
# Those of a field with the retired ones. Many times what it may have at a time; the schema has 4 MB at most.
_MOST_CODES = 1_024
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
    """No rating was ever given with this field, or it is retired."""


class ContextField(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field; `categories`: texts by code, of numbers none. `retired`: it is neither given nor shown nor
    learned any more; `retired_codes`: of categories of which that is so, in order.
    """

    name: str
    kind: ContextKind
    categories: tuple[str, ...] = ()
    retired: bool = False
    retired_codes: tuple[int, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The categories that are not retired."""
        if not self.retired_codes:
            return self.categories
        retired = frozenset(self.retired_codes)
        return tuple(text for code, text in enumerate(self.categories) if code not in retired)


@dataclass(frozen=True)
class ContextSchema:
    """All fields of a store by place."""

    fields: tuple[ContextField, ...] = ()

    @cached_property
    def kinds(self) -> tuple[ContextKind, ...]:
        """The kind of each field (k,)."""
        return tuple(each.kind for each in self.fields)

    @property
    def shown(self) -> list[ContextField]:
        """The fields that are not retired."""
        return [each for each in self.fields if not each.retired]

    @property
    def retired(self) -> list[tuple[int, int | None]]:
        """Of what is retired the place, and the code of a category; None for a whole field."""
        return [
            (place, code)
            for place, each in enumerate(self.fields)
            for code in ([None] if each.retired else each.retired_codes)
        ]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {each.name: place for place, each in enumerate(self.fields)}

    @cached_property
    def _codes(self) -> tuple[dict[str, int], ...]:
        return tuple({text: code for code, text in enumerate(each.categories)} for each in self.fields)

    @cached_property
    def _shown_codes(self) -> tuple[dict[str, int], ...]:
        return tuple(
            {text: codes[text] for text in each.shown}
            for each, codes in zip(self.fields, self._codes, strict=True)
        )

    @cached_property
    def _texts(self) -> tuple[dict[float, str], ...]:
        return tuple({float(code): text for text, code in codes.items()} for codes in self._shown_codes)

    def rows(self, given: Sequence[Values | None]) -> Float32s | None:
        """Return contexts as rows (n, k): NaN where a value is not given, a category as its code, NaN where
        it has none. None where nothing at all is given.

        Raises `UnknownContextField`, `ContextRefused` for a value of the wrong kind.
        """
        places, values, width = list[int](), list[float](), len(self.fields)
        for row, each in enumerate(given):
            for name, value in (each or {}).items():
                if not self._is_given(name, value):
                    continue
                place = self._places.get(name)
                if place is None or self.fields[place].retired:
                    there = ", ".join(each.name for each in self.shown) or "none yet"
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
        if not isinstance(value, str):
            return None
        codes = self._shown_codes[place]
        found = codes.get(value)
        # A category that no rating was given with says nothing, as a value that is not given.
        return codes.get(category_name(value), math.nan) if found is None else found

    def _is_given(self, name: str, value: object) -> bool:
        """Whether a value is given: null and a text of white space alone are not, as long as no category of
        before has that name. Of numbers any text is refused.
        """
        if value is None or not isinstance(value, str) or value.strip():
            return value is not None
        place = self._places.get(name)
        return place is not None and (self.kinds[place] == "number" or value in self._shown_codes[place])

    def named(self, row: Float32s) -> dict[str, float | str]:
        """Return what a row (k',) has by field; k' may be less or more than the fields there are."""
        found = dict[str, float | str]()
        for place, (field, value) in enumerate(zip(self.fields, row, strict=False)):
            if field.retired:
                continue
            if field.kind == "number" and np.isfinite(value):
                # The shortest decimal that is this float32: 0.1 comes back as 0.1.
                number = float(str(value))
                found[field.name] = int(number) if number.is_integer() else number
            elif field.kind == "category" and value in self._texts[place]:
                found[field.name] = self._texts[place][value]
        return found

    def lacking(self, given: Sequence[Values | None]) -> "Lacking":
        """Return the fields and categories that `given` has besides.

        Raises `ContextRefused` for a value of the wrong kind, and for what is retired.
        """
        lacking: Lacking = {}
        new: dict[str, ContextField] = {}
        for row, each in enumerate(given):
            for name, value in (each or {}).items():
                if not self._is_given(name, value):
                    continue
                place = self._places.get(name)
                if place is None:
                    field = new.get(name)
                    if field is None:
                        field = new[name] = _new_field(name, _kind_of(value), row)
                        lacking[field, None] = row
                    known: Mapping[str, int] = {}
                else:
                    field, known = self.fields[place], self._shown_codes[place]
                    if field.retired:
                        raise _is_retired(name, None, row)
                if _kind_of(value) != field.kind:
                    raise _wrong_kind(field, value, row)
                if not isinstance(value, str) or value in known:
                    continue
                text = category_name(value)
                if text in known or (field, text) in lacking:
                    continue
                codes: Mapping[str, int] = {} if place is None else self._codes[place]
                if (retired := next((each for each in (value, text) if each in codes), None)) is not None:
                    raise _is_retired(name, retired, row)
                _check_category(name, text, row)
                lacking[field, text] = row
        return lacking

    def extended(self, lacking: "Lacking") -> "ContextSchema":
        """Return the schema with what `lacking` has and it has not; the same one where it has all.

        Raises `ContextRefused` for a field of another kind here, for what is retired, and beyond the limits.
        """
        fields = list(self.fields)
        for (told, text), row in lacking.items():
            place = next((at for at, each in enumerate(fields) if each.name == told.name), len(fields))
            if place == len(fields):
                fields.append(ContextField(told.name, told.kind))
                _check_fields(fields, told.name, row)
            field = fields[place]
            if field.kind != told.kind:
                raise _other_kind(field, told.kind, row)
            is_new = text is not None and text not in field.categories
            if field.retired or (text is not None and not is_new and text not in field.shown):
                raise _is_retired(field.name, None if field.retired else text, row)
            if text is not None and is_new:
                fields[place] = msgspec.structs.replace(field, categories=(*field.categories, text))
                _check_categories(fields[place], row)
        return self._with(fields)

    def merged(self, more: "ContextSchema", *, keep_retired: bool = False) -> "ContextSchema":
        """Return the schema with the fields and categories of `more` that it lacks. What is not retired there
        is not retired any more, and the other way round; `keep_retired`: what it has stays as it is.

        Raises `ContextRefused` where a field is of another kind there, and beyond the limits.
        """
        fields, places = list(self.fields), dict(self._places)
        for each in more.fields:
            place = places.setdefault(each.name, len(fields))
            if place == len(fields):
                fields.append(msgspec.structs.replace(_new_field(each.name, each.kind), retired=each.retired))
            field = fields[place]
            if field.kind != each.kind:
                raise _other_kind(field, each.kind)
            if each.kind == "number" and each.categories:
                raise ContextRefused(each.name, "is a number, and has no categories")
            codes = {text: code for code, text in enumerate(field.categories)}
            retired, there = set(field.retired_codes), set(each.shown)
            for text in each.categories:
                is_new = codes.setdefault(text, len(codes)) >= len(field.categories)
                if is_new:
                    _check_category(each.name, text)
                if is_new or not keep_retired:
                    (retired.discard if text in there else retired.add)(codes[text])
            fields[place] = ContextField(
                *(field.name, field.kind, tuple(codes)),
                retired=field.retired if keep_retired else each.retired,
                retired_codes=tuple(sorted(retired)),
            )
            _check_categories(fields[place])
        # At the end: which of them comes first does not matter.
        shown = {each.name for each in self.shown}
        _check_fields(fields, next((each.name for each in more.fields[::-1] if each.name not in shown), ""))
        return self._with(fields)

    def told(self, fields: Sequence[ContextField]) -> "ContextSchema":
        """Return `fields` as a schema, with the names of their categories as they are kept here. Raises
        `ContextRefused` for a name that is empty.
        """
        found = []
        for each in fields:
            place = self._places.get(each.name)
            codes = {} if place is None else self._codes[place]
            names = dict.fromkeys(text if text in codes else category_name(text) for text in each.categories)
            if "" in names.keys() - codes.keys():
                raise ContextRefused(each.name, "has a category without a name")
            found.append(msgspec.structs.replace(each, categories=tuple(names)))
        return ContextSchema(tuple(found))

    def without(self, name: str, category: str | None = None) -> "ContextSchema":
        """Return the schema in which a field, or one of its categories, is retired. Raises
        `UnknownContextField` where there is no such thing, or it is retired already.
        """
        place = self._places.get(name)
        if place is None or self.fields[place].retired:
            raise UnknownContextField(name, "is no field of a context")
        field = self.fields[place]
        if category is None:
            field = msgspec.structs.replace(field, retired=True)
        elif (category := category if category in field.shown else category_name(category)) in field.shown:
            codes = tuple(sorted((*field.retired_codes, self._codes[place][category])))
            field = msgspec.structs.replace(field, retired_codes=codes)
        else:
            raise UnknownContextField(name, f"has no category {category[:MOST_CATEGORY_BYTES]!r}")
        return self._with([*self.fields[:place], field, *self.fields[place + 1 :]])

    def _with(self, fields: Sequence[ContextField]) -> "ContextSchema":
        return self if tuple(fields) == self.fields else ContextSchema(tuple(fields))

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


Lacking = dict[tuple[ContextField, str | None], int]
"""What contexts have that a schema has not: a field, or one and a category; and the first row that has it."""


def _new_field(name: str, kind: ContextKind | None, row: int | None = None) -> ContextField:
    if not 0 < len(name.encode()) <= MOST_NAME_BYTES:
        raise ContextRefused(name, f"must have 1 to {MOST_NAME_BYTES} bytes as a name", row)
    if kind is None:
        raise ContextRefused(name, "must be a finite number, true or false, or a text", row)
    return ContextField(name, kind)


def _check_fields(fields: Sequence[ContextField], name: str, row: int | None = None) -> None:
    if sum(not each.retired for each in fields) > MOST_FIELDS:
        why = f"is one field too many: a context may have {MOST_FIELDS}; DELETE /schema/context/NAME"
        raise ContextRefused(name, f"{why} retires one", row)
    if len(fields) > MAX_FIELDS:
        why = f"is one field too many: a store has at most {MAX_FIELDS}, those included that are retired"
        raise ContextRefused(name, why, row)


def _check_category(name: str, text: str, row: int | None = None) -> None:
    if len(text.encode()) > MOST_CATEGORY_BYTES:
        raise ContextRefused(name, f"must be {_WANTED['category']}", row)


def _check_categories(field: ContextField, row: int | None = None) -> None:
    if len(field.categories) - len(field.retired_codes) > MOST_CATEGORIES:
        why = f"has {MOST_CATEGORIES} categories, and may not have more; DELETE /schema/context/NAME/CATEGORY"
        raise ContextRefused(field.name, f"{why} retires one", row)
    if len(field.categories) > _MOST_CODES:
        why = f"has {_MOST_CODES} categories, those included that are retired, and may not have more"
        raise ContextRefused(field.name, why, row)


def _kind_of(value: object) -> ContextKind | None:
    if isinstance(value, str):
        return "category"
    return None if number_of(value) is None else "number"


def _is_retired(name: str, category: str | None, row: int) -> ContextRefused:
    what = "is retired" if category is None else f"has retired its category {category!r}"
    return ContextRefused(name, f"{what}: leave it out, or bring it back with PUT /schema", row)


def _other_kind(field: ContextField, kind: ContextKind, row: int | None = None) -> ContextRefused:
    here = f"{field.kind} here{' (it is retired)' if field.retired else ''}"
    return ContextRefused(field.name, f"is a {here}, and a {kind} there", row)


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
        raise ValueError(
            f"a schema of contexts has format {document.format}, this version reads {_FORMAT}: "
            "use the version that wrote it"
        )
    # Whatever could not have become so step by step is refused: a name twice, too many of anything.
    schema = ContextSchema(tuple(document.fields))
    if ContextSchema().merged(schema) != schema:
        raise ValueError("a schema of contexts in which a name stands twice")
    return schema
