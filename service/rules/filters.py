"""Filters of items as values, and their masks over item rows, kept for the next request with the same filter.

Invariant: a filter is a value that can be compared and hashed, and its mask depends on the columns alone: one
that a column has changed under is not used again.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import numpy as np

from factors import Bools, Int64s
from service.rules.columns import Columns, InThread, ListColumn, NumberColumn, TextColumn

# Rows times conditions that are looked at in less than 2 ms; more are in a thread.
_QUICK = 2_000_000
# Values that are looked up in 1 ms.
_QUICK_VALUES = 2_000
# A front-end has some ten filters, and a mask of a million items is a megabyte.
_KEPT_BYTES = 32_000_000
# Of a filter and what may be shown: as many as a ranking remembers.
_PAIRS_KEPT = 32
# Values of an attribute among which a mistyped one is looked for, how long they are, and how many are named.
_FEW_TEXTS, _LONGEST_TEXT, _MOST_NAMED = 100, 32, 3


@dataclass(frozen=True, slots=True)
class HasId:
    """The items with one of these ids."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class IsEmpty:
    """The items without a value of `key`."""

    key: str


@dataclass(frozen=True, slots=True)
class NumberMatch:
    """The items with one of `values` of `key`: numbers, times in seconds, or booleans as 0 and 1. With
    `other`, those with a value that is none of them.
    """

    key: str
    values: tuple[float, ...]
    other: bool = False


@dataclass(frozen=True, slots=True)
class TextMatch:
    """The same for texts and lists: of a list one text is enough, with `other`, too."""

    key: str
    values: tuple[str, ...]
    other: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """The items with a number or time from `low` to `high`, without these where the end is open."""

    key: str
    low: float
    high: float
    open_low: bool
    open_high: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """All of `must` hold, one of `should` where there are any, none of `must_not`."""

    must: tuple["Condition", ...] = ()
    should: tuple["Condition", ...] = ()
    must_not: tuple["Condition", ...] = ()

    def leaves(self) -> Iterator["Leaf"]:
        """Yield all conditions that are no filters, of filters inside, too."""
        for condition in (*self.must, *self.should, *self.must_not):
            if isinstance(condition, Filter):
                yield from condition.leaves()
            else:
                yield condition

    @property
    def n_values(self) -> int:
        """How many values and ids it compares with."""
        return sum(
            len(leaf.ids) if isinstance(leaf, HasId) else len(leaf.values)
            for leaf in self.leaves()
            if isinstance(leaf, HasId | NumberMatch | TextMatch)
        )

    def ids(self) -> list[bytes]:
        """Return the ids that it names."""
        return [item_id for leaf in self.leaves() if isinstance(leaf, HasId) for item_id in leaf.ids]


def unknown_value(wanted: Filter, columns: Columns) -> str | None:
    """Return as a sentence which value that `wanted` asks for no item has, and which one may be meant.

    None where there is none, or its attribute has many values. Call it in a thread: it compares letters.
    """
    for condition in (*wanted.must, *wanted.should):
        if isinstance(condition, Filter):
            if said := unknown_value(condition, columns):
                return said
        elif isinstance(condition, TextMatch) and not condition.other:
            column = columns.column(condition.key)
            known = column.known if isinstance(column, TextColumn | ListColumn) else ()
            if 0 < len(known) <= _FEW_TEXTS and not any(value in known for value in condition.values):
                return _unknown(condition, known)
    return None


def _unknown(match: TextMatch, known: Collection[str | None]) -> str:
    name = "category" if match.key == "categories" else match.key
    folded = {each.casefold(): each for each in known if each and len(each) <= _LONGEST_TEXT}
    values = match.values[:_MOST_NAMED]
    for value in values:
        meant = get_close_matches(value[:_LONGEST_TEXT].casefold(), folded, 1)
        if meant:
            return f"no item has {name} {value!r}: is {folded[meant[0]]!r} meant?"
    return f"no item has {name} {' or '.join(map(repr, values))}"


# All items pass.
NO_FILTER = Filter()
Leaf = HasId | IsEmpty | NumberMatch | TextMatch | Range
Condition = Filter | Leaf
Rows = Mapping[bytes, int]
_Key = tuple[Filter, int, tuple[int, ...]]


def known_rows(ids: Iterable[bytes], rows: Rows) -> Int64s:
    """Return the rows of those `ids` that are known (m,)."""
    return np.array([rows[item_id] for item_id in ids if item_id in rows], dtype=np.int64)


def mask_of_rows(rows: Int64s, n: int) -> Bools:
    """Return a mask (n,) of these rows; those beyond are left out."""
    mask: Bools = np.zeros(n, dtype=np.bool_)
    mask[rows[rows < n]] = True
    return mask


def mask_of(condition: Condition, columns: Columns, n: int, rows: Rows) -> Bools:
    """Return which of the first `n` item rows pass (n,). `rows`: of the ids that it names, where they are
    known. No item passes where the column has another type by now.
    """
    match condition:
        case Filter():
            return _mask_of_filter(condition, columns, n, rows)
        case HasId(ids=ids):
            return mask_of_rows(known_rows(ids, rows), n)
    mask: Bools = np.zeros(n, dtype=np.bool_)
    match condition, columns.column(condition.key):
        case IsEmpty(), column:
            return np.logical_not(mask, out=mask) if column is None else column.empty(n)
        case Range(open_low=open_low, open_high=open_high), NumberColumn() as numbers:
            low, high = condition.low, condition.high
            mask = numbers.between(low, high, n, open_low=open_low, open_high=open_high)
        case NumberMatch(values=values, other=other), NumberColumn() as numbers:
            mask = numbers.has_other(values, n) if other else numbers.equals_any(values, n)
        case TextMatch(values=values, other=other), TextColumn() | ListColumn() as texts:
            mask = texts.has_other(values, n) if other else texts.equals_any(values, n)
    return mask


def _mask_of_filter(condition: Filter, columns: Columns, n: int, rows: Rows) -> Bools:
    masks = [mask_of(each, columns, n, rows) for each in condition.must]
    if condition.should:
        some = mask_of(condition.should[0], columns, n, rows)
        for each in condition.should[1:]:
            some |= mask_of(each, columns, n, rows)
        masks.append(some)
    for each in condition.must_not:
        mask = mask_of(each, columns, n, rows)
        masks.append(np.logical_not(mask, out=mask))
    if not masks:
        return np.ones(n, dtype=np.bool_)
    passing = masks[0]
    for mask in masks[1:]:
        passing &= mask
    return passing


class Masks:
    """The masks of filters over `columns`; those that were used last are kept."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._kept: dict[_Key, Bools] = {}
        self._bytes = 0
        self._pairs: dict[tuple[int, int], tuple[Bools, Bools, Bools]] = {}

    async def mask(
        self, wanted: Filter, n: int, rows: Rows, in_thread: InThread = asyncio.to_thread
    ) -> Bools:
        """Return which of the first `n` item rows pass (n,), not to be written to. `rows`: of the ids that it
        names; `in_thread`: where it is made if that takes long.
        """
        keys = [None if isinstance(leaf, HasId) else leaf.key for leaf in wanted.leaves()]
        quick = n * len(keys) <= _QUICK and wanted.n_values <= _QUICK_VALUES
        make = partial(mask_of, wanted, self._columns, n, rows)
        if None in keys:
            # An item may be given its row at any time.
            return await self._columns.read(make, in_thread, quick=quick)
        columns = [self._columns.column(key) for key in keys if key is not None]
        key = (wanted, n, tuple(-1 if column is None else column.changes for column in columns))
        mask = self._kept.get(key)
        if mask is None:
            mask = await self._columns.read(make, in_thread, quick=quick)
            mask.flags.writeable = False
        self._keep(key, mask)
        return mask

    def _keep(self, key: _Key, mask: Bools) -> None:
        """Keep a mask as what was used last."""
        if self._kept.pop(key, None) is None:
            self._bytes += mask.nbytes
        self._kept[key] = mask
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def both(self, first: Bools, second: Bools) -> Bools:
        """Return what two masks (n,) pass (n,); of a `first` that is kept, the same object for the same two,
        not to be written to: a ranking may remember what it allows.
        """
        if first.flags.writeable:
            # Made for one call, as it names ids.
            return first & second
        key = id(first), id(second)
        pair = self._pairs.pop(key, None) or (first, second, first & second)
        pair[2].flags.writeable = False
        # With the two, so that no other mask has the address of one meanwhile.
        self._pairs[key] = pair
        if len(self._pairs) > _PAIRS_KEPT:
            del self._pairs[next(iter(self._pairs))]
        return pair[2]
