"""A finished fit as the trainer has it: the tables, the ids of their users, and the ratings by item, mapped
from the files of `result_files`.

Invariant: the id of a user who was erased is not found.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import (
    Choices,
    Columns,
    Encoding,
    Model,
    ModelUnreadable,
    RankingHead,
    SideAttributes,
    SideName,
    event_worth,
    head_from_bytes,
    side_attributes_from_bytes,
)
from trainer import log
from trainer.errors import FitFailedError

# No id has this byte (it is not UTF-8), so an erased id is never found.
ERASED = 0xFF
# Ratings looked at in one go: all of them may be more than what is free.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Described:
    """Attributes of the items or of the users of a fit: their `encoding` and `columns` (n, c)."""

    encoding: Encoding
    columns: Columns


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished fit, its arrays mapped from disk.

    `users` float32 (u, user_width), `items` float32 (i, item_width), `user_n` int64 (u,): the count of each
    user that the fit has learned. Ratings by item, each pair once: those of item row `j` are
    `item_users[item_indptr[j]:item_indptr[j + 1]]` with `item_values`, `item_times`. Ids lie one behind the
    other in `id_bytes`, cut at `id_offsets` (u + 1,); `hashes` (u,), ascending, finds them by `hash_rows`.
    `ranking` uint8: the ranking head as it is published, and `ranking_users` float32 (u, r), the vectors that
    items are folded into it with; None where the fit has none. Events of other types by item, as the ratings:
    `event_indptr`, `event_users`, `event_codes` uint8, `event_values`, `event_times`; None where there are
    none. `item_contexts` float32 (m, k): the context of each of `item_values`, NaN what was not given; None
    where none was. `attributes` uint8: how attributes of items were encoded, as it is published, `columns`
    (i, c): theirs; None where there were none. `catalogue`: the version of it that was read, None for none.
    `user_attributes` uint8: how attributes of users were encoded, where rows of users rest on such, and
    `users_read_ms`: when these were read, by the store's clock; None where they do not.
    """

    path: Path
    model: Model
    metrics: dict[str, float]
    n_ratings: int
    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    user_n: npt.NDArray[np.int64]
    id_offsets: npt.NDArray[np.int64]
    id_bytes: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]
    hash_rows: npt.NDArray[np.int64]
    item_indptr: npt.NDArray[np.int64]
    item_users: npt.NDArray[np.int32]
    item_values: npt.NDArray[np.float64]
    item_times: npt.NDArray[np.float64]
    ranking: npt.NDArray[np.uint8] | None = None
    ranking_users: npt.NDArray[np.float32] | None = None
    event_indptr: npt.NDArray[np.int64] | None = None
    event_users: npt.NDArray[np.int32] | None = None
    event_codes: npt.NDArray[np.uint8] | None = None
    event_values: npt.NDArray[np.float64] | None = None
    event_times: npt.NDArray[np.float64] | None = None
    item_contexts: npt.NDArray[np.float32] | None = None
    attributes: npt.NDArray[np.uint8] | None = None
    columns: Columns | None = None
    catalogue: str | None = None
    user_attributes: npt.NDArray[np.uint8] | None = None
    users_read_ms: int | None = None

    def side_attributes(self, side: SideName) -> SideAttributes | None:
        """Return how attributes of a side are encoded; None where there are none that can be read."""
        stored = self.attributes if side == "item" else self.user_attributes
        try:
            return None if stored is None else side_attributes_from_bytes(stored.data)
        except ModelUnreadable as exc:
            log.warning("attributes_unreadable", fit=self.path.name, error=str(exc))
            return None

    def known_attributes(self) -> dict[SideName, SideAttributes]:
        """Return how attributes of each side are encoded, of those that have any that can be read."""
        sides: tuple[SideName, ...] = ("item", "user")
        return {side: known for side in sides if (known := self.side_attributes(side)) is not None}

    def head(self) -> RankingHead | None:
        """Return the ranking head, a view of the file; None where there is none that can be read."""
        if self.ranking is None:
            return None
        try:
            return head_from_bytes(self.ranking.data, len(self.items))
        except ModelUnreadable as exc:
            log.warning("ranking_head_unreadable", fit=self.path.name, error=str(exc))
            return None

    @property
    def n_users(self) -> int:
        """How many users are in the tables."""
        return len(self.user_n)

    def user_ids(self, start: int, stop: int) -> list[bytes]:
        """Return the ids of the users `start` to `stop`. An erased one is all 0xFF bytes."""
        offsets = self.id_offsets[start : stop + 1]
        content = self.id_bytes[offsets[0] : offsets[-1]].tobytes()
        edges = (offsets - offsets[0]).tolist()
        return [content[a:b] for a, b in pairwise(edges)]

    def most_active(self, most: int, *, by_events: bool) -> list[bytes]:
        """Return the ids of the `most` users with the most ratings, or `by_events` with the most others; of
        equal ones those that came first.
        """
        users, values = self.item_users, self.item_values
        if by_events and self.event_indptr is not None:
            users, values = _all(self.event_users), _all(self.event_values)
        counts = np.zeros(self.n_users, dtype=np.int64)
        for start in range(0, len(users), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            held = users[part][~np.isnan(values[part])]
            counts += np.bincount(held, minlength=self.n_users)
        rows = np.sort(np.argsort(-counts, kind="stable")[:most])
        ids = [
            self.id_bytes[self.id_offsets[row] : self.id_offsets[row + 1]].tobytes() for row in rows.tolist()
        ]
        return [user_id for user_id in ids if not is_erased(user_id)]

    def user_id_array(self) -> pa.StringArray:
        """Return all ids as one Arrow array, not copied."""
        # Offsets of 64 bits, as they lie on disk: there may be more than 2 GB of ids. The casts look at
        # offsets only.
        offsets = pa.py_buffer(np.ascontiguousarray(self.id_offsets))
        wide = pa.Array.from_buffers(
            pa.large_string(),
            self.n_users,
            [None, offsets, pa.py_buffer(np.ascontiguousarray(self.id_bytes))],
        )
        return wide.view(pa.large_binary()).cast(pa.binary()).view(pa.string())

    def row_of(self, user_id: bytes) -> int | None:
        """Return the row of a user, found by the ids alone, whatever the hashes say; None where there is
        none.
        """
        rows = np.flatnonzero(np.diff(self.id_offsets) == len(user_id))
        for place, byte in enumerate(user_id):
            rows = rows[self.id_bytes[self.id_offsets[rows] + place] == byte]
        return int(rows[0]) if len(rows) else None

    def rows_of(self, user_ids: list[bytes]) -> npt.NDArray[np.int64]:
        """Return the row of each user; -1 for a user who is not in the fit, or was erased from it."""
        rows = np.full(len(user_ids), -1, dtype=np.int64)
        wanted = np.array([user_hash(user_id) for user_id in user_ids], dtype=np.uint64)
        first = np.searchsorted(self.hashes, wanted)
        for k, user_id in enumerate(user_ids):
            # More than one pass only where two ids share 64 bits of BLAKE2b.
            position = int(first[k])
            while position < len(self.hashes) and self.hashes[position] == wanted[k]:
                row = int(self.hash_rows[position])
                found = self.id_bytes[self.id_offsets[row] : self.id_offsets[row + 1]].tobytes()
                if found == user_id:
                    rows[k] = row
                    break
                position += 1
        return rows

    def item_history(self, item_row: int) -> slice:
        """Return where the ratings of an item are; nowhere for an item that the fit did not know."""
        return _place_of(item_row, self.item_indptr)

    def of_item(self, item_row: int, *, events: bool) -> Choices:
        """Return the ratings of an item, and then the `events` of other types where these are wanted."""
        part = self.item_history(item_row)
        users, values, times = self.item_users[part], self.item_values[part], self.item_times[part]
        codes = np.zeros(len(users), dtype=np.uint8)
        if events and self.event_indptr is not None:
            part = _place_of(item_row, self.event_indptr)
            users = np.concatenate([users, _all(self.event_users)[part]])
            values = np.concatenate([values, _all(self.event_values)[part]])
            times = np.concatenate([times, _all(self.event_times)[part]])
            codes = np.concatenate([codes, _all(self.event_codes)[part]])
        return Choices(users, np.full(len(users), item_row, dtype=np.int32), values, times, codes)

    def contexts_of(self, item_row: int, count: int) -> list[tuple[int, npt.NDArray[np.float32] | None]]:
        """Return the contexts (m, k) of the ratings of an item, None where there are none of any, and of its
        other events, which have none: of how many, and theirs. `count`: of `of_item`.
        """
        if self.item_contexts is None:
            return [(count, None)]
        found = self.item_contexts[self.item_history(item_row)]
        return [(len(found), found), (count - len(found), None)]

    def wanted_times(self) -> tuple[npt.NDArray[np.int64], "WantedTimes"] | None:
        """Return where each item's events of other types than ratings begin (i + 1,), and their times (m,):
        NaN where they do not say that a user wanted the item. None where there are none.
        """
        head = self.head()
        if head is None or self.event_indptr is None:
            return None
        positive = [each.code for each in head.parameters.types if each.meaning == "positive"]
        return self.event_indptr, WantedTimes(self, np.array(positive, dtype=np.uint8))

    def positives(self) -> npt.NDArray[np.float32] | None:
        """Return of each item (i, 3) what `event_sums` does. None where there are no events of other types
        than ratings, or nothing that says what they weigh.
        """
        head = self.head()
        if head is None or self.event_indptr is None:
            return None
        worth, sums = event_worth(head.parameters.types), np.zeros((3, len(self.items)))
        for start in range(0, len(_all(self.event_codes)), _AT_ONCE):
            codes, values = (
                _all(each)[start : start + _AT_ONCE] for each in (self.event_codes, self.event_values)
            )
            places = start + np.flatnonzero(~np.isnan(values))
            item = np.searchsorted(self.event_indptr, places, side="right") - 1
            for k, column in enumerate(worth[codes[places - start]].T):
                sums[k] += np.bincount(item, column, len(self.items))
        return sums.T.astype(np.float32)

    def let_go(self) -> None:
        """Take the pages of its files, of which all were read to publish it, out of this process. They stay
        in the system's cache as long as there is room, and are mapped again when they are read.
        """
        for field in fields(self):
            array = getattr(self, field.name)
            while isinstance(array, np.ndarray):
                array = array.base
            # Without changes of its own, as all are mapped to be read.
            if isinstance(array, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                array.madvise(mmap.MADV_DONTNEED)

    def items_of(self, user_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the pairs (k, 2) of user row and item row in which users have ratings or other events."""
        found = [np.zeros((0, 2), dtype=np.int64)]
        for indptr, users in ((self.item_indptr, self.item_users), (self.event_indptr, self.event_users)):
            if indptr is not None and users is not None:
                entries = entries_of(users, user_rows)
                item_rows = np.searchsorted(indptr, entries, side="right") - 1
                found.append(np.column_stack([users[entries], item_rows]))
        return np.unique(np.concatenate(found), axis=0)


@dataclass(frozen=True, slots=True)
class WantedTimes:
    """Times of the other events of a fit (m,), NaN of those whose type is not among `positive` or that were
    taken back: a slice at a time, as all may be more than what is free.
    """

    fit: FitResult
    positive: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(_all(self.fit.event_times))

    def __getitem__(self, part: slice) -> npt.NDArray[np.float64]:
        codes, values, times = (
            _all(each)[part] for each in (self.fit.event_codes, self.fit.event_values, self.fit.event_times)
        )
        return np.where(np.isin(codes, self.positive) & ~np.isnan(values), times, np.nan)


def fit_in_memory(
    model: Model, users: npt.NDArray[np.float32], items: npt.NDArray[np.float32], ids: Sequence[bytes]
) -> FitResult:
    """Return a fit of one rating a user whose tables are in memory, without what publishing does not read."""
    n_users = len(users)
    none = np.zeros(0, dtype=np.int64)
    return FitResult(
        path=Path(),
        model=model,
        metrics={},
        n_ratings=n_users,
        users=users,
        items=items,
        user_n=np.ones(n_users, dtype=np.int64),
        id_offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        id_bytes=np.frombuffer(b"".join(ids), dtype=np.uint8),
        hashes=none.astype(np.uint64),
        hash_rows=none,
        item_indptr=none,
        item_users=none.astype(np.int32),
        item_values=none.astype(np.float64),
        item_times=none.astype(np.float64),
    )


def entries_of(users: npt.NDArray[np.int32], user_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where users stand in the raters of all items (m,)."""
    starts = range(0, len(users), _AT_ONCE)
    found = [start + np.flatnonzero(np.isin(users[start : start + _AT_ONCE], user_rows)) for start in starts]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def is_erased(user_id: bytes) -> bool:
    """Say whether an id from a fit's files is that of a user who was erased from them."""
    return user_id[:1] == bytes([ERASED])


def user_hash(user_id: bytes) -> int:
    """Return 64 bits of an id, the same in every process."""
    return int.from_bytes(blake2b(user_id, digest_size=8).digest(), "little")


def _all(array: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Return an array that is there where `event_indptr` is."""
    if array is None:
        raise FitFailedError("a fit lacks some of its events")
    return array


def _place_of(item_row: int, indptr: npt.NDArray[np.int64]) -> slice:
    if item_row + 1 >= len(indptr):
        return slice(0, 0)
    return slice(int(indptr[item_row]), int(indptr[item_row + 1]))
