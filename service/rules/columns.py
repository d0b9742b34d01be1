"""The catalogue as columns by item row, so that a rule looks at all items at once.

Invariant: a row is in every column what the last `put` said of it. Rows beyond the end of a column are empty.

`put` and `remove` run on the event loop, under `Columns.lock` where threads may read. Reading never writes.
"""

import sys
from array import array
from collections.abc import Callable, Collection, Hashable, Sequence
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
# What rows are asked for.
Asked = TypeVar("Asked", float, str)
Texts = tuple[str, ...]


class InThread(Protocol):
    """Returns what a function makes, in a thread. Raises `overloaded` where too many wait for one."""

    async def __call__(self, compute: Callable[[], T], /) -> T:
        """Run `compute`."""


class _Column(Generic[Asked]):
    """A number for each row, in `_stored` (capacity,), which says its value. `changes` rises with each
    change; `filled`: how many rows have a value.
    """

    def __init__(self, stored: npt.NDArray[Any], empty: float) -> None:
        self.changes = self.filled = 0
        self._stored = stored
        self._empty = empty

    def _is_empty(self, stored: npt.NDArray[Any]) -> Bools:
        """Return which numbers say that there is no value."""
        found: Bools = stored == self._empty
        return found

    def _store(self, rows: Int64s, new: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Store the numbers of `rows` (m,), all different; return those of the rows that changed, as they
        were and as they are.
        """
        filled = ~self._is_empty(new)
        if rows.max(initial=-1) >= len(self._stored):
            # Up to the last row that has a value.
            end = int(rows[filled].max(initial=-1)) + 1
            if end > len(self._stored):
                self._stored = _grown(self._stored, end, self._empty)
            inside = rows < len(self._stored)
            rows, new, filled = rows[inside], new[inside], filled[inside]
        old = self._stored[rows]
        was_filled = ~self._is_empty(old)
        # Two NaN differ as numbers.
        changed = (old != new) & (was_filled | filled)
        if changed.any():
            self._stored[rows] = new
            self.filled += int(filled.sum()) - int(was_filled.sum())
            self.changes += 1
        return old[changed], new[changed]

    def empty(self, n: int) -> Bools:
        """Return which of the first `n` rows have no value (n,)."""
        return _ended(self._is_empty(self._stored[:n]), n, True)

    def equals_any(self, values: Sequence[Asked], n: int) -> Bools:
        """Return which of the first `n` rows have one of `values` (n,); of a list, among their texts."""
        raise NotImplementedError

    def has_other(self, values: Sequence[Asked], n: int) -> Bools:
        """Return which rows have a value, or a text of a list, that is not one of `values` (n,)."""
        return ~self.empty(n) & ~self.equals_any(values, n)


class NumberColumn(_Column[float]):
    """Numbers, times in seconds since 1970, or booleans as 0 and 1."""

    def __init__(self, kind: AttributeType) -> None:
        super().__init__(np.empty(0), np.nan)
        self.kind = kind

    def _is_empty(self, stored: npt.NDArray[Any]) -> Bools:
        found: Bools = np.isnan(stored)
        return found

    def put(self, rows: Int64s, places: Sequence[int], values: Sequence[float]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        new = np.full(len(rows), np.nan)
        new[places] = values
        self._store(rows, new)

    def values(self, n: int) -> Float64s:
        """Return the values of the first `n` rows (n,), NaN where empty."""
        return _ended(self._stored, n, np.nan)

    def equals_any(self, values: Sequence[float], n: int) -> Bools:
        here = self._stored[:n]
        found = np.isin(here, values) if len(values) > _FEW_CODES else _any_equal(here, values)
        return _ended(found, n, False)

    def between(self, low: float, high: float, n: int, *, open_low: bool, open_high: bool) -> Bools:
        """Return which rows have a value from `low` to `high` (n,), without these where the end is open."""
        here = self._stored[:n]
        above = here > low if open_low else here >= low
        above &= here < high if open_high else here <= high
        return _ended(above, n, False)


class _CodedColumn(_Column[str], Generic[Value]):
    """One code for each different value of a row, 0 where empty. A code that no row has any more is given
    again, so there are never more than rows.
    """

    kind: AttributeType
    _none: Value

    def __init__(self) -> None:
        super().__init__(np.zeros(0, dtype=np.int32), 0)
        # By code: the value and how many rows have it. Code 0 is the empty value's.
        self._values: list[Value] = [self._none]
        self._rows = array("i", [0])
        self._code_of: dict[Value, int] = {}
        self._free: list[int] = []

    def _set(self, rows: Int64s, places: Sequence[int], values: Sequence[Value]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        codes = np.zeros(len(rows), dtype=np.int32)
        get, none = self._code_of.get, self._none
        codes[places] = [0 if value == none else get(value) or self._added(value) for value in values]
        old, new = self._store(rows, codes)
        # Those that come first: a value that goes from one row to another keeps its code.
        for code in new.tolist():
            self._rows[code] += 1
        for code in old[old > 0].tolist():
            self._rows[code] -= 1
            if self._rows[code] == 0:
                self._removed(code)

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
        here = self._stored[:n]
        if len(codes) <= _FEW_CODES:
            return _ended(_any_equal(here, codes), n, False)
        table = np.zeros(len(self._values), dtype=np.bool_)
        table[np.asarray(codes)] = True
        return _ended(table.take(here), n, False)

    def _value(self, row: int) -> Value:
        return self._values[self._stored[row]] if row < len(self._stored) else self._none


class TextColumn(_CodedColumn[str | None]):
    """Texts."""

    kind: AttributeType = "text"
    _none = None

    def put(self, rows: Int64s, places: Sequence[int], values: Sequence[str]) -> None:
        """Set the values of those of `rows` (m,), all different, at `places`; empty the others."""
        self._set(rows, places, values)

    def equals_any(self, values: Sequence[str], n: int) -> Bools:
        return self._has_code([self._code_of[value] for value in values if value in self._code_of], n)

    @property
    def known(self) -> Collection[str | None]:
        """The different texts that items have."""
        return self._code_of.keys()

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
    """Lists of texts, such as categories.

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

    @property
    def known(self) -> Collection[str]:
        """The different texts that items have."""
        return self._with.keys()

    def texts_of(self, row: int) -> Texts:
        """Return the texts of a row."""
        return self._value(row)

    def shared(self, texts: Texts, n: int) -> Int32s:
        """Return how many of `texts` each of the first `n` rows has (n,)."""
        counts = np.zeros(len(self._values), dtype=np.int32)
        for text in texts:
            counts[np.array(self._with.get(text, ()), dtype=np.int64)] += 1
        return _ended(counts.take(self._stored[:n]), n, 0)

    def sizes(self, n: int) -> Int32s:
        """Return how many texts each of the first `n` rows has (n,)."""
        return _ended(np.array(self._lengths).take(self._stored[:n]), n, 0)

    def equals_any(self, values: Sequence[str], n: int) -> Bools:
        found = [np.array(self._with[value], dtype=np.int32) for value in values if value in self._with]
        return self._has_code(np.concatenate(found) if found else (), n)

    def has_other(self, values: Sequence[str], n: int) -> Bools:
        left = np.array(self._lengths)
        for value in dict.fromkeys(values):
            left[np.array(self._with.get(value, ()), dtype=np.int64)] -= 1
        return _ended((left > 0).take(self._stored[:n]), n, False)

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
        self.categories, self.available_from = ListColumn(), NumberColumn("time")
        self._fields: dict[str, Column] = {
            "title": TextColumn(),
            "categories": self.categories,
            "available_from": self.available_from,
            "available_until": NumberColumn("time"),
        }
        self._attributes: dict[str, Column] = {}

    def put(self, rows: Sequence[int], items: Sequence[CatalogueItem]) -> None:
        """Set what is known of the items of `rows`, which are all different. An item without anything empties
        its row.
        """
        where = np.array(rows, dtype=np.int64)
        for key, column in self._fields.items():
            given: list[Any] = [getattr(item, key) for item in items]
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
        return self._fields.get(key) or self._attributes.get(key)

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

    def likeness(self, row: int, n: int) -> Float64s:
        """Return how alike each of the first `n` items is to the item of `row` (n,): the share of texts that
        both have, of those that either has (Jaccard). Categories, and attributes that are texts or lists of
        texts. An item is as like another as that is like it, and 1 is the same.
        """
        shared, sizes, own = np.zeros(n), np.zeros(n), 0
        for column in (self.categories, *self._attributes.values()):
            if not isinstance(column, NumberColumn):
                texts = column.texts_of(row)
                shared += column.shared(texts, n)
                sizes += column.sizes(n)
                own += len(texts)
        either = own + sizes - shared
        return np.divide(shared, either, out=np.zeros(n), where=either > 0)

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
