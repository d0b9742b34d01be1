"""Upkeep beside the pipeline: follow the pointer, merge segments, remove what is no longer needed.
Invariant: nothing is removed that is live, is being prepared, or may become live again.
"""

import asyncio
from dataclasses import dataclass

from featurestore.errors import LeaseLost, StoreError, StoreUnavailable
from featurestore.generations.manifest import Pointer
from featurestore.store import Store
from trainer import log
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step
from trainer.consume.open_epochs import OpenEpochs
from trainer.errors import ArchiveFailedError
from trainer.publication.forgotten import ForgottenUsers
from trainer.publication.switch import Switch
from trainer.retry import with_retries
from trainer.threads import Threads

# A rollback by a person is followed within a second, which is also what the docs promise for new items.
_ROUND_S = 1.0
# Between small steps of removing: leaves the store to lookups.
REMOVAL_PAUSE_S = 0.002


@dataclass
class Upkeep:
    """Tidies up once a second for one term."""

    store: Store
    root: ArchiveRoot
    epochs: OpenEpochs
    switch: Switch
    forgotten: ForgottenUsers
    abandon_s: float
    threads: Threads
    step: Step

    async def run(self) -> None:
        """Do a round a second until cancelled."""
        while True:
            # First of all, so that the commands that wait are taken before a new epoch is given up for lack
            # of one.
            await asyncio.sleep(_ROUND_S)
            try:
                await self.switch.follow(await self.store.generations.live())
                await self._merge(await self._remove_unused())
            except LeaseLost:
                raise
            except StoreUnavailable:
                # The consumer and the refitter say so, at their first failure.
                pass
            except (StoreError, ArchiveFailedError) as exc:
                log.warning("upkeep_failed", error=str(exc))

    async def _merge(self, pointer: Pointer) -> None:
        for number in {pointer.epoch, pointer.pending} - {0}:
            epoch = await self.epochs.open(number)
            if await self.threads.run(epoch.archive.merge):
                self.step("tend:merged")
            if epoch.archive.damaged and not epoch.archive.rebuilding:
                for damage in epoch.archive.damaged:
                    log.warning("segment_damaged", epoch=number, segment=damage.path.name, why=damage.why)
                await epoch.consumer.repair()

    async def _remove_unused(self) -> Pointer:
        """Remove what is no longer needed by the pointer that is returned."""
        # What is known here before the pointer is read, and by it is neither live nor pending, never will be.
        # The other way round an epoch that begins in between would lose its reader and its archive.
        opened, archived = self.epochs.numbers(), await self.threads.run(self.root.epochs)
        pointer = await self.store.generations.live()
        await self._abandon(pointer)
        needed = {pointer.epoch, pointer.pending}
        for number in opened - needed:
            await self.epochs.close(number)
        if pointer.pending == 0:
            # While partitions may still write to what was live, nothing of it is removed.
            await self.store.generations.remove_leftovers(REMOVAL_PAUSE_S)
            for number in set(archived) - needed:
                await self.threads.run(self.root.remove_epoch, number)
                log.event("epoch_removed", epoch=number)
        generations = {pointer.generation, pointer.previous} - {0}
        epoch = await self.epochs.open(pointer.epoch)
        await self.threads.run(epoch.fits.keep, generations)
        await self.forgotten.release(pointer.epoch, generations)
        return pointer

    async def _abandon(self, pointer: Pointer) -> None:
        """Give up a new epoch that no command has asked for in `abandon_s`."""
        pending = pointer.pending
        if pending in {0, pointer.epoch} or self.epochs.is_claimed(pending):
            return
        now = await self.store.time()
        if now - pointer.pending_since >= self.abandon_s:
            log.warning("epoch_abandoned", epoch=pending)
            await with_retries(self.store.epochs.abandon, pending)
