"""The epochs that a term reads: the live one, and one that is being prepared. Invariant: each has exactly one
consumer.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass

from featurestore.errors import EpochGone, StoreChanged
from trainer import log
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.item_list import write_items
from trainer.consume.archive_erasures import ArchiveErasures
from trainer.consume.consumer import EpochConsumer
from trainer.fit_job.folder import FitFolder
from trainer.item_updates.messages import ItemUpdates
from trainer.retry import with_retries
from trainer.stage import Stage, Tools


@dataclass(frozen=True, slots=True)
class OpenEpoch:
    """One epoch on this host: its ratings, its fits, and the consumer that adds to them,
    and what takes users out of them."""

    archive: EpochArchive
    fits: FitFolder
    consumer: EpochConsumer
    erasures: ArchiveErasures


class OpenEpochs(Stage):
    """Opens epochs on first use. Their consumers are tasks of `group`, which is the term's."""

    def __init__(self, tools: Tools, item_updates: ItemUpdates, group: asyncio.TaskGroup) -> None:
        super().__init__(tools)
        self._item_updates = item_updates
        self._group = group
        # Several stages ask for an epoch at once: one of them opens it, and it is not opened while it is
        # closed.
        self._opening = asyncio.Lock()
        self._open: dict[int, OpenEpoch] = {}
        self._consuming: dict[int, asyncio.Task[None]] = {}
        # Held while the trash is searched for a user, and while an epoch is moved there: else one that is
        # moved just then would be missed.
        self.moving = asyncio.Lock()
        # Counted: a service that got no answer may have asked twice for the same new epoch.
        self._claims: Counter[int] = Counter()

    def numbers(self) -> set[int]:
        """Return the epochs that are open now."""
        return set(self._open)

    def opened(self, number: int) -> OpenEpoch | None:
        """Return the epoch where it is open now."""
        return self._open.get(number)

    def archived_events(self) -> int:
        """Return how many events the largest archive has that is open now."""
        return max((epoch.consumer.archived_events for epoch in self._open.values()), default=0)

    async def leaving(self, needed: set[int]) -> set[int]:
        """Return the epochs that are stored or archived and not `needed`: upkeep removes them from the store
        and moves them to the trash.
        """
        stored = await with_retries(self._store.generations.epochs)
        return (stored | set(await self._threads.run(self._root.epochs))) - needed

    async def open(self, number: int) -> OpenEpoch:
        """Return the epoch once its archive is known to be complete. Raises `EpochGone`, `StoreChanged`."""
        epoch = self._open.get(number)
        if epoch is None or not epoch.consumer.consuming:
            epoch = await self.begin(number)
            await epoch.consumer.ready()
        return epoch

    async def begin(self, number: int) -> OpenEpoch:
        """Return the epoch, its consumer started, its archive perhaps not complete yet."""
        if number == 0:
            raise StoreChanged("the store was emptied: it names no epoch")
        async with self._opening:
            if number not in self._open:
                archive = await with_retries(self._threads.run, self._root.epoch, number)
                epoch = self._open[number] = self._with_consumer(archive)
                self._consuming[number] = self._group.create_task(
                    self._consume(epoch.consumer), name=f"consume epoch {number}"
                )
            return self._open[number]

    def _with_consumer(self, archive: EpochArchive) -> OpenEpoch:
        for damage in archive.damaged:
            log.warning("segment_damaged", epoch=archive.epoch, segment=damage.path.name, why=damage.why)
        fits = FitFolder(archive.directory)
        consumer = EpochConsumer(self._tools, archive, self._item_updates)
        erasures = ArchiveErasures(
            *(self._tools, archive, consumer, fits), item_updates=self._item_updates, moving=self.moving
        )
        return OpenEpoch(archive, fits, consumer, erasures)

    async def finish(self, number: int) -> None:
        """Archive all that was acknowledged in an epoch that takes no more ratings, and its items. Raises
        `ArchiveFailedError` where a file of it cannot be read.
        """
        await self.close(number)
        # Not with retries: other epochs are tidied up meanwhile.
        epoch = self._with_consumer(await self._threads.run(self._root.epoch, number))
        await epoch.consumer.drain()
        self._step("epoch:drained")
        registry = self._store.items(number)
        await with_retries(registry.refresh)
        # None where a removal that was cut off has taken the registry: the list is from before.
        if len(registry):
            await with_retries(self._threads.run, write_items, epoch.archive.directory, registry.ids)

    async def _consume(self, consumer: EpochConsumer) -> None:
        try:
            await consumer.run()
        except EpochGone:
            # It was abandoned or replaced: upkeep removes what is left of it.
            log.event("epoch_gone", epoch=consumer.epoch)
            self._open.pop(consumer.epoch, None)

    async def close(self, number: int) -> None:
        """End the consumer of an epoch; what it does just now is finished first."""
        async with self._opening:
            self._open.pop(number, None)
            task = self._consuming.pop(number, None)
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    def claim(self, number: int) -> None:
        """Keep an epoch that is being prepared from being abandoned, until `release`."""
        self._claims[number] += 1

    def release(self, number: int) -> None:
        """Take one claim back."""
        self._claims[number] -= 1

    def is_claimed(self, number: int) -> bool:
        """Say whether a command that prepares this epoch is open."""
        return self._claims[number] > 0
