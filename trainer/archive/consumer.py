"""Consume one epoch: read, archive, acknowledge, in this order. Invariant: an event is acknowledged (and
trimmed) only after it is on disk, and whatever is delivered again is known by its stream id and not archived
again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.codecs import FORGOTTEN_ROW
from featurestore.errors import EpochGone, StoreUnavailable
from featurestore.keys import digest_of
from featurestore.leases import Lease
from featurestore.ratings.stream import Events
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.archive.events import START, Position, Span, spans_of, without_user
from trainer.archive.log import EpochArchive
from trainer.archive.positions import format_position, item_ids, tails, to_table
from trainer.archive.rebuild import is_incomplete, rebuild
from trainer.archive.segments import Step, no_step
from trainer.errors import ArchiveFailedError
from trainer.retry import patiently
from trainer.threads import Threads

# The store holds a blocking read so long; a stop, and the other epoch's reader, wait for it at most.
_BLOCK_MS = 100
# Whatever is in the archive of a user who is forgotten came before that: all of it goes.
_ALL = 2**62
# Users that were just erased, so that the command that asks for it does not search the archive again.
_REMEMBERED = 1_000


class Listener(Protocol):
    """Who wants to know what was archived. Called on the event loop."""

    def archived(self, epoch: int, table: pa.Table) -> None:
        """These events are on disk."""

    async def forget(self, epoch: int, user_id: bytes) -> None:
        """Take a user out of whatever was derived from the archive."""


class EpochConsumer:
    """The one reader of an epoch's streams."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        archive: EpochArchive,
        listener: Listener,
        threads: Threads,
        *,
        batch_events: int,
        linger_s: float,
        step: Step = no_step,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = archive.epoch
        self.archive = archive
        self._store = store
        self._lease = lease
        self._listener = listener
        self._threads = threads
        self._count = max(1, batch_events // store.config.partitions)
        self._linger_s = linger_s
        self._step = step
        self._clock = clock
        self.positions: dict[int, Position] = {}
        self.archived_events = 0
        self.first_new_at: float | None = None
        self._moved = asyncio.Condition()
        self._state: Literal["new", "consuming", "ended"] = "new"
        self._between: asyncio.Queue[tuple[Callable[[], Awaitable[None]], asyncio.Event]]
        self._between = asyncio.Queue(maxsize=1_000)
        self._erased: OrderedDict[bytes, None] = OrderedDict()

    async def run(self) -> None:
        """Consume until cancelled. Raises `LeaseLost`, `EpochGone`; waits out an unreachable store and
        a full disk.
        """
        try:
            await self._prepare()
            await self._consume()
        finally:
            async with self._moved:
                self._state = "ended"
                self._moved.notify_all()

    async def ready(self) -> None:
        """Return when the archive is known to be complete. Raises `EpochGone` when there is nothing to
        consume.
        """
        await self._until(lambda: self._state == "consuming")

    async def _prepare(self) -> None:
        self._store.stream.restart(self.epoch)
        self._take_stock()
        ends = await patiently("tails", lambda: tails(self._store, self.epoch))
        if is_incomplete(self.archive.snapshot(), ends, holes=self.archive.has_holes()):
            await self._rebuild()
        async with self._moved:
            self._state = "consuming"
            self._moved.notify_all()

    async def _consume(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            await self._do_between()
            began_at = self._clock()
            try:
                events = await self._store.stream.read(self.epoch, self._lease, self._count, _BLOCK_MS)
                if len(events):
                    await self._take(events)
                backoff.reset()
            except StoreUnavailable as exc:
                log.warning("consume_waits", epoch=self.epoch, failures=backoff.failures + 1, error=str(exc))
                # What was read may not be archived.
                self._store.stream.restart(self.epoch)
                await asyncio.sleep(backoff.next_s())
                continue
            if len(events) and not events.more:
                # Batches far apart enough that a slow stream does not make a file of each event.
                await asyncio.sleep(max(0.0, self._linger_s - (self._clock() - began_at)))

    async def reached(self, targets: Mapping[int, Position]) -> None:
        """Return when everything up to `targets` is archived. Raises `EpochGone` when that will not be."""
        await self._until(
            lambda: all(self.positions.get(p, START) >= target for p, target in targets.items())
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._state == "ended" or condition())
        if self._state == "ended" and not condition():
            raise EpochGone(self.epoch)

    async def repair(self) -> None:
        """Rebuild the archive from the store's histories, between two batches."""
        await self._ask_between(self._rebuild)

    async def erase(self, user_id: bytes) -> None:
        """Make sure that the archive has nothing of a user whom the store does not know (any more)."""
        await self._ask_between(partial(self._erase_unknown, user_id))

    async def _ask_between(self, work: Callable[[], Awaitable[None]]) -> None:
        done = asyncio.Event()
        await self._between.put((work, done))
        async with self._moved:
            await self._moved.wait_for(lambda: done.is_set() or self._state == "ended")
        if not done.is_set():
            raise EpochGone(self.epoch)

    async def _do_between(self) -> None:
        while not self._between.empty():
            work, done = self._between.get_nowait()
            await work()
            done.set()
            async with self._moved:
                self._moved.notify_all()

    async def _rebuild(self) -> None:
        await self._keep_trying(lambda: rebuild(self._store, self.archive, self._threads))
        self._take_stock()

    def _take_stock(self) -> None:
        snapshot = self.archive.snapshot()
        self.positions = dict(snapshot.positions)
        self.archived_events = sum(span.events for span in snapshot.spans.values())

    async def _erase_unknown(self, user_id: bytes) -> None:
        n, _ = await patiently("history", lambda: self._store.users.history(self.epoch, user_id))
        # Who has come back keeps what came after; what was before went with the mark in the stream.
        if n == 0 and digest_of(user_id) not in self._erased:
            await self._keep_trying(partial(self._erase, user_id))

    async def _take(self, events: Events) -> None:
        new = np.flatnonzero(is_new(events, self.positions))
        self._step("consume:read")
        if len(new):
            await self._archive(events, new)
        self._step("consume:archived")
        last = {p: format_position(span.last) for p, span in _spans(events, np.arange(len(events))).items()}
        await self._store.stream.done(self.epoch, self._lease, last)
        self._step("consume:done")

    async def _archive(self, events: Events, new: npt.NDArray[np.int64]) -> None:
        items = await item_ids(events.item_row[new], self._store.items(self.epoch))
        table = await self._threads.run(to_table, events, new, items)
        spans = _spans(events, new)
        forgotten = table["item_row"].to_numpy() == FORGOTTEN_ROW
        marks = new[forgotten]
        if len(marks):
            table = table.filter(pa.array(~forgotten))
        for mark in marks.tolist():
            user_id = events.users[int(events.user[mark])]
            table = without_user(table, user_id, int(events.n[mark]))
            await self._keep_trying(partial(self._erase, user_id))
        await self._keep_trying(partial(self._threads.run, self.archive.append, table, spans))
        async with self._moved:
            self.positions.update({p: span.last for p, span in spans.items()})
            self.archived_events += len(new)
            if self.first_new_at is None:
                self.first_new_at = self._clock()
            self._moved.notify_all()
        if table.num_rows:
            self._listener.archived(self.epoch, table)

    async def _erase(self, user_id: bytes) -> None:
        erased = await self._threads.run(self.archive.erase, user_id, _ALL)
        await self._listener.forget(self.epoch, user_id)
        self._erased[digest_of(user_id)] = None
        while len(self._erased) > _REMEMBERED:
            self._erased.popitem(last=False)
        log.event("user_erased", epoch=self.epoch, events=erased)

    async def _keep_trying(self, write: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff(0.2, 10.0)
        while True:
            try:
                await write()
            except ArchiveFailedError as exc:
                log.warning("archive_waits", epoch=self.epoch, failures=backoff.failures + 1, error=str(exc))
                await asyncio.sleep(backoff.next_s())
            else:
                return


def is_new(events: Events, positions: Mapping[int, Position]) -> npt.NDArray[np.bool_]:
    """Which events lie beyond the archived positions of their partitions."""
    new = np.ones(len(events), dtype=bool)
    for partition in np.unique(events.partition):
        ms, seq = positions.get(int(partition), (0, 0))
        after = (events.stream_ms > ms) | ((events.stream_ms == ms) & (events.stream_seq > seq))
        new &= (events.partition != partition) | after
    return new


def _spans(events: Events, rows: npt.NDArray[np.int64]) -> dict[int, Span]:
    return spans_of(events.partition[rows].astype(np.uint16), events.stream_ms[rows], events.stream_seq[rows])
