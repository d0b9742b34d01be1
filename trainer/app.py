"""The trainer process: wait for the archive and the lease, lead, begin again. Invariant: it never gives up on
its own; only a stop, or what a person must change, ends it.
"""

import asyncio
import contextlib
import random
import time
import uuid

from featurestore.errors import LeaseLost, StoreError, StoreRefused, StoreUnavailable
from featurestore.leases import Lease
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.archive.log import Archive
from trainer.archive.segments import Step, no_step
from trainer.errors import ArchiveBusyError, ArchiveFailedError, CannotStartError
from trainer.leadership import Leadership
from trainer.settings import TrainerSettings
from trainer.term import Leader, archive_root


class Trainer:
    """One trainer process. `run` returns when `stop` is set, within the grace period."""

    def __init__(self, settings: TrainerSettings, *, step: Step = no_step) -> None:
        self._settings = settings
        self._step = step
        self._leadership: Leadership | None = None
        self._rng = random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.leader: Leader | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`. Raises `CannotStartError` where a person must change something."""
        working = asyncio.create_task(self._work(), name="work")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.wait([working, stopping], timeout=self._settings.grace_s)
        if working.done() and not working.cancelled():
            working.result()

    async def _work(self) -> None:
        store = await self._open()
        try:
            archive = await self._hold_archive()
            try:
                await self._lead_again_and_again(store, archive)
            finally:
                archive.close()
        finally:
            await store.close()

    async def _open(self) -> Store:
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                return await Store.open(self._settings.store)
            except StoreRefused as exc:
                raise CannotStartError(str(exc)) from exc
            except StoreUnavailable as exc:
                if backoff.failures == 0:
                    log.warning("store_unavailable", doing="open", error=str(exc))
                await asyncio.sleep(backoff.next_s())

    async def _hold_archive(self) -> Archive:
        waiting = False
        while True:
            try:
                return await asyncio.to_thread(
                    Archive, archive_root(self._settings), guard=self._may_write, step=self._step
                )
            except ArchiveFailedError as exc:
                raise CannotStartError(f"{exc}; free it, or set FOLDIN_ARCHIVE_DIR") from exc
            except ArchiveBusyError as exc:
                if not waiting:
                    log.event("waiting", reason="archive", detail=str(exc))
                waiting = True
                await asyncio.sleep(self._rng.uniform(0.1, 0.3))

    async def _lead_again_and_again(self, store: Store, archive: Archive) -> None:
        backoff = Backoff(0.5, 15.0)
        while True:
            lease, began_at = await self._acquire(store)
            leadership = self._leadership = Leadership(lease, self._settings.lease_ttl_s, began_at)
            log.event("leading", fence=lease.fence)
            try:
                archive.forget_opened()
                self.leader = Leader(self._settings, store, leadership, archive, step=self._step)
                await self.leader.run()
            except BaseExceptionGroup as group:
                self._explain(group)
                # What failed at once fails again: not in a tight loop.
                if time.monotonic() - began_at > 60.0:
                    backoff.reset()
            finally:
                self.leader = None
                leadership.end()
                with contextlib.suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(1.0):
                        await lease.release()
            await asyncio.sleep(backoff.next_s())

    async def _acquire(self, store: Store) -> tuple[Lease, float]:
        # A token for each term: a term never goes on where an earlier one of this process was cut off.
        token = uuid.uuid4().hex
        backoff = Backoff(0.1, 2.0)
        ttl_ms = round(self._settings.lease_ttl_s * 1000)
        waiting = False
        while True:
            began_at = time.monotonic()
            try:
                lease = await store.leases.acquire(token, ttl_ms)
                backoff.reset()
            except StoreUnavailable as exc:
                if backoff.failures == 0:
                    log.warning("store_unavailable", doing="acquire", error=str(exc))
                await asyncio.sleep(backoff.next_s())
                continue
            if lease is not None:
                return lease, began_at
            if not waiting:
                log.event("waiting", reason="lease")
            waiting = True
            await asyncio.sleep(self._settings.lease_ttl_s * self._rng.uniform(0.05, 0.15))

    def _may_write(self) -> None:
        if self._leadership is None:
            raise LeaseLost("this trainer does not lead")
        self._leadership.check()

    def _explain(self, group: BaseExceptionGroup) -> None:
        lost, rest = group.split(LeaseLost)
        if lost is not None:
            log.warning("lease_lost")
        if rest is None:
            return
        refused, rest = rest.split(StoreRefused)
        if refused is not None:
            raise CannotStartError(str(_leaves(refused)[0]))
        for exc in [] if rest is None else _leaves(rest):
            if not isinstance(exc, Exception):
                raise exc
            log.unexpected("term_ended", exc)


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for each in group.exceptions for leaf in _leaves(each)]
    return [group]
