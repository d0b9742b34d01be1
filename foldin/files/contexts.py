"""Columns `context.NAME` of a file of ratings. An empty value, a null and a NaN are not given.

Invariant: a field has one kind in a whole file: that of the target, or what its first values are. What the
target would have no room for is a bad row here, before anything is sent.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Float32s
from featurestore.ratings.context_schema import (
    LARGEST_NUMBER,
    MOST_CATEGORY_BYTES,
    ContextField,
    ContextKind,
    ContextRefused,
    ContextSchema,
)
from foldin.settings import CONTEXT_PREFIX

SHOWN_CHARACTERS = 40  # of a bad value
Contexts = Mapping[str, pa.Array]
"""Of each field float64 or strings, null where nothing is given."""
Refuse = Any  # a callback with a keyword-only argument has no short type
Mask = npt.NDArray[np.bool_]


class FileFields:
    """The fields of the contexts of a file: those that the target knows, to which new ones are added as far
    as it has room. `given`: names of those that any row gives.
    """

    def __init__(self, known: ContextSchema | None = None) -> None:
        self.schema = known or ContextSchema()
        self.given = set[str]()
        self._told: dict[str, ContextKind] = {}

    def told(self, name: str, kind: ContextKind) -> ContextKind:
        """Return the kind of a field of which a file says one, as JSON does: that of the target, else the
        first that was said.
        """
        known = next((each for each in self.schema.named_fields if each.name == name), None)
        return known.kind if known else self._told.setdefault(name, kind)

    def take(self, role: str, column: pa.Array, refuse: Refuse, good: Callable[[], Mask]) -> pa.Array:
        """Return a column as numbers or categories; refuse rows with a value that is none, or has no room.
        `good`: which rows nothing was found wrong with yet.
        """
        name = role.removeprefix(CONTEXT_PREFIX)
        known = next((each for each in self.schema.named_fields if each.name == name), None)
        kind = known.kind if known else self._told.get(name) or _kind_of(column)
        column = (_numbers if kind == "number" else _categories)(role, column, refuse)
        there = good() & column.is_valid().to_numpy(zero_copy_only=False)
        if not there.any():
            return column
        self.given.add(name)
        if why := self._lacks_room(ContextField(name, kind)):
            refuse(there, lambda _: f"{role}: {why}")
        elif kind == "category":
            texts = column.filter(pa.array(there)).unique().to_pylist()
            if not self._lacks_room(ContextField(name, kind, tuple(texts))):
                return column
            wrong = {
                text: why for text in texts if (why := self._lacks_room(ContextField(name, kind, (text,))))
            }
            if wrong:
                found = pc.is_in(column, pa.array(wrong, pa.string())).to_numpy(zero_copy_only=False)
                refuse(there & found, lambda row: f"{role}: {wrong[column[row].as_py()]}")
        return column

    def _lacks_room(self, field: ContextField) -> str:
        try:
            self.schema = self.schema.merged(ContextSchema((field,)))
        except ContextRefused as exc:
            return str(exc)
        return ""

    def rows(self, contexts: Contexts, n_rows: int) -> Float32s:
        """Return the contexts of some rows as the target has them, (n, k), NaN where nothing is given."""
        table = np.full((n_rows, len(self.schema.fields)), np.nan, dtype=np.float32)
        for place, field in enumerate(self.schema.fields):
            column = None if field.deleted else contexts.get(field.name)
            if column is None or column.null_count == n_rows:
                continue
            if field.kind == "category":
                column = pc.index_in(column, pa.array(field.categories, pa.string())).cast(pa.float64())
            table[:, place] = column.to_numpy(zero_copy_only=False)
        return table


def context_columns(
    columns: Contexts, fields: FileFields, refuse: Refuse, good: Callable[[], Mask]
) -> dict[str, pa.Array]:
    """Return the contexts among `columns` by field; refuse rows with a value that is none. `good`: see
    `FileFields.take`.
    """
    found: dict[str, pa.Array] = {}
    for role, column in columns.items():
        if not role.startswith(CONTEXT_PREFIX):
            continue
        given = _given(role, column, refuse)
        # A part of a file in which nothing is given says nothing of the kind.
        if given.null_count < len(given):
            given = fields.take(role, given, refuse, good)
        found[role.removeprefix(CONTEXT_PREFIX)] = given
    return found


def may_be_context(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold values of contexts."""
    inner, types = (kind.value_type if pa.types.is_dictionary(kind) else kind), pa.types
    numbers = types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null
    return _is_text(inner) or _is_view(inner) or any(is_number(kind) for is_number in numbers)


def given_mask(contexts: Contexts, n_rows: int) -> Mask:
    """Return which rows have a context."""
    mask = np.zeros(n_rows, bool)
    for column in contexts.values():
        mask |= column.is_valid().to_numpy(zero_copy_only=False)
    return mask


def context_rows(contexts: Contexts, start: int, size: int) -> Iterator[dict[str, float | str] | None]:
    """Yield the context of each of `size` rows from `start` on, None where nothing is given."""
    names = list(contexts)
    for values in zip(*(column.slice(start, size).to_pylist() for column in contexts.values()), strict=True):
        given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        yield given or None


def _given(role: str, column: pa.Array, refuse: Refuse) -> pa.Array:
    """Return a column as float64 or strings, null where nothing is given."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_view(column.type):
        column = column.cast(pa.large_binary())
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8()).cast(pa.float64())
    if not _is_text(column.type):
        numbers = column.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    try:
        texts = column.cast(pa.string())
    except pa.ArrowInvalid:
        values = [None if each is None else _decoded(each) for each in column.to_pylist()]
        refuse(np.array([each is False for each in values], bool), lambda _: f"{role} is not UTF-8")
        texts = pa.array([each or None for each in values], pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _decoded(value: bytes) -> str | bool:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return False


def _kind_of(given: pa.Array) -> ContextKind:
    if _is_text(given.type):
        try:
            given.cast(pa.float64())
        except pa.ArrowInvalid:
            return "category"
    return "number"


def _numbers(role: str, given: pa.Array, refuse: Refuse) -> pa.Array:
    if _is_text(given.type):
        given = _parsed(role, given, refuse)
    values = given.fill_null(0.0).to_numpy(zero_copy_only=False)
    refuse(~(np.abs(values) <= LARGEST_NUMBER), lambda _: f"{role} is not a finite number of a float32")
    return given


def _parsed(role: str, texts: pa.Array, refuse: Refuse) -> pa.Array:
    try:
        numbers = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        # Value by value only where one is bad.
        found = [None if each is None else _number(each) for each in texts.to_pylist()]
        wrong = np.array([each is None for each in found], bool)
        wrong &= texts.is_valid().to_numpy(zero_copy_only=False)
        refuse(wrong, lambda row: f"{role} is not a number: {str(texts[row])[:SHOWN_CHARACTERS]!r}")
        numbers = pa.array(found, pa.float64())
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _number(text: str) -> float | None:
    try:
        # As the whole column: float() would take 1_000, and digits of other scripts.
        number: float = pa.scalar(text).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None
    return number


def _categories(role: str, given: pa.Array, refuse: Refuse) -> pa.Array:
    if not _is_text(given.type):
        there = given.is_valid().to_numpy(zero_copy_only=False)
        refuse(there, lambda _: f"{role} has categories, and this is a number: make the column text")
        return pa.nulls(len(given), pa.string())
    # As the store keeps names (`category_name`); an empty one says nothing, as an empty cell.
    given = pc.utf8_trim_whitespace(pc.utf8_normalize(given.cast(pa.string()), form="NFC"))
    given = pc.if_else(pc.equal(given, ""), pa.scalar(None, pa.string()), given)
    lengths = pc.binary_length(given).fill_null(0).to_numpy(zero_copy_only=False)
    refuse(
        lengths > MOST_CATEGORY_BYTES,
        lambda row: f"{role} has {lengths[row]} bytes, more than {MOST_CATEGORY_BYTES}",
    )
    return given


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    texts = pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary
    return any(is_text(kind) for is_text in texts)
