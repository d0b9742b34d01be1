"""Columns `context.NAME` of a file of ratings. An empty value, a null and a NaN are not given.

Invariant: a field has one kind in a whole file: that of the target, or what its first values are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.ratings.context_schema import LARGEST_NUMBER, MOST_CATEGORY_BYTES, ContextKind

PREFIX = "context."
SHOWN_CHARACTERS = 40  # of a bad value
Contexts = Mapping[str, pa.Array]
"""Of each field float64 or strings, null where nothing is given."""
Refuse = Any  # a callback with a keyword-only argument has no short type
Mask = npt.NDArray[np.bool_]


def context_columns(columns: Contexts, kinds: dict[str, ContextKind], refuse: Refuse) -> dict[str, pa.Array]:
    """Return the contexts among `columns` by field; refuse rows with a value that is none. `kinds`: of the
    fields that are known, to which new ones are added.
    """
    found: dict[str, pa.Array] = {}
    for role, column in columns.items():
        if not role.startswith(PREFIX):
            continue
        name, given = role.removeprefix(PREFIX), _given(role, column, refuse)
        # A part of a file in which nothing is given says nothing of the kind.
        if given.null_count < len(given):
            kind = kinds.setdefault(name, _kind_of(given))
            given = (_numbers if kind == "number" else _categories)(role, given, refuse)
        found[name] = given
    return found


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
    lengths = pc.binary_length(given).fill_null(0).to_numpy(zero_copy_only=False)
    refuse(
        lengths > MOST_CATEGORY_BYTES,
        lambda row: f"{role} has {lengths[row]} bytes, more than {MOST_CATEGORY_BYTES}",
    )
    return given


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))
