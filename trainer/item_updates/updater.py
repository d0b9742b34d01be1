"""Keep the items of the live generation up to date between fits: fold in what is new or changed, push the
rows.

Invariant: rows are pushed to the generation that they were folded in for, and to no other.
"""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import PosteriorModel, Ranker, Scorer
from featurestore.errors import GenerationUnknown, StoreError, StoreUnavailable
from featurestore.generations.catalog import GenerationMeta
from featurestore.generations.live import LiveGeneration
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.events import START, Position, after, parse_position
from trainer.archive.segments import Step, no_step, read_segment
from trainer.errors import SegmentDamagedError, SegmentGoneError
from trainer.item_updates.messages import ArchivedBatch, ErasedUser, ItemUpdate, ItemUpdates, LiveFit
from trainer.item_updates.ratings_since_fit import RatingsSinceFit
from trainer.threads import Threads

# Rows for items that come later, so that the table is not copied for each of them.
_SPARE_ROWS = 1_024


@dataclass(slots=True)
class _Target:
    """The generation that rows are folded in for. `snapshot`: up to where `ratings` has been read from the
    archive.
    """

    meta: GenerationMeta
    ratings: RatingsSinceFit
    items: npt.NDArray[np.float32]
    snapshot: dict[int, Position]


class ItemUpdater:
    """Folds items in for one term, as told by `updates`."""

    def __init__(self, store: Store, updates: ItemUpdates, threads: Threads, *, step: Step = no_step) -> None:
        self._store = store
        self._updates = updates
        self._threads = threads
        self._step = step
        self._target: _Target | None = None

    async def run(self) -> None:
        """Fold in until cancelled."""
        backoff = Backoff(0.1, 5.0)
        next_round_at = 0.0
        while True:
            target, now = self._target, time.monotonic()
            # Updates are taken over during a pause, too: the consumer would wait when the queue is full.
            if target is None or not target.ratings.waiting_items:
                await self._receive(await self._updates.get())
                continue
            if now < next_round_at:
                await self._receive_until(next_round_at - now)
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

    async def _receive_until(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                update = await self._updates.get()
        except TimeoutError:
            return
        # Outside of the timeout, which would leave a thread behind that still adds.
        await self._receive(update)

    async def _receive(self, update: ItemUpdate) -> None:
        if isinstance(update, LiveFit):
            self._target = None if update.files_missing else await self._threads.run(_open_target, update)
            return
        target = self._target
        if target is None or update.epoch != target.meta.summary.epoch:
            return
        if isinstance(update, ArchivedBatch):
            await self._threads.run(_add, target, update)
        elif isinstance(update, ErasedUser):
            await self._threads.run(target.ratings.forget, update.user_id)

    async def _push_round(self, target: _Target) -> None:
        chosen = await self._threads.run(target.ratings.next_round)
        if not chosen.items:
            return
        if chosen.users:
            current = await self._store.users.current(_generation(target), chosen.users)
            target.ratings.set_users(chosen.slots, current.n, current.vectors)
        vectors = await self._threads.run(target.ratings.fold, chosen)
        item_rows = np.array(chosen.items, dtype=np.int32)
        self._step("items:push")
        summary = target.meta.summary
        try:
            await self._store.generations.push_delta(summary.epoch, summary.generation, item_rows, vectors)
        except StoreError:
            target.ratings.put_back(chosen)
            raise
        target.items = _with_rows(target.ratings.posterior, target.items, item_rows, vectors)


def _open_target(live: LiveFit) -> _Target:
    """Add up what was archived since the fit of a generation."""
    # Taken here, after the updates before the switch: a batch that is archived later comes as an update, and
    # one that lies behind the switch in the queue and is in the snapshot already is known by its position.
    snapshot = live.archive.snapshot()
    ratings = RatingsSinceFit(live.meta.model, live.result)
    items = np.zeros((0, live.meta.model.item_width), dtype=np.float32)
    if live.result is not None:
        items = np.load(live.result.path / "items.npy", mmap_mode="c", allow_pickle=False)
    fitted = {partition: parse_position(text) for partition, text in live.meta.positions.items()}
    for table in _archived_after(snapshot, fitted):
        ratings.add(table)
    return _Target(live.meta, ratings, items, snapshot.positions)


def _archived_after(snapshot: Snapshot, positions: dict[int, Position]) -> list[pa.Table]:
    found = []
    for path in snapshot.paths:
        try:
            table, spans = read_segment(path)
        except (SegmentGoneError, SegmentDamagedError) as exc:
            # The next fit repairs the archive; until then these items stay as the fit before left them.
            log.warning("items_incomplete", segment=path.name, error=str(exc))
            continue
        if not spans or any(span.last > positions.get(p, START) for p, span in spans.items()):
            found.append(after(table, positions))
    return found


def _add(target: _Target, batch: ArchivedBatch) -> None:
    target.ratings.add(after(batch.table, target.snapshot))


def _generation(target: _Target) -> LiveGeneration:
    """Return the generation as those see it who read users with it."""
    posterior, summary = target.ratings.posterior, target.meta.summary
    return LiveGeneration(
        epoch=summary.epoch,
        generation=summary.generation,
        posterior=posterior,
        items=target.items,
        n_items=len(target.items),
        scorer=Scorer(posterior, target.items),
        # Nothing is ranked here: of no items it costs nothing.
        ranker=Ranker(posterior, target.items[:0]),
        meta=target.meta,
    )


def _with_rows(
    posterior: PosteriorModel,
    items: npt.NDArray[np.float32],
    item_rows: npt.NDArray[np.int32],
    vectors: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return the table with these rows replaced, in place where it is long enough."""
    needed = int(item_rows.max()) + 1
    if needed > len(items):
        longer = np.empty((needed + _SPARE_ROWS, items.shape[1]), dtype=np.float32)
        longer[: len(items)] = items
        longer[len(items) :] = posterior.prior_item
        items = longer
    items[item_rows] = vectors
    return items
