"""Attributes of items or users as columns of numbers.

Invariant: an encoding is learned once and never looks at the rows that it encodes later, so that a new item
gets the columns that it would have had in the fit. Whatever the attributes are, their width is bounded.

- A number (a time, or a boolean as 0 and 1) is a column of its own: less its mean, in units of its standard
  deviation, at most `FARTHEST` of these. Where it is unknown it counts as the mean, and where that is the
  case of many rows a second column says so.
- A text or a list is a column for each label that enough rows have: 1 where a row has it. All rarer ones,
  and those that come later, share one column. Of more labels than fit those of most rows have a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import scipy.sparse as sp

from factors.errors import ModelUnreadable
from factors.model.columns import Columns
from factors.model.types import Float64s, Int64s

# Of all attributes together: the eigenvectors of a matrix of this size take a second of a core and 8 MB.
MOST_COLUMNS = 1_024
# With fewer rows a column says little of any other row.
LEAST_ROWS = 5
# Beyond so many standard deviations a number says no more: one that is off by far must not move its row.
FARTHEST = 4.0
# Longer texts are no labels; nothing that long is kept in an encoding.
MOST_LABEL_BYTES = 128
# A column says where a number is unknown if at least this part of the rows lacks it.
_OFTEN_UNKNOWN = 0.05

_FORMAT: Literal["foldin-attributes-1"] = "foldin-attributes-1"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number of rows: `values` float64 (m,) of `rows` int64 (m,). NaN and infinity count as unknown."""

    name: str
    rows: Int64s
    values: Float64s


@dataclass(frozen=True, slots=True)
class Labels:
    """Texts of rows: `labels[codes[j]]` is one of those that row `rows[j]` has; both int64 (m,)."""

    name: str
    rows: Int64s
    codes: Int64s
    labels: Sequence[str]


Attribute = Numbers | Labels


class NumberColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a number is encoded. `unknown`: whether a second column says where it is missing."""

    name: str
    mean: float
    std: float
    unknown: bool


class LabelColumns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a text is encoded: a column for each of `labels`, and one for all `others` if there were any."""

    name: str
    labels: tuple[str, ...]
    others: bool


class _Bytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["foldin-attributes-1"]
    numbers: tuple[NumberColumn, ...]
    labels: tuple[LabelColumns, ...]
    center: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How attributes become columns: those of `numbers` first, then those of `labels`. `center`: the mean of
    each column over the rows that it was learned from, of those with any attribute.
    """

    numbers: tuple[NumberColumn, ...]
    labels: tuple[LabelColumns, ...]
    center: tuple[float, ...]

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.center)

    def encode(self, attributes: Sequence[Attribute], n_rows: int) -> Columns:
        """Return the columns of `n_rows` rows with these attributes; one that was not known is left out."""
        numbers = {each.name: each for each in attributes if isinstance(each, Numbers)}
        labels = {each.name: each for each in attributes if isinstance(each, Labels)}
        parts, at = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))], 0
        described = np.zeros(n_rows, dtype=np.bool_)
        for each in attributes:
            described[each.rows] = True
        for number in self.numbers:
            found = _finite(numbers.get(number.name))
            reach = FARTHEST * number.std
            # Cut first: the largest of numbers, divided by a small one, is beyond all.
            value = np.clip(found.values, number.mean - reach, number.mean + reach)
            value = (value - number.mean) / number.std
            parts.append((found.rows, np.full(len(value), at), value))
            if number.unknown:
                missing = described.copy()
                missing[found.rows] = False
                rows = np.flatnonzero(missing)
                parts.append((rows, np.full(len(rows), at + 1), np.ones(len(rows))))
            at += 1 + number.unknown
        for text in self.labels:
            if (given := labels.get(text.name)) is not None:
                column = _columns_of(given.labels, text)[given.codes]
                kept = column >= 0
                parts.append((given.rows[kept], at + column[kept], np.ones(int(kept.sum()))))
            at += len(text.labels) + text.others
        rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        matrix = sp.csr_array((values, (rows, columns)), shape=(n_rows, self.width))
        # A row may have a label twice, or several rare ones.
        matrix.sum_duplicates()
        matrix.data = np.clip(matrix.data, -FARTHEST, FARTHEST)
        first_label = sum(1 + number.unknown for number in self.numbers)
        of_label = matrix.indices >= first_label
        matrix.data[of_label] = np.minimum(matrix.data[of_label], 1.0)
        return Columns(matrix, np.array(self.center))


def learn_encoding(attributes: Sequence[Attribute], n_rows: int) -> Encoding:
    """Return the encoding of these attributes of `n_rows` rows; of width 0 where they say nothing."""
    described = np.zeros(n_rows, dtype=np.bool_)
    for each in attributes:
        described[each.rows] = True
    total = int(described.sum())
    numbers: list[NumberColumn] = []
    for number in (each for each in attributes if isinstance(each, Numbers)):
        found, room = _finite(number), MOST_COLUMNS - 2 * len(numbers)
        if len(found.rows) < LEAST_ROWS or room < 2:
            continue
        # In units of the largest, whose square may be more than a float64 holds.
        unit = float(np.abs(found.values).max()) or 1.0
        mean, std = float((found.values / unit).mean()) * unit, float((found.values / unit).std()) * unit
        # All alike, but for rounding, says nothing.
        if std <= 1e-9 * unit or not np.isfinite(1.0 / std):
            continue
        missing = total - len(found.rows)
        unknown = missing >= max(LEAST_ROWS, _OFTEN_UNKNOWN * total)
        numbers.append(NumberColumn(number.name, mean, std, unknown))
    room = MOST_COLUMNS - sum(1 + number.unknown for number in numbers)
    labels = _label_columns([each for each in attributes if isinstance(each, Labels)], room)
    width = sum(1 + number.unknown for number in numbers) + sum(
        len(text.labels) + text.others for text in labels
    )
    plain = Encoding(tuple(numbers), labels, (0.0,) * width)
    columns = plain.encode(attributes, n_rows)
    center = columns.matrix.sum(axis=0) / max(int(columns.described.sum()), 1)
    return Encoding(plain.numbers, labels, tuple(np.asarray(center).tolist()))


def _label_columns(texts: Sequence[Labels], room: int) -> tuple[LabelColumns, ...]:
    """Return the columns of all texts, at most `room`: labels of most rows first."""
    counts: list[tuple[int, int, str]] = []
    for number, text in enumerate(texts):
        # A label that a row has twice is counted twice: an encoding that is a little wider, no more.
        rows = np.bincount(text.codes, minlength=len(text.labels))
        often = np.flatnonzero(rows >= LEAST_ROWS)
        counts += [
            (int(rows[code]), number, text.labels[code])
            for code in often.tolist()
            if len(text.labels[code].encode("utf-8", "replace")) <= MOST_LABEL_BYTES
        ]
    # Ties by attribute and label: the same attributes have the same columns on each machine.
    counts.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    kept = counts[: max(0, room - len(texts))]
    found = []
    for number, text in enumerate(texts[: max(0, room)]):
        labels = tuple(sorted(label for _, of, label in kept if of == number))
        known = np.isin(np.asarray(text.codes), _codes_of(text.labels, labels))
        others = int((~known).sum()) >= LEAST_ROWS
        if labels or others:
            found.append(LabelColumns(text.name, labels, others))
    return tuple(found)


def _codes_of(labels: Sequence[str], wanted: Sequence[str]) -> Int64s:
    """Return the codes of `wanted` labels, which are among `labels`."""
    some = set(wanted)
    return np.array([code for code, label in enumerate(labels) if label in some], dtype=np.int64)


def _columns_of(labels: Sequence[str], text: LabelColumns) -> Int64s:
    """Return the column (n,) of each of `labels` within those of an attribute, -1 for none."""
    known = {label: column for column, label in enumerate(text.labels)}
    rare = len(text.labels) if text.others else -1
    return np.array([known.get(label, rare) for label in labels], dtype=np.int64)


def _finite(number: Numbers | None) -> Numbers:
    if number is None:
        return Numbers("", np.zeros(0, dtype=np.int64), np.zeros(0))
    finite = np.isfinite(number.values)
    return number if finite.all() else Numbers(number.name, number.rows[finite], number.values[finite])


def encoding_to_bytes(encoding: Encoding) -> bytes:
    """Return an encoding as bytes; the same bytes for the same encoding."""
    return msgspec.msgpack.encode(_Bytes(_FORMAT, encoding.numbers, encoding.labels, encoding.center))


def encoding_from_bytes(payload: bytes | memoryview) -> Encoding:
    """Return the encoding that `encoding_to_bytes` wrote. Raises `ModelUnreadable` for anything else."""
    try:
        read = msgspec.msgpack.decode(payload, type=_Bytes)
    except msgspec.MsgspecError as exc:
        raise ModelUnreadable(f"no encoding of attributes: {exc}") from exc
    width = sum(1 + number.unknown for number in read.numbers)
    width += sum(len(text.labels) + text.others for text in read.labels)
    numbers = [value for number in read.numbers for value in (number.mean, 1.0 / (number.std or np.nan))]
    if width != len(read.center) or width > MOST_COLUMNS or not np.isfinite([*numbers, *read.center]).all():
        raise ModelUnreadable("an encoding of attributes whose columns are not as they must be")
    return Encoding(read.numbers, read.labels, read.center)
