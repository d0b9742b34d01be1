"""The last stage of a refit: items are folded in for the generation that is live now. Invariant: `live` is
what the item updater was told last.
"""

from collections.abc import Callable

from featurestore.errors import GenerationBroken, GenerationUnknown
from featurestore.generations.manifest import Pointer
from trainer import log
from trainer.consume.open_epochs import OpenEpochs
from trainer.item_updates.messages import ItemUpdates, LiveFit
from trainer.retry import with_retries
from trainer.stage import Stage, Tools


class Switch(Stage):
    """Knows the live generation of a term, and hands a new one on to the item updater. `want_fit`: asks for a
    fit of an epoch.
    """

    def __init__(
        self,
        tools: Tools,
        epochs: OpenEpochs,
        item_updates: ItemUpdates,
        want_fit: Callable[[int], None],
    ) -> None:
        super().__init__(tools)
        self._epochs = epochs
        self._item_updates = item_updates
        self._want_fit = want_fit
        self.live: LiveFit | None = None
        self._damaged: tuple[int, int] | None = None

    async def to(self, live: LiveFit) -> None:
        """Fold items in for this generation from now on."""
        self.live = live
        # In the queue of the batches: what is archived before the switch is in its snapshot, what is archived
        # after it comes behind it.
        await self._item_updates.put(live)

    async def follow(self, pointer: Pointer) -> None:
        """Fold items in for the generation that the pointer names, whichever process made it live."""
        if pointer.generation == 0:
            return
        if (pointer.epoch, pointer.generation) == self._damaged:
            return
        if self.live is not None and (self.live.epoch, self.live.generation) == (
            pointer.epoch,
            pointer.generation,
        ):
            return
        epoch = await self._epochs.open(pointer.epoch)
        try:
            meta = await with_retries(self._store.generations.meta, pointer.epoch, pointer.generation)
        except GenerationUnknown:
            # It was replaced and removed since the pointer was read: the next look finds the newer one.
            return
        except GenerationBroken as exc:
            # Workers that have it loaded go on; a fit, which needs nothing of it, takes its place.
            self._damaged = (pointer.epoch, pointer.generation)
            log.warning("generation_damaged", generation=pointer.generation, error=str(exc))
            self._want_fit(pointer.epoch)
            return
        result = await self._threads.run(epoch.fits.read, pointer.generation)
        await self.to(LiveFit(meta, result, epoch.archive))
