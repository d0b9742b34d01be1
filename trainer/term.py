"""One term of leadership: what runs, and how it hangs together. Invariant: when `run` ends, by whatever,
nothing of this term is still writing.
"""

import asyncio
from functools import partial
from pathlib import Path

import pyarrow as pa

from factors import Scale
from featurestore.errors import EpochGone, GenerationUnknown, StoreError, StoreUnavailable
from featurestore.generations.manifest import Pointer
from featurestore.store import Store
from featurestore.wire.functions import command
from trainer import log
from trainer.archive.consumer import EpochConsumer
from trainer.archive.log import Archive
from trainer.archive.positions import tails
from trainer.archive.segments import Step, no_step
from trainer.commands import Orders
from trainer.errors import ArchiveFailedError
from trainer.fit_job.folder import FitFolder
from trainer.item_updates.keeper import ItemKeeper
from trainer.leadership import Leadership
from trainer.publication.publish import Publisher
from trainer.refit import Ending, Failure, Fits
from trainer.retry import patiently
from trainer.settings import TrainerSettings
from trainer.threads import Threads

_TEND_S = 1.0
# Between small steps of removing: leaves the store to lookups.
_PAUSE_S = 0.002


class Leader:
    """The trainer while it leads."""

    def __init__(
        self,
        settings: TrainerSettings,
        store: Store,
        leadership: Leadership,
        archive: Archive,
        *,
        step: Step = no_step,
    ) -> None:
        self._settings = settings
        self._store = store
        self._leadership = leadership
        self._archive = archive
        self._step = step
        self._threads = Threads()
        self._consumers: dict[int, asyncio.Task[EpochConsumer]] = {}
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._folders: dict[int, FitFolder] = {}
        self.items = ItemKeeper(store, self._threads, step=step)
        self.fits = Fits(
            settings,
            store,
            lease=leadership.lease,
            items=self.items,
            consumer=self._consumer,
            folder=self._folder,
            threads=self._threads,
            step=step,
        )
        self._group = asyncio.TaskGroup()
        self._orders: Orders | None = None

    async def run(self) -> None:
        """Lead until cancelled. Raises an exception group with `LeaseLost`, or with what nobody planned
        for.
        """
        try:
            async with self._group as group:
                group.create_task(self._leadership.keep(), name="keep the lease")
                await self._begin()
                self._orders = Orders(self._store, self, group)
                group.create_task(self._orders.run(), name="take commands")
                group.create_task(self.fits.run(), name="refit")
                group.create_task(self.items.run(), name="fold items in")
                group.create_task(self._tend(), name="tend")
        finally:
            self._leadership.end()
            await self._threads.drained()

    async def fit(self, epoch: int) -> Ending:
        """See `Duties`. An epoch that was replaced meanwhile is not fitted: the live one is meant."""
        pointer = await patiently("live", self._store.generations.live)
        return await self.fits.ask(epoch if epoch == pointer.pending else pointer.epoch)

    async def begin_history(self, epoch: int) -> Ending:
        """See `Duties`."""
        pointer = await patiently("live", self._store.generations.live)
        if pointer.epoch == epoch:
            # A leader before this one came so far and could not tell.
            await self._finish_epoch(epoch)
            return pointer.generation
        if pointer.pending != epoch:
            return Failure("epoch_gone", f"epoch {epoch} is not being prepared any more")
        ending = await self.fits.ask(epoch)
        if not isinstance(ending, Failure):
            await self._finish_epoch(epoch)
        return ending

    async def erase(self, user_id: bytes) -> None:
        """See `Duties`."""
        pointer = await patiently("live", self._store.generations.live)
        for epoch in {pointer.epoch, pointer.pending} - {0}:
            consumer = await self._consumer(epoch)
            ends = await patiently("tails", partial(tails, self._store, epoch))
            await consumer.reached({partition: end.last for partition, end in ends.items()})
            await consumer.erase(user_id)

    def archived(self, epoch: int, table: pa.Table) -> None:
        """See `Listener`."""
        self.items.archived(epoch, table)
        self.fits.wake()

    async def forget(self, epoch: int, user_id: bytes) -> None:
        """See `Listener`."""
        self.fits.forget(epoch, user_id)
        await self._threads.run(self._folder(epoch).erase, user_id)
        self.items.forget(epoch, user_id)

    async def _begin(self) -> None:
        """Finish what an earlier leader left, and make sure that something is live."""
        store = self._store
        pointer = await patiently("live", store.generations.live)
        if pointer.generation == 0:
            low, high, step = self._settings.scale
            publisher = Publisher(store, self._leadership.lease, step=self._step)
            published = await publisher.publish_prior(
                pointer.epoch, Scale(low, high, step), self._settings.engine
            )
            log.event("prior_published", generation=published.meta.summary.generation)
            pointer = await patiently("live", store.generations.live)
        await patiently("prune", lambda: store.generations.prune(_PAUSE_S))
        for epoch in {pointer.epoch, pointer.pending} - {0}:
            self._start_consumer(epoch)
            await self._threads.run(self._folder(epoch).clear_new)
        await self._follow(pointer)
        if pointer.pending == pointer.epoch:
            await self._finish_epoch(pointer.epoch)

    async def _consumer(self, epoch: int) -> EpochConsumer:
        return await asyncio.shield(self._start_consumer(epoch))

    def _start_consumer(self, epoch: int) -> "asyncio.Task[EpochConsumer]":
        if epoch not in self._consumers:
            self._consumers[epoch] = self._group.create_task(
                self._open_consumer(epoch), name=f"open epoch {epoch}"
            )
        return self._consumers[epoch]

    async def _open_consumer(self, epoch: int) -> EpochConsumer:
        archive = await self._threads.run(self._archive.epoch, epoch)
        for damage in archive.damaged:
            log.warning("segment_damaged", epoch=epoch, segment=damage.path.name, why=damage.why)
        consumer = EpochConsumer(
            self._store,
            self._leadership.lease,
            archive,
            self,
            self._threads,
            batch_events=self._settings.batch_events,
            linger_s=self._settings.linger_s,
            step=self._step,
        )
        self._reading[epoch] = self._group.create_task(self._consume(consumer), name=f"consume epoch {epoch}")
        await consumer.ready()
        return consumer

    async def _consume(self, consumer: EpochConsumer) -> None:
        try:
            await consumer.run()
        except EpochGone:
            # Abandoned or replaced; `_tend` sees to what is left of it.
            log.event("epoch_gone", epoch=consumer.epoch)
            self._consumers.pop(consumer.epoch, None)

    def _folder(self, epoch: int) -> FitFolder:
        if epoch not in self._folders:
            self._folders[epoch] = FitFolder(self._archive.folder(epoch))
        return self._folders[epoch]

    async def _follow(self, pointer: Pointer) -> None:
        """Fold items in for what is live, whoever made it so."""
        if pointer.generation == 0 or self.items.generation == (pointer.epoch, pointer.generation):
            return
        consumer = await self._consumer(pointer.epoch)
        try:
            meta = await patiently(
                "meta", lambda: self._store.generations.meta(pointer.epoch, pointer.generation)
            )
        except GenerationUnknown:
            return
        result = await self._threads.run(self._folder(pointer.epoch).read, pointer.generation)
        await self.items.switch(meta, result, consumer.archive.snapshot)

    async def _finish_epoch(self, epoch: int) -> None:
        await patiently("finish_epoch", lambda: self._store.ratings.finish_epoch(epoch))
        self._step("epoch:finished")

    async def _tend(self) -> None:
        """Follow the pointer, merge, and remove what is no longer needed, until cancelled."""
        while True:
            try:
                await self._follow(await self._store.generations.live())
                await self._merge(await self._clear())
            except StoreUnavailable:
                pass
            except (StoreError, ArchiveFailedError) as exc:
                log.warning("tending_failed", error=str(exc))
            await asyncio.sleep(_TEND_S)

    async def _merge(self, pointer: Pointer) -> None:
        for epoch in {pointer.epoch, pointer.pending} - {0}:
            consumer = await self._consumer(epoch)
            if await self._threads.run(consumer.archive.merge):
                self._step("tend:merged")
            if consumer.archive.damaged and not consumer.archive.rebuilding:
                for damage in consumer.archive.damaged:
                    log.warning("segment_damaged", epoch=epoch, segment=damage.path.name, why=damage.why)
                await consumer.repair()

    async def _clear(self) -> Pointer:
        """Remove what is no longer needed by the pointer that is returned."""
        # What is known here before the pointer is read, and by it is neither live nor pending, never will be.
        # The other way round an epoch that begins in between would lose its reader and its archive.
        read, archived = list(self._reading), await self._threads.run(self._archive.epochs)
        pointer = await self._store.generations.live()
        await self._abandon(pointer)
        kept = {pointer.epoch, pointer.pending}
        for epoch in set(read) - kept:
            if (task := self._reading.pop(epoch, None)) is not None:
                self._consumers.pop(epoch, None)
                task.cancel()
                await asyncio.wait([task])
        if pointer.pending == 0:
            # While partitions may still write to what was live, nothing of it is removed.
            await self._store.generations.remove_leftovers(_PAUSE_S)
            for epoch in set(archived) - kept:
                self._folders.pop(epoch, None)
                await self._threads.run(self._archive.remove_epoch, epoch)
                log.event("epoch_removed", epoch=epoch)
        generations = {pointer.generation, pointer.previous} - {0}
        await self._threads.run(self._folder(pointer.epoch).keep, generations | self.fits.publishing)
        await self.fits.release_forgotten(pointer.epoch, generations)
        return pointer

    async def _abandon(self, pointer: Pointer) -> None:
        """Give up a new history that nobody speaks for."""
        pending = pointer.pending
        if pending in {0, pointer.epoch} or self._orders is None or pending in self._orders.epochs:
            return
        now = float((await command(self._store.bulk, b"TIME"))[0])
        if now - pointer.pending_since < self._settings.abandon_s:
            return
        log.warning("epoch_abandoned", epoch=pending)
        await self._store.ratings.abandon_epoch(pending)


def archive_root(settings: TrainerSettings) -> Path:
    """The folder of a namespace's archive."""
    return settings.archive_dir / settings.store.namespace
