"""Filters of items as values, and their masks over item rows.

Invariant: a filter is a value that can be compared and hashed, and its mask depends on the columns alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from factors import Bools
from service.rules.columns import Columns, ListColumn, NumberColumn, TextColumn


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


# All items pass.
NO_FILTER = Filter()
Leaf = HasId | IsEmpty | NumberMatch | TextMatch | Range
Condition = Filter | Leaf
Rows = Mapping[bytes, int]


def mask_of(condition: Condition, columns: Columns, n: int, rows: Rows) -> Bools:
    """Return which of the first `n` item rows pass (n,). `rows`: of the ids that it names, where they are
    known. No item passes where the column has another type by now.
    """
    mask: Bools = np.zeros(n, dtype=np.bool_)
    match condition:
        case Filter():
            return _mask_of_filter(condition, columns, n, rows)
        case HasId(ids=ids):
            found = np.array([rows[item_id] for item_id in ids if item_id in rows], dtype=np.int64)
            mask[found[found < n]] = True
            return mask
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
