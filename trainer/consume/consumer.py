"""Consume one epoch: read, archive, acknowledge, in this order. Invariant: an event is acknowledged (and
trimmed) only after it is on disk, and an event that is delivered again is known by its stream id and not
archived again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from featurestore.codecs import FORGOTTEN_ROW
from featurestore.errors import EpochGone, StoreChanged, StoreDamaged, StoreUnavailable
from featurestore.keys import shown_key
from featurestore.ratings.stream import Events
from processes.backoff import Backoff
from trainer import log
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import START, Position, contexts_of, new_events, not_of_users, type_codes
from trainer.archive.identity import ArchiveState
from trainer.archive.meanings import FIELDS, TYPES, ContextFields, TypeNames
from trainer.consume.matching import difference
from trainer.consume.rebuild import is_incomplete, rebuild
from trainer.erasure.together import Together
from trainer.item_updates.messages import ArchivedBatch, ErasedUser, ItemUpdates
from trainer.retry import with_retries
from trainer.stage import Stage, Tools

# How long the store holds a blocking read: a stop and an erasure wait for it at most so long.
_BLOCK_MS = 100


class EpochConsumer(Stage):
    """The one reader of an epoch's streams; hands what it has archived on to `item_updates`."""

    def __init__(self, tools: Tools, archive: EpochArchive, item_updates: ItemUpdates) -> None:
        super().__init__(tools)
        settings, store = tools.settings, tools.store
        self.epoch = archive.epoch
        self._archive = archive
        self._trash = tools.root.trash
        self._ledger = tools.root.erasures
        self._item_updates = item_updates
        self._count = max(1, settings.batch_events // store.keys.partitions)
        # A reply that the store holds back longer than its time-out would count as lost.
        self._block_ms = min(_BLOCK_MS, round(500 * store.settings.timeout_s))
        self._linger_s = settings.linger_s
        self._identity = store.identity
        # Sockets of the store so far: behind a new one it may have lost its end.
        self._sockets = store.bulk.reconnects_total
        self.positions: dict[int, Position] = {}
        self.archived_events = 0
        # When the streams were last found read to their ends, by the monotonic clock.
        self.caught_up_at = time.monotonic()
        self._state: Literal["new", "consuming", "ended"] = "new"
        self._progress = asyncio.Condition()
        # Those who ask at a time share the answer: of a thousand erasures each asks.
        self._reaches = Together(self._reach, rest=0.0)
        # Held for a batch or a repair: each begins when the one before is whole.
        self._exclusive = asyncio.Lock()
        # Held, outside of the other, while segments are replaced: for a repair or an erasure.
        self.rewriting = asyncio.Lock()
        self._types = TypeNames(archive.directory)
        self._fields = ContextFields(archive.directory)

    async def run(self) -> None:
        """Consume until cancelled. Raises `LeaseLost`, `EpochGone`, `StoreChanged`; waits out an unreachable
        store and a full disk.
        """
        try:
            async with self.rewriting, self._exclusive:
                self._store.stream.restart(self.epoch)
                await self._complete()
                await self._enter("consuming")
            await self._consume()
        finally:
            # After a cancelled consumer its files are removed: a repair or an erasure in them ends first.
            async with self.rewriting, self._exclusive:
                await self._enter("ended")

    async def drain(self) -> None:
        """Archive what is left of the streams of an epoch that takes no more ratings, which `run` does not
        read any more. Leaves the streams as they are.
        """
        async with self.rewriting, self._exclusive:
            await self._complete()
            # As in `_consume`: what the store has not confirmed may be lost with its primary.
            since = self._store.confirmation.begin()
            async for events in self._store.stream.rest(self.epoch, self.positions, self._count):
                await self._store.confirmation.wait(since)
                await self._archive_new(events)

    @property
    def consuming(self) -> bool:
        """Whether the archive is known to be complete."""
        return self._state == "consuming"

    async def ready(self) -> None:
        """Return when the archive is known to be complete. Raises `EpochGone` when the epoch is."""
        await self._until(lambda: self.consuming)

    async def reached_now(self) -> None:
        """Return when all that was acknowledged before this call is archived. Raises `EpochGone`."""
        await self._reaches.run(None)

    async def _reach(self, _waiting: Sequence[None]) -> None:
        while not await self._reached(self._sockets):
            pass

    async def _reached(self, sockets: int) -> bool:
        """Return whether all is archived that the streams had, once it is; False as soon as the store is
        connected anew: what it has lost, or a primary, comes no more, and nothing was promised of it.
        """
        ends = await with_retries(self._store.stream.progress, self.epoch)

        def reached() -> bool:
            return all(self.positions.get(p, START) >= end.last for p, end in ends.items())

        await self._until(lambda: reached() or self._sockets != sockets)
        return reached()

    async def repair(self) -> None:
        """Rebuild the archive from the store's histories. Raises `EpochGone`."""
        async with self.rewriting, self._exclusive:
            self._raise_if_ended()
            await self._rebuild()

    async def archived(self) -> dict[int, Position]:
        """Return up to where the streams are archived, between two batches. Raises `EpochGone`."""
        async with self._exclusive:
            self._raise_if_ended()
            return dict(self.positions)

    async def _consume(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            began_at = time.monotonic()
            try:
                async with self._exclusive:
                    await self._require_same_store()
                    since = self._store.confirmation.begin()
                    events = await self._store.stream.read(
                        self.epoch, self._lease, self._count, self._block_ms
                    )
                    if len(events):
                        # An archive that has what a promoted replica lacks would be ahead of the store.
                        await self._store.confirmation.wait(since)
                        await self._take(events)
                backoff.reset()
                if not events.more:
                    self.caught_up_at = time.monotonic()
            except StoreUnavailable as exc:
                log.warning("consume_waits", epoch=self.epoch, failures=backoff.failures + 1, error=str(exc))
                # What was read may not be archived: the next read begins at the oldest event that is not
                # done.
                self._store.stream.restart(self.epoch)
                await asyncio.sleep(backoff.next_s())
                continue
            if len(events) and not events.more:
                # Batches far apart enough that a slow stream does not make a file of each event.
                await asyncio.sleep(max(0.0, self._linger_s - (time.monotonic() - began_at)))

    async def _require_same_store(self) -> None:
        """Raise `StoreChanged` where the store, since it was connected anew, is not what it was."""
        if self._store.identity != self._identity:
            raise StoreChanged("the store was emptied, or another one has taken its place")
        sockets = self._store.bulk.reconnects_total
        if sockets != self._sockets:
            archive = ArchiveState(self._identity, {self.epoch: self.positions})
            if why := await difference(self._store, archive):
                raise StoreChanged(why)
            async with self._progress:
                self._sockets = sockets
                self._progress.notify_all()

    async def _take(self, events: Events) -> None:
        """Archive the events that are new, then acknowledge all of them."""
        began_ns = time.time_ns()
        self._step("consume:read")
        await self._archive_new(events)
        self._step("consume:archived")
        await self._store.stream.done(self.epoch, self._lease, events.last)
        if (traces := self._store.traces) is not None:
            traces.archived(self.epoch, events.last, len(events), began_ns)
        self._step("consume:done")

    async def _archive_new(self, events: Events) -> None:
        registry = self._store.items(self.epoch)
        if events.n_items > len(registry):
            # Another process has registered items.
            await registry.refresh()
            if events.n_items > len(registry):
                # Which of the two is damaged?
                await registry.require_whole()
                self._require_items(events, len(registry))
        table, forgotten, spans = await self._threads.run(new_events, events, registry.ids, self.positions)
        if spans:
            if forgotten:
                # Before anything is gone: from here on no older copy brings these users back.
                await with_retries(self._threads.run, self._ledger.add, list(forgotten.items()))
                table = table.filter(not_of_users(table, forgotten))
                for user_id in forgotten:
                    await self._item_updates.put(ErasedUser(self.epoch, user_id))
                # Before the marks are acknowledged: a service that ended behind one has not asked for this.
                since = self._store.confirmation.begin()
                ask = self._store.commands.ask_to_erase_all
                await with_retries(ask, forgotten, epoch=self.epoch)
                await self._store.confirmation.wait(since)
            await self._name_types(table)
            await self._name_fields(table)
            await with_retries(self._threads.run, self._archive.append, table, spans)
            async with self._progress:
                self.positions.update({p: span.last for p, span in spans.items()})
                self.archived_events += sum(span.events for span in spans.values())
                self._progress.notify_all()
            if table.num_rows:
                await self._item_updates.put(ArchivedBatch(self.epoch, table))

    def _require_items(self, events: Events, n_items: int) -> None:
        """Raise `StoreDamaged` for an event of an item row that was never given."""
        unknown = (events.item_row >= n_items) & (events.item_row != FORGOTTEN_ROW)
        for k in np.flatnonzero(unknown)[:1].tolist():
            key = self._store.keys.ratings(self.epoch, int(events.partition[k]))
            why = f"event {events.stream_seq[k]} is of an item row that was never given, there are {n_items}"
            raise StoreDamaged(shown_key(key), why)

    async def _name_types(self, table: pa.Table | None = None) -> None:
        """Have the types of these events, or of any, on the disk as the store has them."""
        codes: set[int] = set() if table is None else set(np.unique(type_codes(table)).tolist())
        if codes == {0}:
            return
        # A type is put before its first event.
        known = bool(codes) and codes <= self._types.codes
        ask = self._store.event_types.current if known else self._store.event_types.fresh
        try:
            types = await with_retries(ask)
        except StoreDamaged:
            # Of types that are named nothing is lost while the document is mended.
            if known:
                return
            raise
        await with_retries(self._threads.run, self._types.name, types)

    async def _name_fields(self, table: pa.Table | None = None) -> None:
        """Have the fields of the contexts of these events, or of any, on the disk as the store has them."""
        told = None if table is None else contexts_of(table)
        if table is not None and told is None:
            return
        try:
            schema = await with_retries(self._store.contexts.fresh)
        except StoreDamaged:
            # Of fields that are named nothing is lost while the document is mended.
            if told is not None and told.shape[1] <= await self._threads.run(self._fields.count):
                return
            raise
        if schema.fields:
            await with_retries(self._threads.run, self._fields.name, schema)

    async def _complete(self) -> None:
        """Rebuild the archive where it lacks what was trimmed from the streams."""
        self._take_stock()
        # A file that was damaged meanwhile would keep the archive from being restored.
        with contextlib.suppress(StoreDamaged):
            await self._name_types()
        with contextlib.suppress(StoreDamaged):
            await self._name_fields()
        ends = await with_retries(self._store.stream.progress, self.epoch)
        if is_incomplete(self._archive.snapshot(), ends, holes=self._archive.has_holes()):
            await self._rebuild()

    async def _rebuild(self) -> None:
        def keep(paths: Sequence[Path]) -> None:
            # Without what the codes in them mean, segments cannot be restored.
            meanings = [self._archive.directory / name for name in (TYPES, FIELDS)]
            paths = [*paths, *(path for path in meanings if path.exists())]
            entry = self._trash.keep(paths, self.epoch, self._identity, "rebuilt")
            log.event("epoch_to_trash", epoch=self.epoch, why="rebuilt", entry=entry.path.name)

        await self._name_types()
        await self._name_fields()
        await rebuild(self._store, self._archive, self._threads, keep)
        self._take_stock()

    def _take_stock(self) -> None:
        snapshot = self._archive.snapshot()
        self.positions = dict(snapshot.positions)
        self.archived_events = snapshot.events

    async def _enter(self, state: Literal["consuming", "ended"]) -> None:
        async with self._progress:
            self._state = state
            self._progress.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self._state == "ended" or condition())
        if not condition():
            raise EpochGone(self.epoch)

    def _raise_if_ended(self) -> None:
        if self._state == "ended":
            raise EpochGone(self.epoch)
