"""Items folded in since the fit. Invariant: an item's row is the half-step over all of its ratings, as the
fit's would be, with its raters as they are now.

Pure arithmetic over what the trainer holds in memory: the ratings by item and the users of the fit, mapped
from disk, and the events that came later. What it needs from the store it asks for by name (`Work.users`).
"""

import os
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Histories, Model, posterior_of
from trainer.fit_job.results import FitResult

# Events beyond this are left to the next fit: 40 bytes each, and a fit is overdue by then.
OVERLAY_EVENTS = 2_000_000
# Bounds of one round: the work of some 20 ms in a thread, and one pipeline to the store.
ROUND_ITEMS = 256
ROUND_RATINGS = 100_000
ROUND_USERS = 2_000
# Folded in without a pause: about 1 ms.
PIECE_ITEMS = 16


@dataclass(frozen=True, slots=True)
class Work:
    """One round: which items, and which users (`users[k]` has number `numbers[k]`) must be read first."""

    items: list[int]
    numbers: list[int]
    users: list[bytes]


_Block = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Numbers of the users, ratings, times."""


class Overlay:
    """Events since a fit, by item, on top of the fit's own ratings. Not for two threads at once."""

    def __init__(self, model: Model, base: FitResult | None) -> None:
        self.posterior = posterior_of(model)
        self._base = base
        self._n_base = 0 if base is None else base.n_users
        self._numbers: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._rows = np.zeros(0, dtype=np.int64)
        self._seen = np.zeros(0, dtype=np.int64)
        self._known = np.zeros(0, dtype=np.int64)
        self._vectors = np.zeros((0, model.user_width), dtype=np.float32)
        # The number of each user of the fit that has newer events; -1 for the others.
        self._of_row = np.full(self._n_base, -1, dtype=np.int32)
        # Where an item's events are: blocks, each ordered by item, and the stretch within each.
        self._events: defaultdict[int, list[tuple[_Block, int, int]]] = defaultdict(list)
        self._dirty: OrderedDict[int, None] = OrderedDict()
        self.size = 0

    @property
    def dirty(self) -> int:
        """Items that wait to be folded in."""
        return len(self._dirty)

    @property
    def full(self) -> bool:
        """Whether there is no room: the next fit has to see to it."""
        return self.size >= OVERLAY_EVENTS

    def add(self, table: pa.Table) -> None:
        """Events that follow those added before."""
        if self.full or table.num_rows == 0:
            return
        encoded = table["user_id"].combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        ids = [bytes(value.as_buffer()) for value in encoded.dictionary]
        number = self._number(ids)[encoded.indices.to_numpy(zero_copy_only=False)]
        n = table["n"].to_numpy()
        np.maximum.at(self._seen, number, n)
        item_row = table["item_row"].to_numpy().astype(np.int64)
        order = np.argsort(item_row, kind="stable")
        block = number[order], table["rating"].to_numpy()[order], table["time"].to_numpy()[order]
        found, first = np.unique(item_row[order], return_index=True)
        rows, borders = found.tolist(), [*first.tolist(), len(order)]
        for row, (start, stop) in zip(rows, pairwise(borders), strict=True):
            self._events[row].append((block, start, stop))
        self._dirty.update(dict.fromkeys([row for row in rows if row not in self._dirty]))
        self.size += table.num_rows

    def forget(self, user_id: bytes) -> None:
        """Take a user out: the items that it rated are to be folded in without it."""
        number = self._numbers.pop(user_id, None)
        if number is not None:
            self._ids[number] = b""
            self._seen[number] = self._known[number] = 0
            for row in self._events:
                for users, rating, _ in self._parts(row):
                    mine = users == number
                    if mine.any():
                        rating[mine] = np.nan
                        self._dirty.setdefault(row)
            if self._rows[number] >= 0:
                self._of_row[self._rows[number]] = -1
        if self._base is not None:
            row = int(self._rows[number]) if number is not None else int(self._base.rows_of([user_id])[0])
            if row >= 0:
                entries = np.flatnonzero(np.asarray(self._base.item_users) == row)
                for item in np.searchsorted(self._base.item_indptr, entries, side="right") - 1:
                    self._dirty.setdefault(int(item))

    def next_round(self) -> Work:
        """The items that have waited longest, as many as the bounds of a round allow, and at least one."""
        items: list[int] = []
        stale: dict[int, None] = {}
        ratings = 0
        for row in self._dirty:
            raters, size = self._raters(row)
            wanted = raters[self._known[raters] < self._seen[raters]].tolist()
            over = ratings + size > ROUND_RATINGS or len(stale) + len(wanted) > ROUND_USERS
            if items and (over or len(items) >= ROUND_ITEMS):
                break
            items.append(row)
            stale.update(dict.fromkeys(wanted))
            ratings += size
        return Work(items, list(stale), [self._ids[k] for k in stale])

    def set_users(
        self, numbers: Sequence[int], n: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]
    ) -> None:
        """Users as the store has them now: `n` (u,), `vectors` (u, user_width)."""
        index = np.asarray(numbers, dtype=np.int64)
        self._known[index] = np.maximum(n, self._seen[index])
        self._vectors[index] = vectors

    def fold(self, work: Work) -> npt.NDArray[np.float32]:
        """The rows (m, item_width) of the items of a round, which wait no longer."""
        offsets = np.zeros(len(work.items) + 1, dtype=np.int64)
        keys, values, times = [], [], []
        for position, row in enumerate(work.items):
            key, value, time = self._ratings(row)
            offsets[position + 1] = offsets[position] + len(key)
            keys.append(key)
            values.append(value)
            times.append(time)
        distinct, compact = np.unique(np.concatenate(keys), return_inverse=True)
        histories = Histories(
            offsets, compact.astype(np.int32), np.concatenate(values), np.concatenate(times)
        )
        table, current = self._table(distinct), self._before(np.array(work.items, dtype=np.int64))
        folded = []
        for start in range(0, len(work.items), PIECE_ITEMS):
            stop = min(start + PIECE_ITEMS, len(work.items))
            some = slice(offsets[start], offsets[stop])
            piece = Histories(
                offsets[start : stop + 1] - offsets[start],
                histories.other_row[some],
                histories.value[some],
                histories.time[some],
            )
            folded.append(self.posterior.fold_in_items(table, piece, current=current[start:stop]))
            # Who answers requests on this core waits for a piece, not for the next tick of the system.
            os.sched_yield()
        for row in work.items:
            self._dirty.pop(row, None)
        return np.concatenate(folded)

    def again(self, work: Work) -> None:
        """Put the items of a round back: it was not published."""
        for row in work.items:
            self._dirty.setdefault(row)

    def _number(self, ids: list[bytes]) -> npt.NDArray[np.int64]:
        new = [user_id for user_id in ids if user_id not in self._numbers]
        if new:
            first = len(self._ids)
            self._numbers.update({user_id: first + k for k, user_id in enumerate(new)})
            self._ids.extend(new)
            rows = np.full(len(new), -1, dtype=np.int64) if self._base is None else self._base.rows_of(new)
            known = np.flatnonzero(rows >= 0)
            self._of_row[rows[known]] = first + known
            self._rows = np.concatenate([self._rows, rows])
            zeros = np.zeros(len(new), dtype=np.int64)
            self._seen, self._known = (
                np.concatenate([self._seen, zeros]),
                np.concatenate([self._known, zeros - 1]),
            )
            width = self.posterior.model.user_width
            self._vectors = np.concatenate([self._vectors, np.zeros((len(new), width), dtype=np.float32)])
        return np.array([self._numbers[user_id] for user_id in ids], dtype=np.int64)

    def _parts(self, item_row: int) -> list[_Block]:
        """The events of an item, block by block."""
        found = self._events.get(item_row, ())
        return [
            (user[start:stop], rating[start:stop], time[start:stop])
            for (user, rating, time), start, stop in found
        ]

    def _raters(self, item_row: int) -> tuple[npt.NDArray[np.int64], int]:
        """Numbers of the raters that have newer events, and how many ratings the item has in all."""
        parts = [numbers for numbers, _, _ in self._parts(item_row)]
        size = sum(len(part) for part in parts)
        if self._base is not None:
            part = self._base.item_history(item_row)
            size += part.stop - part.start
            numbers = self._of_row[self._base.item_users[part]]
            parts.append(numbers[numbers >= 0].astype(np.int64))
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64), size

    def _ratings(
        self, item_row: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Ratings of an item in the order in which they were made; users as keys: rows of the fit, then
        numbers.
        """
        keys = [np.zeros(0, dtype=np.int64)]
        values, times = [np.zeros(0)], [np.zeros(0)]
        if self._base is not None:
            part = self._base.item_history(item_row)
            rows = np.asarray(self._base.item_users[part], dtype=np.int64)
            number = self._of_row[rows].astype(np.int64)
            keys.append(np.where(number >= 0, self._n_base + number, rows))
            values.append(np.asarray(self._base.item_values[part]))
            times.append(np.asarray(self._base.item_times[part]))
        for numbers, rating, time in self._parts(item_row):
            keys.append(numbers + self._n_base)
            values.append(rating)
            times.append(time)
        return np.concatenate(keys), np.concatenate(values), np.concatenate(times)

    def _before(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What the fit says of these items; the prior for those that it did not know."""
        before = np.repeat(self.posterior.prior_item[None], len(rows), axis=0)
        if self._base is not None:
            known = np.flatnonzero(rows < len(self._base.items))
            before[known] = self._base.items[rows[known]]
        return before

    def _table(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        table = np.empty((len(keys), self.posterior.model.user_width), dtype=np.float32)
        of_fit = keys < self._n_base
        if self._base is not None:
            table[of_fit] = self._base.users[keys[of_fit]]
        table[~of_fit] = self._vectors[keys[~of_fit] - self._n_base]
        return table
