"""Ratings of items since a fit, on top of the fit's own, and the items folded in from them. Invariant: an
item's vector is the half-step over all of its ratings, with its raters as they were read last.

Events of other types are among them where the fit has a ranking head that has learned such: in that head an
item's factors rest on all of its events.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import (
    Columns,
    Float32s,
    Histories,
    Model,
    RankingHead,
    event_sums,
    mark_described,
    posterior_of,
    wanted_times,
)
from featurestore.catalogue.item import CatalogueItem
from featurestore.contexts.codec import joined
from featurestore.generations.activity import levels_of
from trainer import log
from trainer.archive.events import codes_of, contexts_of, ratings_of, type_codes
from trainer.catalogue.described import DescribedItems
from trainer.fit_job.results import FitResult
from trainer.item_updates.event_blocks import EVENT, EventBlocks

# Events beyond this are left to the next fit: 25 MB, and a fit is overdue by then.
MAX_EVENTS = 1_000_000
# Items of one round, which are pushed as one entry of the deltas.
ROUND_ITEMS = 256
# Their ratings: with these the round takes a thread some 20 ms.
ROUND_RATINGS = 100_000
# Users that the round reads anew: one pipeline to the store.
ROUND_USERS = 2_000
# Folded in without a pause: about 1 ms.
PIECE_ITEMS = 16
# Rows for items that come later, so that the table is not copied for each of them.
SPARE_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Round:
    """Items to fold in, and the users that must be read first: `users[k]` belongs into slot `slots[k]`."""

    items: list[int]
    slots: list[int]
    users: list[bytes]


@dataclass(frozen=True, slots=True)
class Folded:
    """Items that were folded in: their `vectors` (m, item_width) and `levels` (m,), see `Activity`; where
    there is a ranking head, their `factors` (m, r) in it; and where it has learned events, the sums of their
    events, `positives` (m, 3).
    """

    vectors: npt.NDArray[np.float32]
    levels: Float32s
    factors: Float32s | None
    positives: Float32s | None


class RatingsSinceFit:
    """Ratings by item since a fit, on top of the fit's own: arithmetic alone, not for two threads at once.

    A user with newer events has a slot: a position in the arrays below. `base`: the fit, None where nothing
    was fitted.
    """

    def __init__(
        self,
        model: Model,
        base: FitResult | None,
        head: RankingHead | None = None,
        described: DescribedItems | None = None,
    ) -> None:
        """`head`: of `base`, where there is one whose items are to be kept up to date, too. `described`: the
        attributes of the items, None where the fit knows none.
        """
        self.posterior = posterior_of(model)
        self.head = head
        self.described = described
        self._base = base
        self._takes_events = head is not None and bool(head.parameters.types)
        self._n_base = 0 if base is None else base.n_users
        self._slots: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        # By slot: the row in the fit (-1: none), the highest `n` of an event, the `n` of the vector that was
        # read.
        self._base_row = np.zeros(0, dtype=np.int64)
        self._last_n = np.zeros(0, dtype=np.int64)
        self._read_n = np.zeros(0, dtype=np.int64)
        self._vectors = np.zeros((0, model.user_width), dtype=np.float32)
        # In the ranking head; of no numbers without one.
        self._factors = np.zeros((0, 0 if head is None else head.parameters.rank), dtype=np.float32)
        # By row of the fit: the slot of a user with newer events; -1 for the others.
        self._slot_of_row = np.full(self._n_base, -1, dtype=np.int32)
        self._events = EventBlocks()
        # Whether events were left to the next fit.
        self._is_full = False
        # Items to fold in, the one that has waited longest first.
        self._waiting: OrderedDict[int, None] = OrderedDict()

    @property
    def waiting_items(self) -> int:
        """How many items wait to be folded in."""
        return len(self._waiting)

    def add(self, table: pa.Table) -> None:
        """Add events that follow those added before; none when there is no room: the next fit learns them."""
        if table.num_rows == 0:
            return
        if len(self._events) >= MAX_EVENTS:
            if not self._is_full:
                log.event("events_left_to_fit", held=len(self._events))
            self._is_full = True
            return
        codes, user_ids = codes_of([table["user_id"]])
        ids = [bytes(value.as_buffer()) for value in user_ids]
        new = [user_id for user_id in ids if user_id not in self._slots]
        if new:
            first_slot = len(self._ids)
            self._slots.update({user_id: first_slot + k for k, user_id in enumerate(new)})
            self._ids.extend(new)
            rows = np.full(len(new), -1, dtype=np.int64) if self._base is None else self._base.rows_of(new)
            known = np.flatnonzero(rows >= 0)
            self._slot_of_row[rows[known]] = first_slot + known
            self._base_row = np.concatenate([self._base_row, rows])
            zeros = np.zeros(len(new), dtype=np.int64)
            self._last_n = np.concatenate([self._last_n, zeros])
            # -1: read once even if no event of the user has a count above 0.
            self._read_n = np.concatenate([self._read_n, zeros - 1])
            vectors = np.zeros((len(new), self._vectors.shape[1]), dtype=np.float32)
            self._vectors = np.concatenate([self._vectors, vectors])
            factors = np.zeros((len(new), self._factors.shape[1]), dtype=np.float32)
            self._factors = np.concatenate([self._factors, factors])
        slots = np.array([self._slots[user_id] for user_id in ids], dtype=np.int64)[codes]
        np.maximum.at(self._last_n, slots, table["n"].to_numpy())
        if not self._takes_events:
            slots, table = slots[type_codes(table) == 0], ratings_of(table)
        item_row = table["item_row"].to_numpy().astype(np.int64)
        events = np.empty(len(item_row), dtype=EVENT)
        events["slot"], events["rating"] = slots, table["rating"].to_numpy()
        events["time"], events["type_code"] = table["time"].to_numpy(), type_codes(table)
        self._events.add(item_row, events, contexts_of(table))
        for row in np.unique(item_row).tolist():
            self._waiting.setdefault(row)

    def describe(self, items: Sequence[tuple[int, CatalogueItem]]) -> None:
        """Take in what the catalogue says of items, each with its row: those that are others now wait."""
        if self.described is not None:
            self._waiting.update(dict.fromkeys(self.described.update(items)))

    def forget(self, user_id: bytes) -> None:
        """Take a user out: the items that the user rated are to be folded in without these ratings."""
        slot = self._slots.pop(user_id, None)
        if slot is not None:
            self._ids[slot] = b""
            self._last_n[slot] = self._read_n[slot] = 0
            for row in self._events.take_back(slot):
                self._waiting.setdefault(row)
            if self._base_row[slot] >= 0:
                self._slot_of_row[self._base_row[slot]] = -1

    def fold_in_again(self, items: Iterable[int]) -> None:
        """Have items folded in anew that the fit has fewer ratings of by now."""
        if self._base is not None:
            self._waiting.update(dict.fromkeys(row for row in items if row not in self._waiting))

    def next_round(self) -> Round:
        """Return the items that have waited longest, as many as the bounds of a round allow, and at least
        one.
        """
        items: list[int] = []
        stale: dict[int, None] = {}
        n_ratings = 0
        for row in self._waiting:
            parts = [np.zeros(0, dtype=np.int64), *(part["slot"] for part, _ in self._events.of_item(row))]
            n_of_item = sum(map(len, parts))
            if self._base is not None:
                fitted = self._base.of_item(row, events=self._takes_events)
                n_of_item += len(fitted.user_row)
                slots = self._slot_of_row[fitted.user_row]
                parts.append(slots[slots >= 0].astype(np.int64))
            # Of all raters those with events that came after they were read.
            raters = np.unique(np.concatenate(parts))
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

    def set_histories(self, slots: Sequence[int], histories: Histories) -> None:
        """Fold users into the ranking head from their histories as the store has them now."""
        if self.head is not None:
            # Without recency, as the fit has its users.
            self._factors[np.asarray(slots, dtype=np.int64)] = self.head.fold_in_users(
                histories, recency=False
            )

    def took(self, rows: npt.NDArray[np.int32], factors: Float32s) -> None:
        """Fold users in with these `factors` (m, r) of items `rows` (m,) from here on."""
        if self.head is None:
            return
        items, missing = self.head.items, int(rows.max(initial=-1)) + 1 - len(self.head.items)
        if missing > 0:
            later = np.zeros((missing + SPARE_ROWS, items.shape[1]), dtype=np.float32)
            items = np.concatenate([items, later])
        elif not items.flags.writeable:
            # As it was mapped.
            items = items.copy()
        items[rows] = factors
        self.head = replace(self.head, items=items)

    def fold(self, chosen: Round) -> Folded:
        """Return the items of a round, which wait no longer."""
        base, rows = self._base, np.array(chosen.items, dtype=np.int64)
        current = np.repeat(self.posterior.prior_item[None], len(rows), axis=0)
        if base is not None:
            known = rows < len(base.items)
            current[known] = base.items[rows[known]]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        # Ratings in the order in which they were made. The key of a user with newer events is the slot behind
        # all rows of the fit, that of any other the row.
        parts = [(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.uint8))]
        contexts = list[tuple[int, Float32s | None]]()
        for k, row in enumerate(chosen.items):
            first = len(parts)
            if base is not None:
                fitted = base.of_item(row, events=self._takes_events)
                slots = self._slot_of_row[fitted.user_row]
                keys = np.where(slots >= 0, self._n_base + slots, fitted.user_row.astype(np.int64))
                parts.append((keys, fitted.value, fitted.time, fitted.type_code))
                contexts += base.contexts_of(row, len(keys))
            for part, context in self._events.of_item(row):
                keys = part["slot"].astype(np.int64) + self._n_base
                parts.append((keys, part["rating"], part["time"], part["type_code"]))
                contexts.append((len(part), context))
            offsets[k + 1] = offsets[k] + sum(len(part[0]) for part in parts[first:])
        keys, values, times, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
        distinct, compact = np.unique(keys, return_inverse=True)
        users = np.empty((len(distinct), self._vectors.shape[1]), dtype=np.float32)
        of_fit = distinct < self._n_base
        if base is not None:
            users[of_fit] = base.users[distinct[of_fit]]
        users[~of_fit] = self._vectors[distinct[~of_fit] - self._n_base]
        every = Histories(
            *(offsets, compact.astype(np.int32), values, times),
            type_code=codes if self._takes_events else None,
            context=joined(contexts),
        )
        folded, factors = [], []
        ranked = self._ranked_users(distinct)
        columns = None if self.described is None else self.described.columns(rows)
        for start in range(0, len(rows), PIECE_ITEMS):
            stop = min(start + PIECE_ITEMS, len(rows))
            piece = every.part(start, stop)
            rated = piece.ratings()
            some = None if columns is None else columns.take(np.arange(start, stop))
            folded.append(
                self.posterior.fold_in_items(users, rated, current=current[start:stop], attributes=some)
            )
            if self.head is not None:
                factors.append(self._factors_of(self.head, ranked, piece, some, folded[-1]))
            # Processes that answer requests on this core wait for a piece, not for the next tick of the
            # system.
            os.sched_yield()
        for row in chosen.items:
            self._waiting.pop(row, None)
        positives, types = None, () if self.head is None else self.head.parameters.types
        if self.head is not None and self._takes_events:
            positives = event_sums(every, types)
        levels = levels_of(*wanted_times(every, types), len(rows), time.time())
        return Folded(np.concatenate(folded), levels, np.concatenate(factors) if factors else None, positives)

    def _factors_of(
        self,
        head: RankingHead,
        users: Float32s,
        piece: Histories,
        columns: Columns | None,
        vectors: Float32s,
    ) -> Float32s:
        """Return the factors (m, r) of items that were chosen by these `users`; where attributes alone tell
        of one the `vectors` (m, item_width) say so.
        """
        if self.described is None or columns is None:
            return head.fold_in_items(users, piece)[0]
        expected = self.described.attributes.factors(columns)
        factors, chosen = head.fold_in_items(users, piece, expected)
        if expected is not None:
            mark_described(vectors, np.flatnonzero(~chosen & columns.described))
        return factors

    def _ranked_users(self, keys: npt.NDArray[np.int64]) -> Float32s:
        """Return the vectors (m, r) in the ranking head of users by their keys (m,), as in `fold`."""
        users = np.zeros((len(keys), self._factors.shape[1]), dtype=np.float32)
        of_fit = keys < self._n_base
        if self._base is not None and self._base.ranking_users is not None and self.head is not None:
            users[of_fit] = self._base.ranking_users[keys[of_fit]]
        users[~of_fit] = self._factors[keys[~of_fit] - self._n_base]
        return users

    def put_back(self, chosen: Round) -> None:
        """Let the items of a round wait again: they were not published."""
        for row in chosen.items:
            self._waiting.setdefault(row)
