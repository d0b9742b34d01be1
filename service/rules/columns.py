"""The catalogue as columns by item row, so that a rule looks at all items at once.

Invariant: a row is in every column what the last `put` said of it. Rows beyond the end of a column are empty.

`put` and `remove` run on the event loop, under `Columns.lock` where threads may read. Reading never writes.
"""

from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from factors import Bools, Float64s, Int32s
from featurestore.catalogue.item import AttributeType, AttributeValue, CatalogueItem, Time, type_of
from featurestore.generations.row_lock import RowLock

# So many comparisons of a million codes take as long as one look into a table by code.
_FEW_CODES = 8
# Spare rows of an array that grows: one that grows row by row is copied seldom.
_SPARE_ROWS = 1024

T = TypeVar("T")
Value = TypeVar("Value", bound=Hashable)
Texts = tuple[str, ...]


class InThread(Protocol):
    """Returns what a function makes, in a thread. Raises `overloaded` where too many wait for one."""

    async def __call__(self, compute: Callable[[], T], /) -> T:
        """Run `compute`."""


class NumberColumn:
    """Numbers, times in seconds since 1970, or booleans as 0 and 1. `changes` rises with each change."""

    def __init__(self, kind: AttributeType) -> None:
        self.kind = kind
        self.changes = self.filled = 0
        self._values: Float64s = np.empty(0)

    def put(self, row: int, value: float | None) -> None:
        """Set the value of a row; None empties it."""
        new = np.nan if value is None else float(value)
        if row >= len(self._values):
            if value is None:
                return
            self._values = _grown(self._values, row + 1, np.nan)
        old = self._values[row]
        # Two empty values differ as numbers.
        was, is_now = not np.isnan(old), value is not None
        if was != is_now or (is_now and old != new):
            self.filled += is_now - was
            self._values[row] = new
            self.changes += 1

    def values(self, n: int) -> Float64s:
        """Return the values of the first `n` rows (n,), NaN where empty."""
        return _ended(self._values, n, np.nan)

    def equals_any(self, values: Sequence[float], n: int) -> Bools:
        """Return which of the first `n` rows have one of `values` (n,)."""
        here = self._values[:n]
        if len(values) > _FEW_CODES:
            return _ended(np.isin(here, values), n, False)
        return _ended(_any_equal(here, values), n, False)

    def has_other(self, values: Sequence[float], n: int) -> Bools:
        """Return which rows have a value that is not one of `values` (n,)."""
        return ~self.empty(n) & ~self.equals_any(values, n)

    def between(self, low: float, high: float, n: int, *, open_low: bool, open_high: bool) -> Bools:
        """Return which rows have a value from `low` to `high` (n,), without these where the end is open."""
        here = self._values[:n]
        above = here > low if open_low else here >= low
        above &= here < high if open_high else here <= high
        return _ended(above, n, False)

    def empty(self, n: int) -> Bools:
        """Return which rows have no value (n,)."""
        return _ended(np.isnan(self._values[:n]), n, True)


class _CodedColumn(Generic[Value]):
    """One code for each different value of a row, in `_codes` int32 (capacity,), 0 where empty. A code that
    no row has any more is given again, so there are never more than rows.
    """

    kind: AttributeType
    _none: Value

    def __init__(self) -> None:
        self.changes = self.filled = 0
        self._codes: Int32s = np.zeros(0, dtype=np.int32)
        # By code: the value and how many rows have it. Code 0 is the empty value's.
        self._values: list[Value] = [self._none]
        self._rows = array("i", [0])
        self._code_of: dict[Value, int] = {}
        self._free: list[int] = []

    def _set(self, row: int, value: Value) -> None:
        empty = value == self._none
        if row >= len(self._codes):
            if empty:
                return
            self._codes = _grown(self._codes, row + 1, 0)
        old = int(self._codes[row])
        if self._values[old] == value:
            return
        new = 0 if empty else self._code_of.get(value) or self._added(value)
        self._codes[row] = new
        self._rows[new] += 1
        if old:
            self._rows[old] -= 1
            if self._rows[old] == 0:
                self._removed(old)
        self.filled += (new > 0) - (old > 0)
        self.changes += 1

    def _added(self, value: Value) -> int:
        if self._free:
            code = self._free.pop()
            self._values[code] = value
        else:
            code = len(self._values)
            self._values.append(value)
            self._rows.append(0)
        self._code_of[value] = code
        return code

    def _removed(self, code: int) -> None:
        del self._code_of[self._values[code]]
        self._values[code] = self._none
        self._free.append(code)

    def _has_code(self, codes: Sequence[int] | Int32s, n: int) -> Bools:
        """Return which of the first `n` rows have one of `codes` (n,)."""
        here = self._codes[:n]
        if len(codes) <= _FEW_CODES:
            return _ended(_any_equal(here, codes), n, False)
        table = np.zeros(len(self._values), dtype=np.bool_)
        table[np.asarray(codes)] = True
        return _ended(table.take(here), n, False)

    def _value(self, row: int) -> Value:
        return self._values[self._codes[row]] if row < len(self._codes) else self._none

    def empty(self, n: int) -> Bools:
        """Return which rows have no value (n,)."""
        return _ended(self._codes[:n] == 0, n, True)


class TextColumn(_CodedColumn[str | None]):
    """Texts. `changes` rises with each change."""

    kind: AttributeType = "text"
    _none = None

    def put(self, row: int, value: str | None) -> None:
        """Set the value of a row; None empties it."""
        self._set(row, value)

    def equals_any(self, values: Sequence[str], n: int) -> Bools:
        """Return which of the first `n` rows have one of `values` (n,)."""
        return self._has_code([self._code_of[value] for value in values if value in self._code_of], n)

    def has_other(self, values: Sequence[str], n: int) -> Bools:
        """Return which rows have a value that is not one of `values` (n,)."""
        return ~self.empty(n) & ~self.equals_any(values, n)

    def texts_of(self, row: int) -> Texts:
        """Return the text of a row as a list."""
        value = self._value(row)
        return () if value is None else (value,)

    def shared(self, texts: Texts, n: int) -> Bools:
        """Return how many of `texts` each of the first `n` rows has (n,)."""
        return self.equals_any(texts, n)

    def sizes(self, n: int) -> Bools:
        """Return how many texts each of the first `n` rows has (n,)."""
        return ~self.empty(n)


class ListColumn(_CodedColumn[Texts]):
    """Lists of texts, such as categories. `changes` rises with each change.

    A list has one code, and each text the codes of the lists with it: the work of a look is that of a text.
    """

    kind: AttributeType = "list"
    _none = ()

    def __init__(self) -> None:
        super().__init__()
        self._with: dict[str, array[int]] = {}
        # By code.
        self._lengths = array("i", [0])

    def put(self, row: int, value: Sequence[str] | None) -> None:
        """Set the texts of a row; None empties it."""
        self._set(row, tuple(dict.fromkeys(value or ())))

    def of(self, rows: npt.NDArray[np.integer[Any]]) -> list[Texts]:
        """Return the texts of each of `rows`."""
        return [self._value(row) for row in rows.tolist()]

    def texts_of(self, row: int) -> Texts:
        """Return the texts of a row."""
        return self._value(row)

    def shared(self, texts: Texts, n: int) -> Int32s:
        """Return how many of `texts` each of the first `n` rows has (n,)."""
        counts = np.zeros(len(self._values), dtype=np.int32)
        for text in texts:
            counts[np.array(self._with.get(text, ()), dtype=np.int64)] += 1
        return _ended(counts.take(self._codes[:n]), n, 0)

    def sizes(self, n: int) -> Int32s:
        """Return how many texts each of the first `n` rows has (n,)."""
        return _ended(np.array(self._lengths).take(self._codes[:n]), n, 0)

    def equals_any(self, values: Sequence[str], n: int) -> Bools:
        """Return which of the first `n` rows have one of `values` among their texts (n,)."""
        found = [np.array(self._with[value], dtype=np.int32) for value in values if value in self._with]
        return self._has_code(np.concatenate(found) if found else (), n)

    def has_other(self, values: Sequence[str], n: int) -> Bools:
        """Return which rows have a text that is not one of `values` (n,)."""
        left = np.array(self._lengths)
        for value in dict.fromkeys(values):
            left[np.array(self._with.get(value, ()), dtype=np.int64)] -= 1
        return _ended((left > 0).take(self._codes[:n]), n, False)

    def _added(self, value: Texts) -> int:
        code = super()._added(value)
        if code == len(self._lengths):
            self._lengths.append(0)
        self._lengths[code] = len(value)
        for text in value:
            self._with.setdefault(text, array("i")).append(code)
        return code

    def _removed(self, code: int) -> None:
        for text in self._values[code]:
            codes = self._with[text]
            # By numpy: a text may be in very many different lists.
            place = int(np.flatnonzero(np.array(codes) == code)[0])
            codes[place] = codes[-1]
            codes.pop()
            if not codes:
                del self._with[text]
        super()._removed(code)


Column = NumberColumn | TextColumn | ListColumn


class Columns:
    """What is known of the items of one epoch, by item row. Keys are `title`, `categories`, `available_from`,
    `available_until` and the names of attributes; an attribute with a name of those is not to be asked for.
    """

    def __init__(self) -> None:
        self.lock = RowLock()
        self.title, self.categories = TextColumn(), ListColumn()
        self.available_from, self.available_until = NumberColumn("time"), NumberColumn("time")
        self._attributes: dict[str, Column] = {}

    def put(self, row: int, item: CatalogueItem) -> None:
        """Set what is known of the item of a row."""
        self.title.put(row, item.title or None)
        self.categories.put(row, item.categories)
        self.available_from.put(row, item.available_from)
        self.available_until.put(row, item.available_until)
        for name, column in self._attributes.items():
            if name not in item.attributes:
                column.put(row, None)
        for name, value in item.attributes.items():
            self._put_attribute(row, name, value)

    def remove(self, row: int) -> None:
        """Empty a row."""
        self.put(row, CatalogueItem(""))

    def column(self, key: str) -> Column | None:
        """Return the column of a key; None for a key that no item has had."""
        match key:
            case "title" | "categories" | "available_from" | "available_until":
                column: Column = getattr(self, key)
                return column
        return self._attributes.get(key)

    async def read(self, compute: Callable[[], T], in_thread: InThread, *, quick: bool) -> T:
        """Return what `compute` makes of the columns: at once where that is quick, else in a thread, and
        then no row changes meanwhile.
        """
        if quick:
            return compute()

        def run() -> T:
            with self.lock.reading():
                return compute()

        return await in_thread(run)

    def texts(self) -> Iterator[TextColumn | ListColumn]:
        """Yield the columns of categories, and of attributes that are texts or lists of texts."""
        yield self.categories
        yield from (each for each in self._attributes.values() if not isinstance(each, NumberColumn))

    def _put_attribute(self, row: int, name: str, value: AttributeValue) -> None:
        kind = type_of(value)
        column = self._attributes.get(name)
        # The type of an attribute is held by the catalogue; it may change when no item has it any more.
        if column is None or (column.kind != kind and not column.filled):
            # It goes on counting, so that what was found in the column before is not taken for its own.
            changes = column.changes if column else 0
            column = self._attributes[name] = _column(kind)
            column.changes = changes + 1
        match column, value:
            case NumberColumn(), Time(seconds=seconds) if column.kind == kind:
                column.put(row, seconds)
            case NumberColumn(), bool() | int() | float() if column.kind == kind:
                column.put(row, value)
            case TextColumn(), str():
                column.put(row, value)
            case ListColumn(), list():
                column.put(row, value)
            case _:
                column.put(row, None)


def _column(kind: AttributeType) -> Column:
    match kind:
        case "text":
            return TextColumn()
        case "list":
            return ListColumn()
    return NumberColumn(kind)


def _any_equal(here: npt.NDArray[Any], values: Sequence[float] | Int32s) -> Bools:
    found: Bools = np.zeros(len(here), dtype=np.bool_)
    for value in values:
        found |= here == value
    return found


def _grown(values: npt.NDArray[Any], rows: int, fill: float) -> npt.NDArray[Any]:
    grown = np.full(rows + rows // 8 + _SPARE_ROWS, fill, dtype=values.dtype)
    grown[: len(values)] = values
    return grown


def _ended(values: npt.NDArray[Any], n: int, fill: float) -> npt.NDArray[Any]:
    """Return the first `n` of `values`, with `fill` for those beyond their end."""
    if len(values) >= n:
        return values[:n]
    return np.append(values, np.full(n - len(values), fill, dtype=values.dtype))
