"""The ratings since a fit, by item, on top of the fit's own. Invariant: the vector of an item is the
half-step over all of its ratings, as the fit's would be, with its raters as they are now.

Pure arithmetic over what the trainer holds in memory: the ratings by item and the users of the fit, mapped
from disk, and the events that came later. What it needs from the store it asks for by name (`Round.users`).
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
MAX_EVENTS = 2_000_000
# Bounds of one round: the work of some 20 ms in a thread, and one pipeline to the store.
ROUND_ITEMS = 256
ROUND_RATINGS = 100_000
ROUND_USERS = 2_000
# Folded in without a pause: about 1 ms.
PIECE_ITEMS = 16

_Block = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Slots of the users, ratings, times."""


@dataclass(frozen=True, slots=True)
class Round:
    """Items to fold in, and the users that must be read first: `users[k]` belongs into slot `slots[k]`."""

    items: list[int]
    slots: list[int]
    users: list[bytes]


class RatingsSinceFit:
    """Ratings by item since a fit. Not for two threads at once.

    A user with newer events has a slot: a position in the arrays below. `base`: the fit, None where nothing
    was fitted.
    """

    def __init__(self, model: Model, base: FitResult | None) -> None:
        self.posterior = posterior_of(model)
        self._base = base
        self._n_base = 0 if base is None else base.n_users
        self._slots: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        # By slot: the row in the fit (-1: none), the highest `n` of an event, the `n` of the vector that was
        # read.
        self._base_row = np.zeros(0, dtype=np.int64)
        self._last_n = np.zeros(0, dtype=np.int64)
        self._read_n = np.zeros(0, dtype=np.int64)
        self._vectors = np.zeros((0, model.user_width), dtype=np.float32)
        # By row of the fit: the slot of a user with newer events; -1 for the others.
        self._slot_of_row = np.full(self._n_base, -1, dtype=np.int32)
        # By item: in which blocks its events are, from where to where. A block is ordered by item.
        self._events: defaultdict[int, list[tuple[_Block, int, int]]] = defaultdict(list)
        # Items to fold in, the one that has waited longest first.
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._n_events = 0

    @property
    def waiting_items(self) -> int:
        """How many items wait to be folded in."""
        return len(self._waiting)

    def add(self, table: pa.Table) -> None:
        """Add events that follow those added before; none when there is no room: the next fit learns them."""
        if self._n_events >= MAX_EVENTS or table.num_rows == 0:
            return
        encoded = table["user_id"].combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        ids = [bytes(value.as_buffer()) for value in encoded.dictionary]
        slots = self._slots_of(ids)[encoded.indices.to_numpy(zero_copy_only=False)]
        np.maximum.at(self._last_n, slots, table["n"].to_numpy())
        item_row = table["item_row"].to_numpy().astype(np.int64)
        order = np.argsort(item_row, kind="stable")
        block = slots[order], table["rating"].to_numpy()[order], table["time"].to_numpy()[order]
        found, first = np.unique(item_row[order], return_index=True)
        rows = found.tolist()
        for row, (start, stop) in zip(rows, pairwise([*first.tolist(), len(order)]), strict=True):
            self._events[row].append((block, start, stop))
            self._waiting.setdefault(row)
        self._n_events += table.num_rows

    def forget(self, user_id: bytes) -> None:
        """Take a user out: the items that the user rated are to be folded in without these ratings."""
        slot = self._slots.pop(user_id, None)
        if slot is not None:
            self._ids[slot] = b""
            self._last_n[slot] = self._read_n[slot] = 0
            for row in self._events:
                for slots, rating, _ in self._blocks(row):
                    own = slots == slot
                    if own.any():
                        rating[own] = np.nan
                        self._waiting.setdefault(row)
            if self._base_row[slot] >= 0:
                self._slot_of_row[self._base_row[slot]] = -1
        if self._base is not None:
            # The files of the fit have been overwritten by now.
            base_row = int(self._base.rows_of([user_id], erased=True)[0])
            if base_row >= 0:
                entries = np.flatnonzero(np.asarray(self._base.item_users) == base_row)
                for row in np.searchsorted(self._base.item_indptr, entries, side="right") - 1:
                    self._waiting.setdefault(int(row))

    def next_round(self) -> Round:
        """Return the items that have waited longest, as many as the bounds of a round allow, and at least
        one.
        """
        items: list[int] = []
        stale: dict[int, None] = {}
        n_ratings = 0
        for row in self._waiting:
            raters, n_of_item = self._raters(row)
            unread = raters[self._read_n[raters] < self._last_n[raters]].tolist()
            over = n_ratings + n_of_item > ROUND_RATINGS or len(stale) + len(unread) > ROUND_USERS
            if items and (over or len(items) >= ROUND_ITEMS):
                break
            items.append(row)
            stale.update(dict.fromkeys(unread))
            n_ratings += n_of_item
        return Round(items, list(stale), [self._ids[slot] for slot in stale])

    def set_users(
        self, slots: Sequence[int], n: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32]
    ) -> None:
        """Take over users as the store has them now: `n` (u,), `vectors` (u, user_width)."""
        index = np.asarray(slots, dtype=np.int64)
        self._read_n[index] = np.maximum(n, self._last_n[index])
        self._vectors[index] = vectors

    def fold(self, chosen: Round) -> npt.NDArray[np.float32]:
        """Return the vectors (m, item_width) of the items of a round, which wait no longer."""
        ratings = [self._ratings(row) for row in chosen.items]
        offsets = np.zeros(len(ratings) + 1, dtype=np.int64)
        np.cumsum([len(keys) for keys, _, _ in ratings], out=offsets[1:])
        keys, values, times = (np.concatenate(column) for column in zip(*ratings, strict=True))
        distinct, compact = np.unique(keys, return_inverse=True)
        users, other_row = self._user_vectors(distinct), compact.astype(np.int32)
        current = self._fitted(np.array(chosen.items, dtype=np.int64))
        folded = []
        for start in range(0, len(chosen.items), PIECE_ITEMS):
            stop = min(start + PIECE_ITEMS, len(chosen.items))
            part = slice(offsets[start], offsets[stop])
            borders = offsets[start : stop + 1] - offsets[start]
            piece = Histories(borders, other_row[part], values[part], times[part])
            folded.append(self.posterior.fold_in_items(users, piece, current=current[start:stop]))
            # Processes that answer requests on this core wait for a piece, not for the next tick of the
            # system.
            os.sched_yield()
        for row in chosen.items:
            self._waiting.pop(row, None)
        return np.concatenate(folded)

    def put_back(self, chosen: Round) -> None:
        """Let the items of a round wait again: they were not published."""
        for row in chosen.items:
            self._waiting.setdefault(row)

    def _slots_of(self, ids: list[bytes]) -> npt.NDArray[np.int64]:
        new = [user_id for user_id in ids if user_id not in self._slots]
        if new:
            first = len(self._ids)
            self._slots.update({user_id: first + k for k, user_id in enumerate(new)})
            self._ids.extend(new)
            rows = np.full(len(new), -1, dtype=np.int64) if self._base is None else self._base.rows_of(new)
            known = np.flatnonzero(rows >= 0)
            self._slot_of_row[rows[known]] = first + known
            self._base_row = np.concatenate([self._base_row, rows])
            zeros = np.zeros(len(new), dtype=np.int64)
            self._last_n = np.concatenate([self._last_n, zeros])
            # -1: read once even if no event of the user has a count above 0.
            self._read_n = np.concatenate([self._read_n, zeros - 1])
            vectors = np.zeros((len(new), self.posterior.model.user_width), dtype=np.float32)
            self._vectors = np.concatenate([self._vectors, vectors])
        return np.array([self._slots[user_id] for user_id in ids], dtype=np.int64)

    def _blocks(self, item_row: int) -> list[_Block]:
        """Return the newer events of an item, block by block."""
        found = self._events.get(item_row, ())
        return [
            (slots[start:stop], rating[start:stop], time[start:stop])
            for (slots, rating, time), start, stop in found
        ]

    def _raters(self, item_row: int) -> tuple[npt.NDArray[np.int64], int]:
        """Return the slots of the raters that have newer events, and how many ratings the item has in all."""
        parts = [slots for slots, _, _ in self._blocks(item_row)]
        n_ratings = sum(len(part) for part in parts)
        if self._base is not None:
            part = self._base.item_history(item_row)
            n_ratings += part.stop - part.start
            slots = self._slot_of_row[self._base.item_users[part]]
            parts.append(slots[slots >= 0].astype(np.int64))
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64), n_ratings

    def _ratings(
        self, item_row: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return keys, ratings and times of an item, in the order in which they were made.

        The key of a user with newer events is its slot behind all rows of the fit, that of any other its row.
        """
        parts: list[_Block] = [(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))]
        if self._base is not None:
            part = self._base.item_history(item_row)
            rows = np.asarray(self._base.item_users[part], dtype=np.int64)
            slots = self._slot_of_row[rows].astype(np.int64)
            keys = np.where(slots >= 0, self._n_base + slots, rows)
            parts.append((keys, self._base.item_values[part], self._base.item_times[part]))
        parts += [(slots + self._n_base, rating, time) for slots, rating, time in self._blocks(item_row)]
        keys, values, times = (np.concatenate(column) for column in zip(*parts, strict=True))
        return keys, values, times

    def _fitted(self, item_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the vectors of these items in the fit; the prior for those that it did not know."""
        vectors = np.repeat(self.posterior.prior_item[None], len(item_rows), axis=0)
        if self._base is not None:
            known = np.flatnonzero(item_rows < len(self._base.items))
            vectors[known] = self._base.items[item_rows[known]]
        return vectors

    def _user_vectors(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        vectors = np.empty((len(keys), self.posterior.model.user_width), dtype=np.float32)
        of_fit = keys < self._n_base
        if self._base is not None:
            vectors[of_fit] = self._base.users[keys[of_fit]]
        vectors[~of_fit] = self._vectors[keys[~of_fit] - self._n_base]
        return vectors
