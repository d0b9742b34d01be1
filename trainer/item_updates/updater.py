"""Keep the items of the live generation up to date between fits: fold in what is new or changed, push the
rows.

Invariant: rows are pushed to the generation that they were folded in for, and to no other. The vector of an
item is the half-step over all of its ratings, as the fit's would be, with its raters as they are now.
"""

import asyncio
import contextlib
import os
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Histories, Model, Ranker, Scorer, posterior_of
from featurestore.errors import GenerationUnknown, StoreDamaged, StoreError, StoreUnavailable
from featurestore.generations.catalog import GenerationMeta
from featurestore.generations.live import LiveGeneration
from featurestore.leases import Lease
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.events import START, Position, after, in_registry, parse_position, string_array
from trainer.archive.segments import Step, read_segment
from trainer.errors import SegmentDamagedError
from trainer.fit_job.results import FitResult
from trainer.item_updates.messages import ArchivedBatch, Arrivals, ErasedUser, ItemUpdates, LiveFit
from trainer.retry import with_retries
from trainer.threads import Threads

# Events beyond this are left to the next fit: 40 bytes each, and a fit is overdue by then.
MAX_EVENTS = 2_000_000
# Items of one round, which are pushed as one entry of the deltas.
ROUND_ITEMS = 256
# Their ratings: with these the round takes a thread some 20 ms.
ROUND_RATINGS = 100_000
# Users that the round reads anew: one pipeline to the store.
ROUND_USERS = 2_000
# Folded in without a pause: about 1 ms.
PIECE_ITEMS = 16
# Rows for items that come later, so that the table is not copied for each of them.
_SPARE_ROWS = 1_024

_EVENT = np.dtype([("slot", np.int64), ("rating", np.float64), ("time", np.float64)])


@dataclass(frozen=True, slots=True)
class Round:
    """Items to fold in, and the users that must be read first: `users[k]` belongs into slot `slots[k]`."""

    items: list[int]
    slots: list[int]
    users: list[bytes]


class RatingsSinceFit:
    """Ratings by item since a fit, on top of the fit's own: arithmetic alone, not for two threads at once.

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
        # By item: its events, as parts of the blocks in which they came.
        self._events: defaultdict[int, list[npt.NDArray[Any]]] = defaultdict(list)
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
        slots = np.array([self._slots[user_id] for user_id in ids], dtype=np.int64)
        slots = slots[encoded.indices.to_numpy(zero_copy_only=False)]
        np.maximum.at(self._last_n, slots, table["n"].to_numpy())
        item_row = table["item_row"].to_numpy().astype(np.int64)
        order = np.argsort(item_row, kind="stable")
        block = np.empty(len(order), dtype=_EVENT)
        block["slot"], block["rating"] = slots[order], table["rating"].to_numpy()[order]
        block["time"] = table["time"].to_numpy()[order]
        found, first = np.unique(item_row[order], return_index=True)
        borders = pairwise([*first.tolist(), len(order)])
        for row, (start, stop) in zip(found.tolist(), borders, strict=True):
            self._events[row].append(block[start:stop])
            self._waiting.setdefault(row)
        self._n_events += table.num_rows

    def forget(self, user_id: bytes) -> None:
        """Take a user out: the items that the user rated are to be folded in without these ratings."""
        slot = self._slots.pop(user_id, None)
        if slot is not None:
            self._ids[slot] = b""
            self._last_n[slot] = self._read_n[slot] = 0
            for row, parts in self._events.items():
                for part in parts:
                    own = part["slot"] == slot
                    if own.any():
                        part["rating"][own] = np.nan
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
            parts = [np.zeros(0, dtype=np.int64), *(part["slot"] for part in self._events.get(row, ()))]
            n_of_item = sum(map(len, parts))
            if self._base is not None:
                fitted = self._base.item_history(row)
                n_of_item += fitted.stop - fitted.start
                slots = self._slot_of_row[self._base.item_users[fitted]]
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

    def fold(self, chosen: Round) -> npt.NDArray[np.float32]:
        """Return the vectors (m, item_width) of the items of a round, which wait no longer."""
        base, rows = self._base, np.array(chosen.items, dtype=np.int64)
        current = np.repeat(self.posterior.prior_item[None], len(rows), axis=0)
        if base is not None:
            known = rows < len(base.items)
            current[known] = base.items[rows[known]]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        # Ratings in the order in which they were made. The key of a user with newer events is the slot behind
        # all rows of the fit, that of any other the row.
        parts = [(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))]
        for k, row in enumerate(chosen.items):
            newer = self._events.get(row, [])
            offsets[k + 1] = offsets[k] + sum(map(len, newer))
            if base is not None:
                fitted = base.item_history(row)
                user_rows = np.asarray(base.item_users[fitted], dtype=np.int64)
                slots = self._slot_of_row[user_rows]
                keys = np.where(slots >= 0, self._n_base + slots, user_rows)
                parts.append((keys, base.item_values[fitted], base.item_times[fitted]))
                offsets[k + 1] += len(keys)
            parts += [(part["slot"] + self._n_base, part["rating"], part["time"]) for part in newer]
        keys, values, times = (np.concatenate(column) for column in zip(*parts, strict=True))
        distinct, compact = np.unique(keys, return_inverse=True)
        users = np.empty((len(distinct), self._vectors.shape[1]), dtype=np.float32)
        of_fit = distinct < self._n_base
        if base is not None:
            users[of_fit] = base.users[distinct[of_fit]]
        users[~of_fit] = self._vectors[distinct[~of_fit] - self._n_base]
        user_row = compact.astype(np.int32)
        folded = []
        for start in range(0, len(rows), PIECE_ITEMS):
            stop = min(start + PIECE_ITEMS, len(rows))
            part = slice(offsets[start], offsets[stop])
            borders = offsets[start : stop + 1] - offsets[start]
            piece = Histories(borders, user_row[part], values[part], times[part])
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


@dataclass(slots=True)
class _Target:
    """The generation that rows are folded in for. `positions`: up to where `ratings` has been read from
    the archive.
    """

    meta: GenerationMeta
    ratings: RatingsSinceFit
    items: npt.NDArray[np.float32]
    positions: dict[int, Position]


class ItemUpdater:
    """Folds items in for one term, as told by `updates`. What arrives for the live generation is offered to
    `arrivals`, too.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        updates: ItemUpdates,
        threads: Threads,
        arrivals: Arrivals,
        *,
        step: Step,
    ) -> None:
        self._store = store
        self._lease = lease
        self._updates = updates
        self._arrivals = arrivals
        self._threads = threads
        self._step = step
        self._target: _Target | None = None

    async def run(self) -> None:
        """Fold in until cancelled."""
        backoff = Backoff(0.1, 5.0)
        next_round_at = 0.0
        while True:
            target, now = self._target, time.monotonic()
            waiting = target is not None and target.ratings.waiting_items > 0
            if target is None or not waiting or now < next_round_at:
                # Updates are taken over during a pause, too: the consumer would wait when the queue is full.
                try:
                    async with asyncio.timeout(next_round_at - now if waiting else None):
                        update = await self._updates.get()
                except TimeoutError:
                    continue
                # Outside of the timeout, which would leave a thread behind that still adds.
                if isinstance(update, LiveFit):
                    self._target = None if update.files_missing else await self._open(update)
                elif target is not None and update.epoch == target.meta.summary.epoch:
                    if isinstance(update, ArchivedBatch):
                        newer = after(update.table, target.positions)
                        with contextlib.suppress(asyncio.QueueFull):
                            self._arrivals.put_nowait(ArchivedBatch(update.epoch, newer))
                        await self._threads.run(target.ratings.add, newer)
                    elif isinstance(update, ErasedUser):
                        await self._threads.run(target.ratings.forget, update.user_id)
                continue
            try:
                await self._push_round(target)
                backoff.reset()
                # A flood: four fifths of the time for those who bring it and for lookups.
                next_round_at = time.monotonic() + 4.0 * (time.monotonic() - now)
            except GenerationUnknown:
                # Removed since: the switch to the generation after it is on its way.
                self._target = None
            except StoreUnavailable as exc:
                log.warning("items_wait", failures=backoff.failures + 1, error=str(exc))
                next_round_at = time.monotonic() + backoff.next_s()
            except StoreDamaged as exc:
                # The items of this round stay as they are until the next fit, which reads the archive.
                log.warning("items_left_out", error=str(exc))
                next_round_at = time.monotonic() + backoff.next_s()

    async def _open(self, live: LiveFit) -> _Target | None:
        # Before anything is read: what the leader before pushes from now on is refused.
        claim = self._store.generations.claim_deltas
        try:
            await with_retries(claim, self._lease, live.epoch, live.generation)
        except GenerationUnknown:
            return None
        # Taken here, after the updates before the switch: a batch that is archived later comes as an update,
        # and one that lies behind the switch in the queue and is in the snapshot already is known by its
        # position.
        try:
            snapshot, files = await with_retries(self._threads.run, live.archive.open_snapshot)
        except SegmentDamagedError as exc:
            # The next fit repairs the archive; until then items stay as the fit before left them.
            log.warning("items_incomplete", segment=exc.path.name, error=str(exc))
            return None
        registry = self._store.items(live.epoch)
        await with_retries(registry.refresh)
        return await self._threads.run(_open_target, live, snapshot, files, registry.ids[:])

    async def _push_round(self, target: _Target) -> None:
        ratings, summary = target.ratings, target.meta.summary
        chosen = await self._threads.run(ratings.next_round)
        if not chosen.items:
            return
        if chosen.users:
            live = LiveGeneration(
                epoch=summary.epoch,
                generation=summary.generation,
                posterior=ratings.posterior,
                items=target.items,
                n_items=len(target.items),
                scorer=Scorer(ratings.posterior, target.items),
                # Nothing is ranked here: of no items it costs nothing.
                ranker=Ranker(ratings.posterior, target.items[:0]),
                meta=target.meta,
            )
            current = await self._store.users.current(live, chosen.users)
            ratings.set_users(chosen.slots, current.n, current.vectors)
        vectors = await self._threads.run(ratings.fold, chosen)
        rows = np.array(chosen.items, dtype=np.int32)
        self._step("items:push")
        try:
            await self._store.generations.push_delta(
                self._lease, summary.epoch, summary.generation, rows, vectors
            )
        except StoreError:
            ratings.put_back(chosen)
            raise
        missing = int(rows.max()) + 1 - len(target.items)
        if missing > 0:
            later = np.tile(ratings.posterior.prior_item, (missing + _SPARE_ROWS, 1))
            target.items = np.concatenate([target.items, later])
        target.items[rows] = vectors


def _open_target(
    live: LiveFit, snapshot: Snapshot, files: Sequence[pa.OSFile], ids: Sequence[bytes]
) -> _Target:
    """Add up what was archived since the fit of a generation. `files`: of the snapshot, open; each is
    closed. `ids`: of the items, by row.
    """
    item_ids = string_array(ids)
    ratings = RatingsSinceFit(live.meta.model, live.result)
    items = np.zeros((0, live.meta.model.item_width), dtype=np.float32)
    if live.result is not None:
        items = np.load(live.result.path / "items.npy", mmap_mode="c", allow_pickle=False)
    fitted = {partition: parse_position(text) for partition, text in live.meta.positions.items()}
    for path, file in zip(snapshot.paths, files, strict=True):
        try:
            table, spans = read_segment(path, file)
        except SegmentDamagedError as exc:
            # The next fit repairs the archive; until then these items stay as the fit before left them.
            log.warning("items_incomplete", segment=path.name, error=str(exc))
            continue
        if not spans or any(span.last > fitted.get(p, START) for p, span in spans.items()):
            ratings.add(in_registry(after(table, fitted), item_ids))
    return _Target(live.meta, ratings, items, snapshot.positions)
