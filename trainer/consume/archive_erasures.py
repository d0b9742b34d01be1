"""Take users who were forgotten out of the archive and the fits of an epoch and out of the trash, beside
the consumer. Invariant: an erasure that has returned left nothing there from before its time, and took
nothing from after it.

A pass reads all of archive and trash: the erasures that wait share one, and passes take half of the time at
most.
"""

import asyncio
from collections.abc import Collection, Sequence

from featurestore.errors import StoreDamaged
from trainer import log
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS
from trainer.consume.consumer import EpochConsumer
from trainer.erasure.together import Together
from trainer.errors import Failures
from trainer.fit_job.folder import FitFolder
from trainer.item_updates.messages import ErasedUser, ItemUpdates
from trainer.retry import with_retries
from trainer.stage import Stage, Tools

# A pass rests as long as it took.
_REST = 1.0

Forgotten = tuple[bytes, int]
"""A user, and when it was forgotten, in milliseconds by the store's clock; 0 where that is not known."""


class ArchiveErasures(Stage):
    """The erasures of one epoch. `moving` is held while the trash is searched, and by whatever moves an epoch
    there.
    """

    def __init__(
        self,
        tools: Tools,
        archive: EpochArchive,
        consumer: EpochConsumer,
        fits: FitFolder,
        *,
        item_updates: ItemUpdates,
        moving: asyncio.Lock,
    ) -> None:
        super().__init__(tools)
        self._archive = archive
        self._consumer = consumer
        self._fits = fits
        self._trash = tools.root.trash
        self._ledger = tools.root.erasures
        self._moving = moving
        self._item_updates = item_updates
        self._passes = Together(self._pass, rest=_REST)

    async def erase(self, user_id: bytes, at_ms: int) -> None:
        """Return when neither a file of the epoch nor the trash has anything of a user from before this time.

        Raises `EpochGone`, `ArchiveFailedError` where a file cannot be read: it is to be called again.
        """
        await self._passes.run((user_id, at_ms))

    async def _returned(self, user_ids: Collection[bytes]) -> set[bytes]:
        """Return which users have a history again; all where that of one cannot be read."""
        try:
            users = await with_retries(self._store.users.stored, self._archive.epoch, list(user_ids))
        except StoreDamaged:
            # What came before they were forgotten is known by its time, too.
            return set(user_ids)
        return {user.user_id for user in users if user.n}

    async def _pass(self, wanted: Sequence[Forgotten]) -> None:
        forgotten: dict[bytes, int] = {}
        for user_id, at_ms in wanted:
            forgotten[user_id] = max(at_ms, forgotten.get(user_id, 0))
        # A user whom the store did not know has left no mark, and older copies may know that user.
        await with_retries(self._threads.run, self._ledger.add, list(forgotten.items()))
        epoch, failures, events = self._archive.epoch, Failures(), 0
        async with self._consumer.rewriting:
            # First: what is archived by now of a user without a history is from before.
            until = await self._consumer.archived()
            await self._threads.run(self._archive.require_readable)
            back = await self._returned(forgotten)
            before = {user_id: at if user_id in back else ALWAYS for user_id, at in forgotten.items()}
            with failures:
                events = await self._threads.run(self._archive.erase, before, until)
            # After the archive: a fit whose snapshot still had the users has begun by now, and is told.
            with failures:
                items = await self._threads.run(self._fits.erase, list(forgotten))
                # Once more: one that has returned meanwhile keeps what came since.
                back |= await self._returned(forgotten)
                for user_id, rows in items.items():
                    erased = ErasedUser(epoch, user_id, tuple(rows), has_returned=user_id in back)
                    await self._item_updates.put(erased)
        failures.throw()
        # What was replaced may know a user whom this epoch never knew. Nothing else waits for it.
        async with self._moving:
            wholly = {user_id: at_ms or ALWAYS for user_id, at_ms in forgotten.items()}
            in_trash = await self._threads.run(self._trash.erase, wholly)
        log.event("users_erased", epoch=epoch, users=len(forgotten), events=events, in_trash=in_trash)
