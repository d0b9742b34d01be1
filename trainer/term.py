"""One term of leadership: its stages, and the queues between them. Invariant: when `run` ends, however it
ends, nothing of this term is still writing.

    stream -> EpochConsumer -> archive -> (item updates) -> ItemUpdater -> deltas
                                  |             ^
                                  v             |
    commands -> CommandHandler -> (requests) -> Refitter: decide, snapshot, fit, judge, publish, switch
"""

import asyncio

from trainer.capacity import RoomWatch
from trainer.commands import CommandHandler
from trainer.consume.open_epochs import OpenEpochs
from trainer.erasure.file_rewrites import FileRewrites
from trainer.erasure.older_copy import keep_attributes_erased
from trainer.fit_job.compiling import compile_ahead, load_fold_in_here
from trainer.item_ratings import ItemRatings
from trainer.item_updates.messages import Arrivals, ItemUpdates
from trainer.item_updates.updater import ItemUpdater
from trainer.leadership import Leadership
from trainer.publication.arriving_error import ArrivingError
from trainer.publication.forgotten import ForgottenUsers
from trainer.publication.publish import publish_prior
from trainer.publication.switch import Switch
from trainer.refit import RefitRequests, Refitter
from trainer.retry import with_retries
from trainer.stage import Stage, Tools
from trainer.upkeep import REMOVAL_PAUSE_S, Upkeep

# Batches that wait to be predicted. Which ratings are does not matter: what comes beyond is let go.
_WAITING_ARRIVALS = 4
# Batches that wait to be folded in: some 40 MB at 12,800 events each. When they are full the consumer waits,
# and the stream, which has a limit of its own, keeps the rest.
_WAITING_UPDATES = 32


class Term(Stage):
    """The trainer while it leads."""

    def __init__(self, tools: Tools, leadership: Leadership) -> None:
        super().__init__(tools)
        item_updates, arrivals = ItemUpdates(_WAITING_UPDATES), Arrivals(_WAITING_ARRIVALS)
        forgotten = ForgottenUsers(tools.store)
        self.requests = RefitRequests()
        self._leadership = leadership
        self._group = asyncio.TaskGroup()
        self.epochs = OpenEpochs(tools, item_updates, self._group)
        self.switch = Switch(tools, self.epochs, item_updates, self.requests.want)
        self.items = ItemUpdater(tools, item_updates, arrivals)
        self.arriving = ArrivingError(tools, self.epochs, self.switch, arrivals)
        self.room = RoomWatch(tools)
        rewrites = FileRewrites(tools.store, lambda: self.room.refusing == "store_disk")
        self.item_ratings = ItemRatings(tools, self.epochs)
        self.commands = CommandHandler(tools, self.epochs, self.requests, rewrites, self.item_ratings)
        self.refitter = Refitter(tools, self.epochs, self.switch, self.requests, forgotten)
        self.upkeep = Upkeep(tools, self.epochs, self.switch, forgotten)

    async def run(self) -> None:
        """Lead until cancelled. Raises an exception group with `LeaseLost`, or with an error that was not
        expected.
        """
        try:
            async with self._group as group:
                group.create_task(self._leadership.keep(), name="keep the lease")
                # First: what `_begin` hands on to it would else fill the queue.
                group.create_task(self.items.run(), name="fold items in")
                # Before the term can be kept waiting by a disk that is full.
                group.create_task(self.room.run(), name="watch the room")
                await self._begin()
                group.create_task(self.commands.run(), name="take commands")
                group.create_task(self.item_ratings.run(), name="take ratings back")
                group.create_task(self.refitter.run(), name="refit")
                if self._settings.engine == "variational":
                    group.create_task(compile_ahead(self.epochs.archived_events), name="compile loops")
                    group.create_task(load_fold_in_here(), name="load the compiled fold-in")
                group.create_task(self.arriving.run(), name="predict what arrives")
                group.create_task(self.upkeep.run(), name="upkeep")
                if self._store.traces is not None:
                    group.create_task(self._store.traces.follow(), name="follow traces")
                erased = keep_attributes_erased(self._store, self._root)
                group.create_task(erased, name="keep attributes erased")
        finally:
            self._leadership.end()
            await self._threads.drained()

    async def _begin(self) -> None:
        """Finish what an earlier leader left, and make sure that something is live."""
        store = self._store
        await publish_prior(self._tools)
        pointer = await with_retries(store.generations.live)
        await with_retries(store.generations.prune, self._lease, REMOVAL_PAUSE_S)
        for number in {pointer.epoch, pointer.pending} - {0}:
            epoch = await self.epochs.begin(number)
            await with_retries(self._threads.run, epoch.fits.end_fit)
        await self.switch.follow(pointer)
        if pointer.pending == pointer.epoch:
            # Killed after the flip to a new epoch, before the old one was closed.
            await with_retries(store.epochs.finish, pointer.epoch)
            self._step("epoch:finished")
