"""The trainer process: wait for the archive and the lease, lead, begin again. Invariant: it never gives up
on its own; only a stop, or what a person must change, ends it.
"""

import asyncio
import contextlib
import random
import time
import uuid

from featurestore.errors import LeaseLost, StoreChanged, StoreDamaged, StoreError, StoreRefused
from featurestore.leases import Lease
from featurestore.store import Store
from featurestore.telemetry.points import StoreServer
from processes.backoff import Backoff
from trainer import log
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step
from trainer.consume.matching import match
from trainer.errors import (
    ArchiveFailedError,
    ArchiveRefusedError,
    ArchiveWaitsError,
    CannotStartError,
    NoRoomError,
)
from trainer.leadership import Leadership
from trainer.publication.publish import publish_prior
from trainer.retry import with_retries
from trainer.settings import TrainerSettings
from trainer.stage import Tools
from trainer.term import Term
from trainer.threads import Threads

# A term that lasted so long did not fail at what the next one begins with.
_LASTING_S = 60.0
# What a trainer that ends still tells the store, if it answers.
_LAST_CALL_S = 1.0


class Trainer:
    """One trainer process. `run` returns when `stop` is set, within the grace period."""

    def __init__(self, settings: TrainerSettings, *, step: Step = no_step) -> None:
        self._settings = settings
        self._step = step
        # In seconds since 1970.
        self.started_at = time.time()
        self.leadership: Leadership | None = None
        self._stopping = False
        self._rng = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.term: Term | None = None
        # While they are open.
        self.store: Store | None = None
        # As they were seen last.
        self.store_servers: list[StoreServer] = []
        self.root: ArchiveRoot | None = None
        # After the loss of its lease: writes that were begun end in less. As long as a stop may take.
        self.term_ends_within_s = settings.grace_s

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`. Raises `CannotStartError` where a person must change something."""
        working = asyncio.create_task(self._work(), name="work")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            for task in (working, stopping):
                task.cancel()
            # Until threads have written and the lease is given back, so that the next trainer may lead at
            # once.
            await asyncio.wait([working, stopping], timeout=self._settings.grace_s)
        if working.done() and not working.cancelled():
            try:
                working.result()
            except StoreRefused as exc:
                raise _refused(exc) from exc

    async def _work(self) -> None:
        store = await with_retries(Store.open, self._settings.store, traced_as="foldin-trainer")
        try:
            # Before the lease: a trainer that waits for room must not keep another host from leading.
            root = self.root = await self._open_archive()
            self.store = store
            await self._lead_again_and_again(store, root)
        except (CannotStartError, StoreRefused) as exc:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_LAST_CALL_S):
                    if not await store.leases.held():
                        await store.leases.say_ended(str(exc))
            raise
        finally:
            self.store = self.root = None
            await store.close()

    async def _open_archive(self) -> ArchiveRoot:
        store_dir = self._settings.store_dir
        if store_dir is not None and not store_dir.is_dir():
            # Of a wrong one nothing is seen: ratings would be taken until the store's disk is full.
            raise CannotStartError(f"FOLDIN_STORE_DIR: {store_dir} is not a folder of this host")
        waiting = False
        while True:
            try:
                return await asyncio.to_thread(
                    ArchiveRoot,
                    self._settings.archive_folder,
                    guard=self._may_write,
                    step=self._step,
                )
            except ArchiveFailedError as exc:
                raise CannotStartError(f"{exc}; free it, or set FOLDIN_ARCHIVE_DIR") from exc
            except ArchiveWaitsError as exc:
                if not waiting:
                    log.event("waiting", reason="archive", detail=str(exc))
                waiting = True
                await asyncio.sleep(self._rng.uniform(0.1, 0.3))

    async def _lead_again_and_again(self, store: Store, root: ArchiveRoot) -> None:
        backoff = Backoff(0.5, 15.0)
        # For what the person saw who said it, not for what may happen later.
        adopt = self._settings.adopt
        while True:
            lease, began_at = await self._acquire(store)
            leadership = self.leadership = Leadership(lease, self._settings.lease_ttl_s, began_at)
            log.event("leading", fence=lease.fence)
            tools = Tools(self._settings, store, lease, root, Threads(), self._step)
            try:
                await self._match(tools, leadership, adopt=adopt)
                adopt = False
                await with_retries(store.leases.say_ended, "")
                self.term = Term(tools, leadership)
                await self.term.run()
            except (BaseExceptionGroup, StoreError) as exc:
                # What fails in a folder that was taken away is what the fence is for.
                _explain(LeaseLost("another trainer has the archive") if root.taken_away else exc)
                # What failed at once fails again: not in a tight loop.
                if time.monotonic() - began_at > _LASTING_S:
                    backoff.reset()
            finally:
                self.term = None
                leadership.end()
                # What waits for a disk has the archive until it is done.
                await tools.threads.drained()
                root.leave()
                with contextlib.suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(_LAST_CALL_S):
                        await lease.release()
            # A task group that ends by an error drops a cancellation that comes meanwhile.
            if self._stopping:
                return
            await asyncio.sleep(backoff.next_s())

    @staticmethod
    async def _match(tools: Tools, leadership: Leadership, *, adopt: bool) -> None:
        root, threads = tools.root, tools.threads
        try:
            await match(tools.store, root, leadership, threads, adopt=adopt)
        except ArchiveRefusedError:
            # Beside an archive that is not the store's the services answer all the same.
            with contextlib.suppress(StoreError):
                await publish_prior(tools)
            raise

    async def _acquire(self, store: Store) -> tuple[Lease, float]:
        """Return the lease once it can be had, and when it was asked for."""
        # A token for each term: a term never goes on where an earlier one of this process was cut off.
        token = uuid.uuid4().hex
        waiting = False
        while True:
            lease, began_at = await with_retries(self._ask_for_lease, store, token)
            if lease is not None:
                return lease, began_at
            if not waiting:
                log.event("waiting", reason="lease")
            waiting = True
            await asyncio.sleep(self._settings.lease_ttl_s * self._rng.uniform(0.05, 0.15))

    async def _ask_for_lease(self, store: Store, token: str) -> tuple[Lease | None, float]:
        # Before the request: the lease of the store begins later, so it ends no earlier than this one
        # believes.
        began_at, since = time.monotonic(), store.confirmation.begin()
        lease = await store.leases.acquire(token, round(self._settings.lease_ttl_s * 1000))
        if lease is not None:
            # A fence that a promoted replica does not know would be given again, to another trainer.
            await store.confirmation.wait(since)
        return lease, began_at

    def _may_write(self) -> None:
        if self.leadership is None:
            raise LeaseLost("this trainer does not lead")
        self.leadership.check()


def _refused(exc: StoreRefused) -> CannotStartError:
    """Return why a person must do something first."""
    if isinstance(exc, StoreDamaged):
        # The archive may have what the store has lost, so that nothing is done that could rest on it.
        return ArchiveRefusedError(f'{exc}; see "When stored data is damaged" in docs/operations.md')
    return CannotStartError(str(exc))


def _explain(ended: BaseException) -> None:
    """Log why a term ended. Raises `CannotStartError`, or the first error that is not an `Exception`."""
    leaves = _leaves(ended)
    if any(isinstance(exc, LeaseLost) for exc in leaves):
        log.warning("lease_lost")
    for exc in leaves:
        if isinstance(exc, CannotStartError):
            raise exc
        if isinstance(exc, StoreRefused):
            raise _refused(exc) from exc
        if not isinstance(exc, Exception):
            raise exc
        if isinstance(exc, NoRoomError):
            log.warning("store_full", error=str(exc))
        elif isinstance(exc, StoreChanged):
            # The next term looks whether the archive is still the store's.
            log.warning("store_changed", why=str(exc))
        elif not isinstance(exc, LeaseLost):
            log.unexpected("term_ended", exc)


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for each in group.exceptions for leaf in _leaves(each)]
    return [group]
