"""Upkeep beside the pipeline: follow the pointer, merge segments, remove what is no longer needed, keep what
the store has besides ratings in the archive.
Invariant: nothing is removed that is live, is being prepared, or may become live again.

What is removed may take minutes to go. Meanwhile pointers are followed and files looked at as at other times:
how long a file that cannot be read is waited for is counted by these looks.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine

from featurestore.errors import LeaseLost, StoreChanged, StoreError, StoreUnavailable
from featurestore.generations.manifest import Pointer
from featurestore.store import Store
from trainer import log
from trainer.archive.kept import kept_version
from trainer.archive.root import ArchiveRoot
from trainer.archive.trash import Overdue, Why, surplus
from trainer.consume.open_epochs import OpenEpochs
from trainer.errors import ArchiveFailedError
from trainer.publication.forgotten import ForgottenUsers
from trainer.publication.switch import Switch
from trainer.retry import with_retries
from trainer.stage import Stage, Tools
from trainer.threads import Threads

# A rollback by a person is followed within a second, which is also what the docs promise for new items.
_ROUND_S = 1.0
# Entries leave the trash after days: a minute more or less is nothing.
_TRASH_S = 60.0
# Between small steps of removing: leaves the store to lookups.
REMOVAL_PAUSE_S = 0.002

# All that is no rating is read anew after a change: a tenth of the time at most goes into that.
_KEEP_REST = 9.0
# After a failure, so that it is told once a minute.
_KEEP_AGAIN_S = 60.0


class KeptFile:
    """The file of what the store has besides ratings, for one term. It is that of the archive's own store:
    what was read while the store was emptied is not written. `clock`: seconds that never go back.
    """

    def __init__(
        self,
        store: Store,
        root: ArchiveRoot,
        threads: Threads,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._root = root
        self._threads = threads
        self._clock = clock
        self._due = -math.inf
        # Which version the file has; None before it was looked at.
        self._version: str | None = None

    async def follow(self) -> None:
        """Write the file anew where anything has changed since. Raises `StoreError`, `ArchiveFailedError`."""
        began = self._clock()
        if began < self._due:
            return
        self._due = began + _KEEP_AGAIN_S
        await self._follow()
        ended = self._clock()
        self._due = ended + _KEEP_REST * (ended - began)

    async def _follow(self) -> None:
        if self._version is None:
            self._version = await self._threads.run(kept_version, self._root.root)
        kept = self._store.kept
        if await kept.version() == self._version:
            return
        version, data = await kept.packed(users=False)
        changed = await kept.version() != version
        # After all of it: an emptied store would leave nothing in the file that brings it back.
        await self._store.require_same()
        await self._threads.run(self._root.keep, data)
        # What changed meanwhile may be in it or not, and may be changed back.
        self._version = "" if changed else version


class Upkeep(Stage):
    """Tidies up once a second for one term."""

    def __init__(self, tools: Tools, epochs: OpenEpochs, switch: Switch, forgotten: ForgottenUsers) -> None:
        super().__init__(tools)
        self._epochs = epochs
        self._switch = switch
        self._forgotten = forgotten
        # What the trash holds, as of the last look.
        self.trash_bytes = 0
        self._emptied_at = -math.inf
        # By the same clock: when objects were looked for that no commit names. The term has begun with that.
        # Whether what is live is known here: nothing is removed beside what cannot be read.
        self._followed = False
        # The new epoch that was given up last: no number is given twice.
        self._given_up = 0
        # Held while epochs are merged, and while it is found which are to be removed or given up.
        self._at_epochs = asyncio.Lock()
        self._overdue = Overdue()

    async def run(self) -> None:
        """Do a round of each kind a second until cancelled. Raises an exception group with `LeaseLost` or
        `StoreChanged`.
        """
        kept = KeptFile(self._store, self._root, self._threads)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds(self._follow), name="follow and merge")
            group.create_task(self._rounds(self._remove_unused), name="remove what is unused")
            group.create_task(self._rounds(kept.follow), name="keep what is no rating")

    async def _rounds(self, round_of: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            # First of all, so that the commands that wait are taken before a new epoch is given up for lack
            # of one.
            await asyncio.sleep(_ROUND_S)
            if self._root.taken_away:
                raise LeaseLost("another trainer has the archive")
            await self._guarded(round_of())

    async def _guarded(self, step: Coroutine[None, None, object]) -> None:
        """Await a step; what is in the way of it is told, and is in the way of no other."""
        try:
            await step
        except (LeaseLost, StoreChanged):
            raise
        except StoreUnavailable:
            # The consumer and the refitter say so, at their first failure.
            pass
        except (StoreError, ArchiveFailedError) as exc:
            log.warning("upkeep_failed", error=str(exc))

    async def _follow(self) -> None:
        async with self._at_epochs:
            self._followed = False
            pointer = await self._store.generations.live()
            # After the pointer: of a store that was emptied meanwhile it would name nothing that is needed.
            await self._store.require_same()
            await self._switch.follow(pointer)
            self._followed = True
            await self._guarded(self._remove_fits(pointer))
            for number in {pointer.epoch, pointer.pending} - {0}:
                # What is given up is not read anew while it goes; but it may have gone live just before.
                if number == pointer.epoch or number != self._given_up:
                    await self._guarded(self._merge(number))

    async def _merge(self, number: int) -> None:
        epoch = await self._epochs.open(number)
        if await self._threads.run(epoch.archive.merge):
            self._step("tend:merged")
        if epoch.archive.damaged and not epoch.archive.rebuilding:
            for damage in epoch.archive.damaged:
                log.warning("segment_damaged", epoch=number, segment=damage.path.name, why=damage.why)
            await epoch.consumer.repair()

    async def _remove_unused(self) -> None:
        # No epoch that is found here is merged any more: merges follow a pointer that is read later.
        async with self._at_epochs:
            if not self._followed:
                return
            pointer, stored, unused = await self._unused()
            abandoned = await self._to_abandon(pointer)
        # No longer held: a large epoch goes in many steps, and a store that is away is waited for.
        if abandoned:
            await self._guarded(self._abandon(abandoned))
        for number in unused:
            await self._guarded(self._remove(number, pointer, stored=number in stored))
        if time.monotonic() - self._emptied_at > _TRASH_S:
            self._emptied_at = time.monotonic()
            await self._guarded(self._empty_trash())

    async def _unused(self) -> tuple[Pointer, set[int], list[int]]:
        """Return the pointer, the epochs of which something is stored, and those that are no longer needed by
        the pointer, in order.
        """
        # What is known here before the pointer is read, and by it is neither live nor pending, never will be.
        # The other way round an epoch that begins in between would lose its reader and its archive.
        opened, archived = self._epochs.numbers(), await self._threads.run(self._root.epochs)
        stored = await self._store.generations.epochs()
        pointer = await self._store.generations.live()
        # After the pointer: of a store that was emptied meanwhile it would name nothing that is needed.
        await self._store.require_same()
        if pointer.pending:
            # While partitions may still write to what was live, nothing of it is removed.
            return pointer, stored, []
        return pointer, stored, sorted((stored | opened | set(archived)) - {pointer.epoch, 0})

    async def _remove(self, number: int, pointer: Pointer, *, stored: bool) -> None:
        """Remove an epoch from the store, once all of it is archived, and move its archive to the trash."""
        if stored and number < pointer.epoch:
            await self._epochs.finish(number)
        await self._epochs.close(number)
        if stored:
            self._step("epoch:archived")
            await self._store.generations.remove_epoch(number, REMOVAL_PAUSE_S, lease=self._lease)
            self._step("epoch:removed")
        if await self._threads.run(self._root.folder(number).exists):
            await self._discard(number, pointer)

    async def _remove_fits(self, pointer: Pointer) -> None:
        generations = {pointer.generation, pointer.previous} - {0}
        epoch = await self._epochs.open(pointer.epoch)
        await self._threads.run(epoch.fits.keep, generations)
        await self._forgotten.release(pointer.epoch, generations)

    async def _discard(self, number: int, pointer: Pointer) -> None:
        """Move the archive of an epoch to the trash."""
        async with self._epochs.moving:
            try:
                archive = await self._threads.run(self._root.epoch, number)
                if number > pointer.last_epoch and archive.snapshot().spans:
                    raise StoreChanged(f"the store has not begun epoch {number}, which is archived")
                # Users who were forgotten when their mark went to the epoch after this one only.
                digests = (await self._store.ratings.forgotten(pointer.epoch)).keys()
                await self._threads.run(archive.erase_digests, digests)
            except ArchiveFailedError as exc:
                if number > pointer.last_epoch:
                    raise
                # It goes to the trash unread: that is searched for each of these users once more.
                log.warning("upkeep_failed", error=str(exc))
            why: Why = "replaced" if number < pointer.epoch else "abandoned"
            entry = await self._threads.run(self._root.discard, number, why)
        if entry is None:
            log.event("epoch_removed", epoch=number)
        else:
            log.event("epoch_to_trash", epoch=number, why=why, entry=entry.path.name, ratings=entry.ratings)

    async def _empty_trash(self) -> None:
        """Remove from the trash what is too old, or too much."""
        entries = await self._threads.run(self._root.trash.entries)
        keep_s = 86_400.0 * self._settings.trash_days
        found = surplus(entries, time.time(), keep_s, self._settings.trash_bytes)
        for entry, why in self._overdue.confirmed(found, time.monotonic(), keep_s):
            # Before it is gone: the line is all that is left to say so.
            log.warning(
                "trash_removed",
                entry=entry.path.name,
                why=why,
                ratings=entry.ratings,
                bytes=entry.size_bytes,
            )
            await self._threads.run(self._root.trash.remove, entry)
            entries.remove(entry)
        self.trash_bytes = sum(entry.size_bytes for entry in entries)

    async def _to_abandon(self, pointer: Pointer) -> int:
        """Return the new epoch that no command has asked for in `abandon_s`, 0 for none."""
        pending = pointer.pending
        if pending in {0, pointer.epoch} or self._epochs.is_claimed(pending):
            return 0
        now = await self._store.time()
        return pending if now - pointer.pending_since >= self._settings.abandon_s else 0

    async def _abandon(self, number: int) -> None:
        """Give up a new epoch. Its archive goes to the trash in a later round."""
        self._given_up = number
        log.warning("epoch_abandoned", epoch=number)
        self._step("epoch:abandon")
        await with_retries(self._store.epochs.abandon, number, lease=self._lease)
