"""Upkeep beside the pipeline: follow the pointer, merge segments, remove what is no longer needed.
Invariant: nothing is removed that is live, is being prepared, or may become live again.
"""

import asyncio
import math
import time
from dataclasses import dataclass, field

from featurestore.errors import LeaseLost, StoreChanged, StoreDamaged, StoreError, StoreUnavailable
from featurestore.generations.manifest import Pointer
from featurestore.leases import Lease
from featurestore.store import Store
from trainer import log
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step
from trainer.archive.trash import Why, surplus
from trainer.consume.open_epochs import OpenEpochs
from trainer.errors import ArchiveFailedError
from trainer.publication.forgotten import ForgottenUsers
from trainer.publication.switch import Switch
from trainer.retry import with_retries
from trainer.settings import TrainerSettings
from trainer.threads import Threads

# A rollback by a person is followed within a second, which is also what the docs promise for new items.
_ROUND_S = 1.0
# Entries leave the trash after days: a minute more or less is nothing.
_TRASH_S = 60.0
# Between small steps of removing: leaves the store to lookups.
REMOVAL_PAUSE_S = 0.002


@dataclass
class Upkeep:
    """Tidies up once a second for one term."""

    store: Store
    lease: Lease
    root: ArchiveRoot
    epochs: OpenEpochs
    switch: Switch
    forgotten: ForgottenUsers
    settings: TrainerSettings
    threads: Threads
    step: Step
    # What the trash holds, as of the last look.
    trash_bytes: int = field(init=False, default=0)
    _emptied_at: float = field(init=False, default=-math.inf)

    async def run(self) -> None:
        """Do a round a second until cancelled."""
        while True:
            # First of all, so that the commands that wait are taken before a new epoch is given up for lack
            # of one.
            await asyncio.sleep(_ROUND_S)
            if self.root.taken_away:
                raise LeaseLost("another trainer has the archive")
            try:
                pointer = await self.store.generations.live()
                await self.switch.follow(pointer)
                await self._follow_arms(pointer)
                await self._merge(await self._remove_unused())
                if time.monotonic() - self._emptied_at > _TRASH_S:
                    self._emptied_at = time.monotonic()
                    await self._empty_trash()
            except (LeaseLost, StoreChanged):
                raise
            except StoreUnavailable:
                # The consumer and the refitter say so, at their first failure.
                pass
            except (StoreError, ArchiveFailedError) as exc:
                log.warning("upkeep_failed", error=str(exc))

    async def _follow_arms(self, pointer: Pointer) -> None:
        try:
            await self.switch.follow_arms(pointer)
        except StoreDamaged as exc:
            # The archive does not rest on experiments: it is merged and tidied up all the same.
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
        stored = await self.store.generations.epochs()
        pointer = await self.store.generations.live()
        # After the pointer: of a store that was emptied meanwhile it would name nothing that is needed.
        await self.store.require_same()
        await self._abandon(pointer)
        needed = {pointer.epoch, pointer.pending}
        if pointer.pending == 0:
            # While partitions may still write to what was live, nothing of it is removed.
            for number in sorted(stored - needed):
                if number < pointer.epoch:
                    await self.epochs.finish(number)
                    archived.append(number)
                await self.epochs.close(number)
                self.step("epoch:archived")
                await self.store.generations.remove_epoch(number, REMOVAL_PAUSE_S, lease=self.lease)
                self.step("epoch:removed")
            for number in sorted((opened | set(archived)) - needed):
                await self.epochs.close(number)
                await self._discard(number, pointer)
        generations = {pointer.generation, pointer.previous, *self.switch.arms} - {0}
        epoch = await self.epochs.open(pointer.epoch)
        await self.threads.run(epoch.fits.keep, generations)
        await self.forgotten.release(pointer.epoch, generations)
        return pointer

    async def _discard(self, number: int, pointer: Pointer) -> None:
        """Move the archive of an epoch to the trash."""
        archive = await self.threads.run(self.root.epoch, number)
        if number > pointer.last_epoch and archive.snapshot().spans:
            raise StoreChanged(f"the store has not begun epoch {number}, which is archived")
        async with self.epochs.moving:
            # Users who were forgotten when their mark went to the epoch after this one only.
            digests = (await self.store.ratings.forgotten(pointer.epoch)).keys()
            await self.threads.run(archive.erase_digests, digests)
            why: Why = "replaced" if number < pointer.epoch else "abandoned"
            entry = await self.threads.run(self.root.discard, number, why)
        if entry is None:
            log.event("epoch_removed", epoch=number)
        else:
            log.event("epoch_to_trash", epoch=number, why=why, entry=entry.path.name, ratings=entry.ratings)

    async def _empty_trash(self) -> None:
        """Remove from the trash what is too old, or too much."""
        entries = await self.threads.run(self.root.trash.entries)
        for entry, why in surplus(
            entries, time.time(), 86_400.0 * self.settings.trash_days, self.settings.trash_bytes
        ):
            # Before it is gone: the line is all that is left to say so.
            log.warning(
                "trash_removed",
                entry=entry.path.name,
                why=why,
                ratings=entry.ratings,
                bytes=entry.size_bytes,
            )
            await self.threads.run(self.root.trash.remove, entry)
            entries.remove(entry)
        self.trash_bytes = sum(entry.size_bytes for entry in entries)

    async def _abandon(self, pointer: Pointer) -> None:
        """Give up a new epoch that no command has asked for in `abandon_s`."""
        pending = pointer.pending
        if pending in {0, pointer.epoch} or self.epochs.is_claimed(pending):
            return
        now = await self.store.time()
        if now - pointer.pending_since >= self.settings.abandon_s:
            log.warning("epoch_abandoned", epoch=pending)
            self.step("epoch:abandon")
            await with_retries(self.store.epochs.abandon, pending, lease=self.lease)
