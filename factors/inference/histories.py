"""Histories made ready for the half-steps, and their sessions.

Invariant: after `compress` each pair stands once, with its last value, and of a user's ratings no more than
`RECENT + SAMPLED` are left.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from factors.inference.ordering import order_by_pair, taken
from factors.model.layout import session_keys, sitting_keys
from factors.model.types import Bools, Float32s, Float64s, Histories, Int64s

Rows = npt.NDArray[np.integer[Any]]
# Of a user with more ratings than both together, so many of the latest count. After `m` ratings a posterior
# of dimension d leaves about d / m of the noise's variance to the score: 65 / 2048 at the largest rank that
# `auto` takes, and half as much of the error.
RECENT = 1024
# And so many of the others: a user whose latest ratings are all of one kind keeps what was known besides.
SAMPLED = 1024
# Odd, and 2^64 over the golden ratio: multiples of neighbouring rows are spread evenly (Knuth, volume 3).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Compressed:
    """Rows of ratings without repeats or holes, entries of a row ordered by the other row.

    `indptr` int64 (b + 1,); `other` int64 (n,): row of the other table, -1 where it has none; `value`, `time`
    float64 (n,); `source` int64 (n,): position of the entry in what it came from; both int32 in one that is
    `narrow`; `context` (n, fields): as in `Ratings`.
    """

    indptr: Int64s
    other: Int64s
    value: Float64s
    time: Float64s
    source: Int64s
    context: Float32s | None = None

    @property
    def rows(self) -> int:
        """Number of histories."""
        return len(self.indptr) - 1

    @property
    def counts(self) -> Int64s:
        """Ratings of each row."""
        return self.indptr[1:] - self.indptr[:-1]

    @property
    def row(self) -> Int64s:
        """The history that each entry belongs to."""
        if self.rows == 1:
            # For the fold-in of one row: a sixth of the time of `repeat`.
            return np.zeros(len(self.other), dtype=np.int64)
        return np.repeat(np.arange(self.rows), self.counts)

    def by_other(self, n_rows: int, *, threads: int = 1) -> "Compressed":
        """Return the same ratings by the rows of the other table, which has `n_rows`."""
        row = np.repeat(np.arange(self.rows, dtype=self.other.dtype), self.counts)
        wide = self.other.dtype == np.int64
        columns = self.other, row, self.value, self.time, n_rows
        return compress_pairs(*columns, context=self.context, wide=wide, threads=threads)

    def narrow(self) -> "Compressed":
        """Return the same with row numbers of 32 bits: half of the memory, where they are kept for long."""
        other, source = (_as(np.int32, each) for each in (self.other, self.source))
        return replace(self, other=other, source=source)

    def only(self, entries: Int64s) -> "Compressed":
        """Return the same rows with these `entries` alone."""
        part = self.row[entries], self.other[entries], self.value[entries], self.time[entries]
        return compress_pairs(*part, self.rows, context=_at(self.context, entries))

    def counting(self, recent: int = RECENT, sampled: int = SAMPLED) -> Bools | None:
        """Return which entries count, None for all: of longer rows the `recent` ones of highest `source`, and
        `sampled` of the others: those whose other row has the lowest `sample_order`.
        """
        long = self.counts > recent + sampled
        if not long.any():
            return None
        # Nothing is made of the others' entries, which may be nearly all.
        rows = np.flatnonzero(long)
        of_row = np.repeat(rows, self.counts[rows])
        entry = np.concatenate([np.arange(self.indptr[row], self.indptr[row + 1]) for row in rows.tolist()])
        latest = np.zeros(len(entry), dtype=bool)
        source = self.source[entry].astype(np.uint64)
        latest[_first_of_rows(of_row, source.max() - source, recent)] = True
        others = np.flatnonzero(~latest)
        chosen = _first_of_rows(of_row[others], sample_order(self.other[entry[others]]), sampled)
        keep = np.ones(len(self.other), dtype=bool)
        keep[entry] = False
        keep[entry[latest]] = keep[entry[others[chosen]]] = True
        return keep

    def thinned(self, recent: int = RECENT, sampled: int = SAMPLED) -> "Compressed":
        """Return the same rows with the entries that are `counting` alone."""
        keep = self.counting(recent, sampled)
        if keep is None:
            return self
        return self._kept(keep, np.append(0, np.cumsum(np.minimum(self.counts, recent + sampled))))

    def of_rows(self, rows: Int64s) -> "Compressed":
        """Return these rows alone, ascending, with the `source` that they have here."""
        chosen = np.zeros(self.rows, dtype=np.bool_)
        chosen[rows] = True
        keep = np.repeat(chosen, self.counts)
        return self._kept(keep, np.append(0, np.cumsum(self.counts[rows])))

    def _kept(self, keep: Bools, indptr: Int64s) -> "Compressed":
        def of(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            # A column of one number takes no memory, and goes on taking none.
            return column[keep] if column.strides != (0,) else column[: indptr[-1]]

        columns = (of(self.other), of(self.value), of(self.time), of(self.source))
        return Compressed(indptr, *columns, _at(self.context, keep))

    def places(self, row: Rows, other: Rows) -> Int64s:
        """Return before which entries `row` and `other` (m,) belong, pairs that it does not have."""
        low, high = self.indptr[row], self.indptr[np.asarray(row) + 1]
        while (open_ := low < high).any():
            middle = (low + high) // 2
            before = open_ & (self.other[np.minimum(middle, len(self.other) - 1)] < other)
            low, high = np.where(before, middle + 1, low), np.where(open_ & ~before, middle, high)
        return low

    def part(self, rows: slice) -> "Compressed":
        """Return these rows alone, with the `source` that they have here."""
        indptr = self.indptr[rows.start : rows.stop + 1]
        at = slice(int(indptr[0]), int(indptr[-1]))
        context = None if self.context is None else self.context[at]
        columns = (self.other[at], self.value[at], self.time[at], self.source[at])
        return Compressed(indptr - indptr[0], *columns, context)

    def histories(self) -> Histories:
        """Return these ratings as they are folded in."""
        return Histories(self.indptr, self.other.astype(np.int32), self.value, self.time, None, self.context)


@dataclass(frozen=True, slots=True)
class Sessions:
    """The entries of a `Compressed` grouped by (row, session); entries of unknown time are in no group.

    `entry` int64: entries with a group; `group` int64 (len(entry),): its group; `row` int64 (G,): row of each
    group, ascending; `key` float64 (G,): session key, ascending within a row. `sitting` int64 (G,): of each
    session the group that is its sitting, -1 of a sitting, which has no entries; empty without sittings.
    """

    entry: Int64s
    group: Int64s
    row: Int64s
    key: Float64s
    sitting: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.row)


_NO_ROWS: Int64s = np.zeros(0, dtype=np.int64)
NO_HISTORIES = Compressed(np.zeros(1, dtype=np.int64), _NO_ROWS, np.zeros(0), np.zeros(0), _NO_ROWS)
NO_SESSIONS = Sessions(_NO_ROWS, _NO_ROWS, _NO_ROWS, np.zeros(0))


def compress_pairs(
    row: Rows,
    other: Rows,
    value: Float64s,
    time: Float64s,
    n_rows: int,
    *,
    context: Float32s | None = None,
    wide: bool = True,
    without: Bools | None = None,
    threads: int = 1,
) -> Compressed:
    """Return entries (n,) in the order in which they were written, as rows in which the last entry of a pair
    counts; `narrow` unless `wide`. A pair whose last entry is one of `without` (n,) is left out.

    A NaN value takes the pair back.
    """
    order = order_by_pair(row, other, threads=threads)
    row, other = (taken(each, order, threads=threads) for each in (row, other))
    keep = np.ones(len(order), dtype=bool)
    # The last of equal pairs.
    keep[:-1] = (row[1:] != row[:-1]) | (other[1:] != other[:-1])
    value = taken(value, order, threads=threads)
    keep &= ~np.isnan(value)
    if without is not None:
        keep &= ~without[order]
    if not keep.all():
        order, row, other, value = order[keep], row[keep], other[keep], value[keep]
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=n_rows), out=indptr[1:])
    del row, keep
    kind = np.int64 if wide else np.int32
    time = taken(time, order, threads=threads)
    columns = (value.astype(np.float64, copy=False), time.astype(np.float64, copy=False))
    return Compressed(indptr, _as(kind, other), *columns, _as(kind, order), _at(context, order))


def _as(kind: type[np.integer[Any]], rows: Rows) -> Int64s:
    return cast("Int64s", rows.astype(kind, copy=False))


def _at(context: Float32s | None, entries: Int64s | Bools) -> Float32s | None:
    return None if context is None else context[entries]


def sample_order(other: Rows) -> npt.NDArray[np.uint64]:
    """Return numbers (n,) by which a sample of entries is chosen: the lowest ones.

    They depend on the other rows alone, so that a sample stays the same while ratings are added, and those of
    several rows meet in the same others (a coordinated bottom-k sample; Cohen and Kaplan, 2007).
    """
    return np.asarray(other.astype(np.uint64) * _SPREAD)


def _first_of_rows(row: Int64s, key: npt.NDArray[np.uint64], most: int) -> Int64s:
    """Return the positions of the `most` entries of lowest `key` (n,) of each row; `row` (n,) ascends. Keys
    of a row differ in their highest 32 bits, or have no more than that.
    """
    if len(row) == 0 or most == 0:
        return np.zeros(0, dtype=np.int64)
    # Numbers are sorted in a tenth of the time that it takes to find an order.
    bits = np.uint64(64 - max(1, int(row[-1]).bit_length()))
    spare = np.uint64(max(0, int(key.max()).bit_length() - int(bits)))
    packed = row.astype(np.uint64) << bits | key >> spare
    first = np.flatnonzero(np.diff(row, prepend=-1))
    last = np.minimum(first + most, np.append(first[1:], len(row))) - 1
    highest = np.repeat(np.sort(packed)[last], np.diff(first, append=len(row)))
    return np.flatnonzero(packed <= highest)


def compress(histories: Histories, n_other: int, *, whole: bool = True) -> Compressed:
    """Return histories in which each pair stands once; an entry whose row is not in the other table, of
    `n_other` rows, gets -1. Long ones are `thinned` unless `whole`.
    """
    offsets = np.asarray(histories.offsets, dtype=np.int64)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    other = histories.other_row.astype(np.int64)
    compressed = compress_pairs(
        row, other, histories.value, histories.time, len(offsets) - 1, context=histories.context
    )
    if not whole:
        compressed = compressed.thinned()
    unknown = (compressed.other < 0) | (compressed.other >= n_other)
    if unknown.any():
        compressed.other[unknown] = -1
    return compressed


def group_sessions(data: Compressed, session_length: float, sitting_length: float = 0.0) -> Sessions:
    """Return the entries grouped by session, and the sittings of these where they have a length; no groups
    where `session_length` is 0 or no time is known.
    """
    if session_length <= 0:
        return NO_SESSIONS
    key = session_keys(data.time, session_length)
    entry = np.flatnonzero(np.isfinite(key))
    if len(entry) == 0:
        return NO_SESSIONS
    row, key = data.row[entry], key[entry]
    order = np.lexsort((key, row))
    entry, row, key = entry[order], row[order], key[order]
    first = np.ones(len(entry), dtype=bool)
    first[1:] = (row[1:] != row[:-1]) | (key[1:] != key[:-1])
    sessions = Sessions(entry, np.cumsum(first) - 1, row[first], key[first])
    return _with_sittings(sessions, sitting_length / session_length) if sitting_length else sessions


def _with_sittings(sessions: Sessions, ratio: float) -> Sessions:
    """Return the `sessions` and, before those of each row, its sittings of `ratio` sessions each."""
    key, row = sessions.key, sessions.row
    sitting = np.floor(key / ratio)
    starts = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(sitting, prepend=-1.0) != 0))
    rows, keys = np.append(row[starts], row), np.append(sitting_keys(key[starts], ratio), key)
    # Keys of sittings are below 0: they stand before the sessions of their row.
    order = np.lexsort((keys, rows))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    inner = place[len(starts) :]
    found = np.full(len(order), -1, dtype=np.int64)
    found[inner] = np.repeat(place[: len(starts)], np.diff(starts, append=len(row)))
    return Sessions(sessions.entry, inner[sessions.group], rows[order], keys[order], found)
