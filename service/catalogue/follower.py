"""A worker's catalogue. Invariant: an answer that ranks has every change that was acknowledged before it was
asked, by whichever worker.

Each such answer reads the version in the write in which it looks up its user, and goes on at once where the
worker has that version. Where it has not, the changes since are read first. In between the worker follows by
itself, so that few are missing.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from featurestore.catalogue.catalogue import ItemState
from featurestore.errors import EpochGone, RegistryFull, StoreDamaged, StoreError, StoreUnavailable
from featurestore.store import Store
from service.catalogue.view import CatalogueView

log = logging.getLogger("foldin.service")

POLL_S = 0.1  # as the live generation is followed
# Of items that are read anew: a reply of 150 KB where they are as long as most are.
_LOADED_AT_ONCE = 512
# Items that are put into a view between two looks at the event loop: about 1 ms.
_PUT_AT_ONCE = 128
# Changes of one reply: each names up to 256 items, which are then read.
_CHANGES_AT_ONCE = 16
# A load that failed costs the store all items: not again with each question.
_RETRY_LOAD_S = 1.0
# The live epoch and the one that is about to be.
_EPOCHS_KEPT = 2
# So long an answer waits for a large catalogue that is read for the first time; a client asks again after it.
_WAIT_S = 5.0


class Current(NamedTuple):
    """The catalogue as of a question. `degraded`: as it was known last, because the store is away."""

    view: CatalogueView
    degraded: bool


class CatalogueFollower:
    """Keeps views of the catalogue up to date."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._catalogue = store.catalogue
        self._views: dict[int, CatalogueView] = {}
        # By epoch: a long load of one keeps no answer of another waiting. Locks that are not in use go.
        self._reading = WeakValueDictionary[int, asyncio.Lock]()
        # By epoch, each until it ends. `run` ends them.
        self._loads: dict[int, asyncio.Task[CatalogueView]] = {}
        # Until when a catalogue that cannot be read is not read again, and why it cannot.
        self._damage: tuple[float, StoreDamaged] | None = None

    def ask(self) -> "asyncio.Future[list[Any]]":
        """Ask for the version, in the write of this turn of the event loop; `current` takes the reply."""
        asked = self._catalogue.ask_version()
        # The caller may fail before it comes to this reply.
        asked.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        return asked

    async def current(self, asked: "asyncio.Future[list[Any]]", epoch: int) -> Current:
        """Return the catalogue of an epoch as of when `asked` was asked, or later.

        Raises `StoreUnavailable` where it was never read and the store is away; `StoreDamaged`.
        """
        view = self._views.get(epoch)
        try:
            version = self._catalogue.version_of((await asked)[0])
            if view is None or not view.valid or not view.has(version):
                async with asyncio.timeout(_WAIT_S):
                    view = await self._caught_up(epoch, version)
        except TimeoutError:
            raise StoreUnavailable("the catalogue is being read", 1.0) from None
        except StoreUnavailable:
            if view is None or not view.valid:
                raise
            return Current(view, degraded=True)
        for other in [each for each in self._views if each < epoch]:
            # Its history was replaced.
            del self._views[other]
        return Current(view, degraded=False)

    async def prepare(self, epoch: int) -> None:
        """Read the catalogue for an epoch that is about to be served. What fails is tried again by the first
        answer that needs it.
        """
        try:
            await self._caught_up(epoch, await self._catalogue.version())
        except StoreError as exc:
            log.warning("the catalogue cannot be read: %s", exc)

    async def run(self) -> None:
        """Follow until cancelled; loads that go on are cancelled too."""
        try:
            await self._follow()
        finally:
            loads = list(self._loads.values())
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)

    async def _follow(self) -> None:
        failure = ""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                for epoch in list(self._views):
                    await self._caught_up(epoch, await self._catalogue.version())
                failure = ""
            except StoreError as exc:
                if str(exc) != failure:
                    log.warning("the catalogue cannot be followed: %s", exc)
                failure = str(exc)
            except Exception:  # the edge of the loop: an answer would have to read what it has not
                log.exception("the catalogue cannot be followed")

    async def _caught_up(self, epoch: int, version: bytes) -> CatalogueView:
        """Return the view of an epoch with all changes up to a version that was read before."""
        # The name keeps the lock while it is held or waited for.
        lock = self._reading.setdefault(epoch, asyncio.Lock())
        async with lock:
            view = self._views.get(epoch)
            while view is None or not view.valid or not view.has(version):
                changes = None
                if view is not None and view.valid:
                    changes = await self._catalogue.changes_since(view.version, _CHANGES_AT_ONCE)
                # Columns of a type that was given up would not take values of another.
                if view is None or changes is None or not changes.whole or changes.retyped:
                    if self._damage is not None and time.monotonic() < self._damage[0]:
                        raise self._damage[1]
                    earlier = self._loads.get(epoch)
                    load = earlier or self._begin_load(epoch)
                    # An answer that waits no longer leaves the load to the next one.
                    await asyncio.wait((load,))
                    view = load.result()
                    if earlier is None:
                        # What was read is of after the question.
                        break
                    continue
                await self._take_in(view, epoch, await self._catalogue.states(changes.item_ids))
                # A question's version is in the stream, unless the store has lost it: then this is all.
                ends = changes.version == view.version
                view.reached(changes.version)
                if ends:
                    break
            return view

    def _begin_load(self, epoch: int) -> "asyncio.Task[CatalogueView]":
        load = asyncio.create_task(self._load(epoch), name=f"load the catalogue for epoch {epoch}")
        self._loads[epoch] = load

        def end(load: "asyncio.Task[CatalogueView]") -> None:
            del self._loads[epoch]
            # Looked at here, because all that waited may have left. The next answer tries again.
            if not load.cancelled() and isinstance(exc := load.exception(), StoreDamaged):
                self._damage = (time.monotonic() + _RETRY_LOAD_S, exc)

        load.add_done_callback(end)
        return load

    async def _load(self, epoch: int) -> CatalogueView:
        catalogue = self._catalogue
        view = CatalogueView(catalogue, self._store.items(epoch))
        # First: what changes while the items are read is read again.
        version = await catalogue.version()
        after = b""
        while ids := await catalogue.ids(_LOADED_AT_ONCE, after=after):
            await self._fill(view, epoch, await catalogue.states(ids))
            after = ids[-1]
        async for deleted in catalogue.deleted():
            await self._fill(view, epoch, await catalogue.states(deleted))
        await catalogue.require_whole()
        view.reached(version)
        self._views.pop(epoch, None)
        self._views[epoch] = view
        while len(self._views) > _EPOCHS_KEPT:
            del self._views[next(iter(self._views))]
        return view

    async def _fill(self, view: CatalogueView, epoch: int, states: Sequence[ItemState]) -> None:
        """Put items into a view that no answer has yet, off the event loop."""
        await asyncio.to_thread(view.fill, states, await self._rows(epoch, states))

    async def _take_in(self, view: CatalogueView, epoch: int, states: Sequence[ItemState]) -> None:
        """Put items into a view, in small steps."""
        rows = await self._rows(epoch, states)
        for start in range(0, len(states), _PUT_AT_ONCE):
            part = slice(start, start + _PUT_AT_ONCE)
            view.put(states[part], rows[part])
            await asyncio.sleep(0)
        await view.settle()

    async def _rows(self, epoch: int, states: Sequence[ItemState]) -> list[int | None]:
        """Return the rows of items; those that have none get one, so that they can be recommended unrated."""
        registry = self._store.items(epoch)
        rows = await registry.rows([state.item_id for state in states])
        new = [
            state.item_id
            for state, row in zip(states, rows, strict=True)
            if row is None and state.data is not None
        ]
        if new:
            try:
                await registry.register(new)
                rows = [registry.row(state.item_id) for state in states]
            except (RegistryFull, EpochGone) as exc:
                # They are in no list until there is room; what is hidden stays so when it gets a row.
                log.warning("items of the catalogue have no row: %s", exc)
        return rows
