"""The catalogue as columns by item row, so that a rule looks at all items at once.

Invariant: a row is in every column what the last `put` said of it. Rows beyond the end of a column are empty.

`put` and `remove` run on the event loop, under `Columns.lock` where threads may read. Reading never writes.
"""

import sys
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from factors import Bools, Float64s, Int32s, Int64s
from featurestore.catalogue.item import AttributeType, AttributeValue, CatalogueItem, type_of
from featurestore.generations.live import RowLock

# So many comparisons of a million codes take as long as one look into a table by code.
_FEW_CODES = 8
# Spare rows of an array that grows: one that grows row by row is copied seldom.
_SPARE_ROWS = 1024

_NO_PLACES = array("i")

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

    def put(self, rows: Int64s, places: Sequence[int], values: Sequence[float]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        new = np.full(len(rows), np.nan)
        new[places] = values
        rows, new = self._reached(rows, new, ~np.isnan(new))
        old = self._values[rows]
        was, is_now = ~np.isnan(old), ~np.isnan(new)
        # Two empty values differ as numbers.
        if ((was != is_now) | (is_now & (old != new))).any():
            self.filled += int(is_now.sum()) - int(was.sum())
            self._values[rows] = new
            self.changes += 1

    def _reached(self, rows: Int64s, new: Float64s, filled: Bools) -> tuple[Int64s, Float64s]:
        """Grow up to the last row that has a value; return the rows within, and their values."""
        if rows.max(initial=-1) >= len(self._values):
            end = int(rows[filled].max(initial=-1)) + 1
            if end > len(self._values):
                self._values = _grown(self._values, end, np.nan)
            inside = rows < len(self._values)
            return rows[inside], new[inside]
        return rows, new

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

    def _set(self, rows: Int64s, places: Sequence[int], values: Sequence[Value]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        new = np.zeros(len(rows), dtype=np.int32)
        get, none = self._code_of.get, self._none
        new[places] = [0 if value == none else get(value) or self._added(value) for value in values]
        if rows.max(initial=-1) >= len(self._codes):
            end = int(rows[new > 0].max(initial=-1)) + 1
            if end > len(self._codes):
                self._codes = _grown(self._codes, end, 0)
            inside = rows < len(self._codes)
            rows, new = rows[inside], new[inside]
        old = self._codes[rows]
        changed = old != new
        if not changed.any():
            return
        rows, new, old = rows[changed], new[changed], old[changed]
        self._codes[rows] = new
        # Those that come first: a value that goes from one row to another keeps its code.
        for code in new.tolist():
            self._rows[code] += 1
        for code in old[old > 0].tolist():
            self._rows[code] -= 1
            if self._rows[code] == 0:
                self._removed(code)
        self.filled += int((new > 0).sum()) - int((old > 0).sum())
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

    def put(self, rows: Int64s, places: Sequence[int], values: Sequence[str]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        self._set(rows, places, values)

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
        # By code: how many texts it has, and where it stands among the codes of each of them.
        self._lengths = array("i", [0])
        self._places = [_NO_PLACES]

    def put(self, rows: Int64s, places: Sequence[int], values: Sequence[Sequence[str]]) -> None:
        """Set the texts of those of `rows` (m,), all different, at `places`; empty the others."""
        self._set(rows, places, [tuple(dict.fromkeys(value)) for value in values])

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
        # Each text once, however many lists it is in: as they were read, no two are one object.
        value = tuple(map(sys.intern, value))
        code = super()._added(value)
        if code == len(self._lengths):
            self._lengths.append(0)
            self._places.append(_NO_PLACES)
        self._lengths[code] = len(value)
        places = []
        for text in value:
            codes = self._with.get(text)
            if codes is None:
                codes = self._with[text] = array("i")
            places.append(len(codes))
            codes.append(code)
        self._places[code] = array("i", places)
        return code

    def _removed(self, code: int) -> None:
        # A text may be in very many different lists: none of them is looked through.
        for text, place in zip(self._values[code], self._places[code], strict=True):
            codes = self._with[text]
            last = codes.pop()
            if last != code:
                codes[place] = last
                self._places[last][self._values[last].index(text)] = place
            elif not codes:
                del self._with[text]
        self._places[code] = _NO_PLACES
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

    def put(self, rows: Sequence[int], items: Sequence[CatalogueItem]) -> None:
        """Set what is known of the items of `rows`, which are all different. An item without anything empties
        its row.
        """
        where = np.array(rows, dtype=np.int64)
        for key, column in (
            *(("title", self.title), ("categories", self.categories)),
            *(("available_from", self.available_from), ("available_until", self.available_until)),
        ):
            given = [getattr(item, key) for item in items]
            # What is empty is no value; the beginning of 1970 is one.
            places = [place for place, value in enumerate(given) if value or value == 0.0]
            column.put(where, places, [given[place] for place in places])
        found: dict[str, tuple[list[int], list[Any]]] = {name: ([], []) for name in self._attributes}
        for place, item in enumerate(items):
            for name, value in item.attributes.items():
                pair = found.get(name) or found.setdefault(name, ([], []))
                pair[0].append(place)
                pair[1].append(value)
        for name, (places, values) in found.items():
            self._put_attribute(name, where, places, values)

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

    def _put_attribute(
        self, name: str, rows: Int64s, places: Sequence[int], values: Sequence[AttributeValue]
    ) -> None:
        column, kinds = self._attributes.get(name), list(map(type_of, values))
        # The type of an attribute is held by the catalogue; it may change when no item has it any more.
        if kinds and (column is None or (column.kind != kinds[0] and not column.filled)):
            # It goes on counting, so that what was found in the column before is not taken for its own.
            changes = column.changes if column else 0
            column = self._attributes[name] = _column(kinds[0])
            column.changes = changes + 1
        if column is None:
            return
        fits = [number for number, kind in enumerate(kinds) if kind == column.kind]
        fitting: list[Any] = [values[number] for number in fits]
        if column.kind == "time":
            fitting = [moment.seconds for moment in fitting]
        column.put(rows, [places[number] for number in fits], fitting)


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
