"""Keeps the items of the live generation as they are now: folds in what is new or changed and pushes the
rows.

Invariant: rows are pushed to the generation they were folded in for, and to no other.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import PosteriorModel, Ranker, Scorer
from featurestore.errors import GenerationUnknown, StoreError, StoreUnavailable
from featurestore.generations.catalog import GenerationMeta
from featurestore.generations.follower import LiveGeneration
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.archive.events import Position
from trainer.archive.log import Snapshot
from trainer.archive.positions import parse_position
from trainer.archive.segments import Step, no_step, read_segment
from trainer.errors import SegmentDamagedError, SegmentGoneError
from trainer.fit_job.results import FitResult
from trainer.item_updates.overlay import Overlay, Work
from trainer.threads import Threads

# Rows for items that come later, so that the table is not copied for each of them.
_SPARE_ROWS = 1_024


@dataclass(slots=True)
class _Live:
    """The generation that rows are folded in for."""

    meta: GenerationMeta
    overlay: Overlay
    base_missing: bool
    items: npt.NDArray[np.float32]


class ItemKeeper:
    """Folds items in for one leader. `archived`, `forget` and `switch` are called by others on the
    event loop.
    """

    def __init__(self, store: Store, threads: Threads, *, step: Step = no_step) -> None:
        self._store = store
        self._step = step
        self._threads = threads
        self._live: _Live | None = None
        self._recent: list[tuple[int, pa.Table]] = []
        self._forgotten: list[tuple[int, bytes]] = []
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self.pushed_total = 0

    @property
    def base_missing(self) -> bool:
        """Whether the files of the live generation's fit are not here, so that a fit is wanted."""
        return self._live is not None and self._live.base_missing

    @property
    def generation(self) -> tuple[int, int]:
        """Epoch and generation that rows are folded in for; zeros before the first."""
        if self._live is None:
            return 0, 0
        return self._live.meta.summary.epoch, self._live.meta.summary.generation

    @property
    def live_meta(self) -> GenerationMeta | None:
        """The generation that rows are folded in for."""
        return None if self._live is None else self._live.meta

    @property
    def fitted_events(self) -> float:
        """How many events of the streams the fit of that generation knew."""
        return 0.0 if self._live is None else self._live.meta.summary.metrics.get("events", 0.0)

    async def switch(
        self, meta: GenerationMeta, result: FitResult | None, snapshot: Callable[[], Snapshot]
    ) -> None:
        """Fold in for this generation from now on: all archived events that its fit has not seen, and later
        ones.

        `snapshot` is called on the event loop, so that no event falls between it and those told by
        `archived`.
        """
        async with self._lock:
            self._live = None
            self._recent.clear()
            self._forgotten.clear()
            self._live = await self._threads.run(_begin, meta, result, snapshot())
            self._wake.set()

    def archived(self, epoch: int, table: pa.Table) -> None:
        """These events are on disk."""
        self._recent.append((epoch, table))
        self._wake.set()

    def forget(self, epoch: int, user_id: bytes) -> None:
        """This user is gone."""
        self._forgotten.append((epoch, user_id))
        self._wake.set()

    async def run(self) -> None:
        """Fold in until cancelled."""
        backoff = Backoff(0.1, 5.0)
        while True:
            await self._wake.wait()
            self._wake.clear()
            began_at = time.monotonic()
            try:
                async with self._lock:
                    more = await self._round()
                backoff.reset()
                if more:
                    # A flood: four fifths of the time for those who bring it and for lookups.
                    await asyncio.sleep(4.0 * (time.monotonic() - began_at))
            except StoreUnavailable as exc:
                log.warning("items_wait", failures=backoff.failures + 1, error=str(exc))
                await asyncio.sleep(backoff.next_s())
                more = True
            if more:
                self._wake.set()

    async def _round(self) -> bool:
        """One round; whether there is more to do."""
        epoch, generation = self.generation
        tables = [table for of, table in self._recent if of == epoch]
        forgotten = [user_id for of, user_id in self._forgotten if of == epoch]
        self._recent.clear()
        self._forgotten.clear()
        live = self._live
        if live is None or live.base_missing:
            return False
        work = await self._threads.run(_prepare, live.overlay, tables, forgotten)
        if not work.items:
            return False
        if work.users:
            current = await self._store.users.current(self._reading(live), work.users)
            live.overlay.set_users(work.numbers, current.n, current.vectors)
        rows = await self._threads.run(live.overlay.fold, work)
        numbers = np.array(work.items, dtype=np.int32)
        self._step("items:push")
        try:
            await self._store.generations.push_delta(epoch, generation, numbers, rows)
        except GenerationUnknown:
            # Removed meanwhile: whoever flipped will say what to fold in for.
            return False
        except StoreError:
            live.overlay.again(work)
            raise
        live.items = _with_rows(live.overlay.posterior, live.items, numbers, rows)
        self.pushed_total += len(numbers)
        return live.overlay.dirty > 0

    def _reading(self, live: _Live) -> LiveGeneration:
        summary, posterior = live.meta.summary, live.overlay.posterior
        return LiveGeneration(
            epoch=summary.epoch,
            generation=summary.generation,
            posterior=posterior,
            items=live.items,
            n_items=len(live.items),
            scorer=Scorer(posterior, live.items),
            ranker=Ranker(posterior, live.items[:0]),
            meta=live.meta,
        )


def _begin(meta: GenerationMeta, result: FitResult | None, snapshot: Snapshot) -> _Live:
    missing = result is None and meta.summary.n_ratings > 0
    overlay = Overlay(meta.model, result)
    items = np.zeros((0, meta.model.item_width), dtype=np.float32)
    if result is not None:
        items = np.load(result.path / "items.npy", mmap_mode="c", allow_pickle=False)
    if not missing:
        seen = {partition: parse_position(text) for partition, text in meta.positions.items()}
        for table in _unseen(snapshot, seen):
            overlay.add(table)
    return _Live(meta, overlay, missing, items)


def _unseen(snapshot: Snapshot, seen: dict[int, Position]) -> list[pa.Table]:
    """The archived events after the positions `seen`."""
    found = []
    for path in snapshot.paths:
        try:
            table, spans = read_segment(path)
        except (SegmentGoneError, SegmentDamagedError) as exc:
            # The next fit will see to it; rows folded in without these events would be wrong for long.
            log.warning("items_incomplete", segment=path.name, error=str(exc))
            continue
        if spans and all(span.last <= seen.get(partition, (0, 0)) for partition, span in spans.items()):
            continue
        found.append(after(table, seen))
    return found


def after(table: pa.Table, seen: dict[int, Position]) -> pa.Table:
    """The events of a table after the positions of their partitions."""
    partition = table["partition"].to_numpy()
    ms, seq = table["stream_ms"].to_numpy(), table["stream_seq"].to_numpy()
    last_ms, last_seq = np.full(1 << 16, -1), np.full(1 << 16, -1)
    for number, (a, b) in seen.items():
        last_ms[number], last_seq[number] = a, b
    newer = (ms > last_ms[partition]) | ((ms == last_ms[partition]) & (seq > last_seq[partition]))
    return table if newer.all() else table.filter(pa.array(newer))


def _prepare(overlay: Overlay, tables: list[pa.Table], forgotten: list[bytes]) -> Work:
    for table in tables:
        overlay.add(table)
    for user_id in forgotten:
        overlay.forget(user_id)
    return overlay.next_round()


def _with_rows(
    posterior: PosteriorModel,
    items: npt.NDArray[np.float32],
    numbers: npt.NDArray[np.int32],
    rows: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """The table with these rows replaced in place, or a longer one."""
    needed = int(numbers.max()) + 1
    if needed > len(items):
        longer = np.empty((needed + _SPARE_ROWS, items.shape[1]), dtype=np.float32)
        longer[: len(items)] = items
        longer[len(items) :] = posterior.prior_item
        items = longer
    items[numbers] = rows
    return items
