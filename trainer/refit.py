"""Refits: when, on what, and whether the result goes live. Invariant: one fit at a time, always of
everything that was archived when it began, and only what passed the gate is published.

From top to bottom: decide -> take a snapshot -> fit -> judge -> publish -> switch.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from factors import Scale, TypeWeight
from featurestore.commands import FailureCode
from featurestore.errors import EpochGone, GenerationBroken, GenerationUnknown, StoreDamaged
from featurestore.generations.manifest import Pointer
from featurestore.item_registry import ItemRegistry
from featurestore.keys import digest_of
from featurestore.ratings.context_schema import ContextSchema
from featurestore.ratings.event_types import EventType
from processes.container import usable_cores
from trainer import gate, log
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.item_list import write_items
from trainer.archive.meanings import read_fields
from trainer.catalogue.changes import ChangedItems
from trainer.catalogue.reading import write_catalogue, write_user_attributes
from trainer.consume.open_epochs import OpenEpoch, OpenEpochs
from trainer.errors import (
    ArchiveFailedError,
    FitFailedError,
    GateRefusedError,
    GaveWayError,
    Named,
    NoRoomError,
    NothingNewError,
    SegmentDamagedError,
)
from trainer.fit_job.job import FitProgress, FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.results import FitResult
from trainer.item_updates.messages import LiveFit
from trainer.item_updates.since_fit import MAX_EVENTS
from trainer.publication.forgotten import ForgottenUsers
from trainer.publication.publish import Published, Publisher, publish_prior
from trainer.publication.switch import Switch
from trainer.retry import with_retries
from trainer.schedule import Reason, Schedule, Situation
from trainer.stage import Stage, Tools

# A damaged file of a snapshot is rebuilt.
_ATTEMPTS = 4
# How often the refitter looks at the pointer, which a person may move, and at what has arrived. One round
# trip each.
_LOOK_S = 0.25
# What may come of a fit without anything being wrong with the trainer.
_EXPECTED = (
    *(ArchiveFailedError, FitFailedError, GateRefusedError, NoRoomError),
    *(GenerationBroken, GenerationUnknown),
)
_LOGGED_METRICS = ("unseen", "loss", "baseline_loss", "newest", "live_ratio", "sweeps")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why what was requested did not go live."""

    code: FailureCode
    detail: str


Ending = int | Failure
"""The generation that went live, or why none did."""


class RefitRequests:
    """Fits that were asked for and have not begun. Bounded: one an epoch, shared by all that ask for it."""

    def __init__(self) -> None:
        self._endings: dict[int, asyncio.Future[Ending]] = {}
        # Of the fit that runs, requested or not.
        self.progress: FitProgress | None = None
        self._any = asyncio.Event()

    def want(self, epoch: int) -> None:
        """Ask for a fit of everything that was acknowledged in an epoch before this call."""
        if epoch not in self._endings:
            self._endings[epoch] = asyncio.get_running_loop().create_future()
        self._any.set()

    async def ask(self, epoch: int) -> Ending:
        """Ask for such a fit; return what came of it."""
        self.want(epoch)
        # The others that share it still want it when this caller is cancelled.
        return await asyncio.shield(self._endings[epoch])

    async def wait(self) -> None:
        """Return when there is any."""
        await self._any.wait()

    def take(self) -> "dict[int, asyncio.Future[Ending]]":
        """Return the future of each epoch; one who asks from now on asks for another fit."""
        taken, self._endings = self._endings, {}
        self._any.clear()
        return taken

    def __len__(self) -> int:
        return len(self._endings)


class Refitter(Stage):
    """Fits for one term: when it is due, and when `requests` ask for it."""

    def __init__(
        self,
        tools: Tools,
        epochs: OpenEpochs,
        switch: Switch,
        requests: RefitRequests,
        forgotten: ForgottenUsers,
    ) -> None:
        super().__init__(tools)
        self._epochs = epochs
        self._switch = switch
        self._requests = requests
        self._forgotten = forgotten
        self._publisher = Publisher(self._store, self._lease, self._threads, step=self._step)
        self.schedule = Schedule(self._settings.rules)
        # Since when a fit runs, by the monotonic clock, and how many seconds the last one took.
        self.fitting_since: float | None = None
        self.last_fit_s: float | None = None
        # Why the last fit did not go live, and when, in seconds since 1970; None where it did.
        self.failed: tuple[Failure, float] | None = None
        self._progress = FitProgress()
        # After a refusal of the gate the next fit starts from nothing, not from the generation before.
        self._from_scratch = False
        self._changed = ChangedItems(self._store.catalogue)
        # Epochs that know the users of whom there were attributes before.
        self._described_epochs: set[int] = set()
        # That of the prior, as far as this term has looked.
        self._scale: Scale | None = None

    async def run(self) -> None:
        """Fit whenever it is due, until cancelled."""
        wait_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._requests.wait()
            pointer = await self._pointer()
            try:
                epoch = await self._epochs.open(pointer.epoch)
            except EpochGone:
                # Replaced since; the pointer says so soon. A request does not shorten this pause: it is not
                # taken before.
                await asyncio.sleep(_LOOK_S)
                continue
            live = self._switch.live
            fitted = live if live is not None and live.epoch == pointer.epoch else None
            fitted_events = 0 if fitted is None else fitted.fitted_events
            # Before the import is asked after: all that it wrote is told with it.
            archived_events = epoch.consumer.archived_events
            found = Situation(
                time.monotonic(),
                requested=len(self._requests) > 0,
                held=pointer.held,
                fitted_events=fitted_events,
                files_missing=live is not None and live.files_missing,
                head_missing=fitted is not None and fitted.head_missing,
                catalogue=await self._changed.look(time.monotonic(), _version_of(fitted)),
                importing=fitted_events == 0 and await with_retries(self._store.leases.importing),
            )
            decision = self.schedule.look(found, pointer.epoch, archived_events)
            if decision.reason is None:
                wait_s = _LOOK_S if decision.wait_s is None else min(decision.wait_s, _LOOK_S)
                continue
            wait_s = 0.0
            requested = self._requests.take()
            # A new epoch has the higher number, and goes first: it takes the place of the other.
            for number in sorted(requested or {pointer.epoch}, reverse=True):
                self.fitting_since = time.monotonic()
                self._requests.progress = self._progress = FitProgress()
                ending = await self._refit(number, decision.reason, automatic=not requested)
                self.fitting_since = self._requests.progress = None
                if number in requested:
                    requested[number].set_result(ending)

    async def _pointer(self) -> Pointer:
        """Return what is live, with the prior of the scale that was decided meanwhile."""
        if await with_retries(self._store.scale.look) != self._scale:
            await publish_prior(self._tools)
            self._scale = self._store.scale.value
            pointer = await with_retries(self._store.generations.live)
            await self._switch.follow(pointer)
            return pointer
        return await with_retries(self._store.generations.live)

    async def _refit(self, number: int, reason: Reason, *, automatic: bool) -> Ending:
        """Run one refit from snapshot to switch; an error that can be expected is its ending."""
        began_at = time.monotonic()
        log.event("fit_begins", epoch=number, reason=reason)
        try:
            epoch = await self._epochs.open(number)
            try:
                # What a person asks for, and what the catalogue or a file calls for, is fitted in any case,
                # and so much that no room would be left for folding items in.
                fitted = 0 if (live := self._switch.live) is None else live.fitted_events
                few = epoch.consumer.archived_events - fitted <= MAX_EVENTS // 2
                unless_same = few and reason in {"events", "seconds"}
                # A first ranking head has all cores, as the first fit that it is a part of.
                how = {"automatic": automatic, "spare": automatic and reason != "head"}
                published = await self._fit_and_publish(epoch, unless_same=unless_same, **how)
            except FitFailedError as exc:
                # Its folder went to the trash under the fit.
                if self._epochs.opened(number) is not epoch:
                    raise EpochGone(number) from exc
                raise
            finally:
                await with_retries(self._threads.run, epoch.fits.end_fit)
        except NothingNewError as exc:
            self.schedule.learned(exc.events)
            log.event("fit_ends", epoch=number, code="nothing_new", events=exc.events)
            return Failure("gave_way", str(exc))
        except (EpochGone, GaveWayError) as exc:
            code: FailureCode = "epoch_gone" if isinstance(exc, EpochGone) else "gave_way"
            log.event("fit_ends", epoch=number, code=code)
            return Failure(code, str(exc))
        except _EXPECTED as exc:
            if isinstance(exc, GateRefusedError):
                # Refused from nothing too: the next one may start from the live generation again.
                self._from_scratch = not self._from_scratch
            failure, delay_s = _failure(exc), self.schedule.failed(time.monotonic())
            self.failed = failure, time.time()
            log.warning("fit_failed", epoch=number, code=failure.code, why=failure.detail, retry_s=delay_s)
            return failure
        self.schedule.fitted(live=published.live)
        self._from_scratch, self.failed = False, None
        generation = published.meta.summary.generation
        seconds = self.last_fit_s = time.monotonic() - began_at
        log.event(
            "fit_published",
            epoch=number,
            generation=generation,
            live=published.live,
            seconds=seconds,
            **self._progress.seconds(),
        )
        return generation if published.live else Failure("held", "an older generation is held live")

    async def _fit_and_publish(
        self, epoch: OpenEpoch, *, automatic: bool, spare: bool, unless_same: bool
    ) -> Published:
        """Fit everything that was acknowledged before this call, and publish it. Raises `GateRefusedError`
        where it must not go live, `NothingNewError` where it is to be fitted `unless_same` and is.
        """
        number = epoch.archive.epoch
        # Read before the snapshot: a user who is forgotten by now is erased when the streams' ends are
        # reached.
        forgotten = await with_retries(self._store.ratings.forgotten, number)
        await epoch.consumer.reached_now()
        # Those whose erasure goes on are still in what is fitted.
        leaving = set(map(digest_of, await with_retries(self._store.commands.leaving)))
        forgotten = {digest: n for digest, n in forgotten.items() if digest not in leaving}
        self._step("fit:reached")
        how = {"automatic": automatic, "spare": spare, "unless_same": unless_same}
        snapshot, n_items, result = await self._fit(epoch, **how)
        self._step("fit:done")
        self._progress.begin("publishing")
        await self._threads.run(epoch.fits.erase_from_new)
        why = await self._threads.run(gate.refusal, result, n_items, self._settings.gate)
        logged = {name: result.metrics[name] for name in _LOGGED_METRICS if name in result.metrics}
        log.event("fit_judged", epoch=number, ratings=result.n_ratings, **logged)
        if unknown := result.metrics.get("unknown_items"):
            log.warning("events_of_unknown_items", epoch=number, events=int(unknown))
        if why is not None:
            raise GateRefusedError(why)
        published = await self._publisher.publish(
            number,
            replace(result, metrics={**result.metrics, "events": float(snapshot.events)}),
            engine=self._settings.engine,
            positions=snapshot.positions,
            folder=epoch.fits,
            automatic=automatic,
        )
        # All of it was read to publish it.
        await self._threads.run(published.fit.let_go)
        self._forgotten.none_left(published.meta.summary.generation, forgotten)
        if published.live:
            await self._switch.to(LiveFit(published.meta, published.fit, epoch.archive))
        return published

    async def _fields(self, epoch: OpenEpoch) -> ContextSchema:
        """Return the fields of contexts, as the archive has them where the store's are damaged."""
        try:
            return await with_retries(self._store.contexts.fresh)
        except StoreDamaged as exc:
            log.warning("context_fields_from_archive", error=str(exc))
            return await with_retries(self._threads.run, read_fields, epoch.archive.directory)

    async def _fit(
        self, epoch: OpenEpoch, *, automatic: bool, spare: bool, unless_same: bool
    ) -> tuple[Snapshot, int, FitResult]:
        """Fit what is archived now; return that, how many items the registry had, and the fit."""
        number, attempt = epoch.archive.epoch, 0
        registry = self._store.items(number)
        while True:
            attempt += 1
            # From here on the folder remembers whom the archive loses: the snapshot may still know them.
            await with_retries(self._threads.run, epoch.fits.begin_fit)
            try:
                snapshot, files = await with_retries(self._threads.run, epoch.archive.open_snapshot)
            except SegmentDamagedError as exc:
                await self._rebuild(epoch, exc.path, exc.why)
                continue
            users: BinaryIO | None = None
            try:
                # Before the list of items, which so has those of the catalogue. Gone when the fit is.
                folder = epoch.fits.new.with_name("new.catalogue")
                described = await self._described(registry, folder)
                scale = await with_retries(self._store.scale.look)
                users_read_ms = await with_retries(self._store.time_ms)
                users = await self._users(epoch, folder)
                fields = await self._fields(epoch)
                # After the snapshot: the registry has every item that is in it.
                await with_retries(registry.refresh)
                item_ids = registry.ids[:]
                items = await with_retries(self._threads.run, write_items, epoch.archive.directory, item_ids)
                live = self._switch.live
                fit = live.result if live is not None and live.epoch == number else None
                request = FitRequest(
                    paths=tuple(str(path.absolute()) for path in snapshot.paths),
                    items=str(items.absolute()),
                    output=str(epoch.fits.new.absolute()),
                    engine=self._settings.engine,
                    low=scale.low,
                    high=scale.high,
                    step=scale.step,
                    threads=self._fit_threads(spare=spare and fit is not None),
                    seed=number,
                    live=None if fit is None else str(fit.path.absolute()),
                    from_scratch=self._from_scratch,
                    types=weights_of(await self._store.event_types.known()),
                    catalogue=described[0],
                    catalogue_version=described[1],
                    users_read_ms=users_read_ms,
                    context_kinds=fields.kinds,
                    head_may_wait=live is None or live.meta.summary.n_ratings == 0,
                    unless_same=unless_same and not self._from_scratch,
                )
                fitting = fit_in_process(request, files, users, step=self._step, told=self._progress)
                result = await self._ran(fitting, automatic=automatic)
                return snapshot, len(item_ids), result
            except NothingNewError as exc:
                raise NothingNewError(snapshot.events) from exc
            except FitFailedError as exc:
                if exc.unread is not None:
                    await self._threads.run(epoch.archive.note_unread, exc.unread)
                if exc.damaged is None or attempt >= _ATTEMPTS:
                    raise
                await self._rebuild(epoch, exc.damaged, exc.why)
            finally:
                for file in (*files, *([] if users is None else [users])):
                    file.close()

    def _fit_threads(self, *, spare: bool) -> int:
        """Return how many threads a fit has. `spare`: one less than there are cores, where there are more:
        what wakes up to answer a request waits for milliseconds while all cores compute, whatever their
        priority is.
        """
        return self._settings.fit_threads or max(1, usable_cores() - spare)

    async def _users(self, epoch: OpenEpoch, folder: Path) -> BinaryIO | None:
        """Return the file of the attributes of users; None where there are none, or they cannot be read. An
        epoch may have begun after they were given: this trainer's first fit of it makes their users known
        there.
        """
        number = epoch.archive.epoch
        make_known = number not in self._described_epochs
        try:
            file = await with_retries(
                write_user_attributes, self._store, folder, number, make_known=make_known
            )
        except StoreDamaged as exc:
            log.warning("user_attributes_unreadable", error=str(exc))
            return None
        self._described_epochs.add(number)
        return file

    async def _described(self, registry: ItemRegistry, folder: Path) -> tuple[str | None, str]:
        """Write what the catalogue says of items to a file; return it and its version. None where that cannot
        be read: the ratings are fitted all the same.
        """
        try:
            path, version = await with_retries(write_catalogue, self._store.catalogue, registry, folder)
        except StoreDamaged as exc:
            log.warning("catalogue_unreadable", error=str(exc))
            return None, ""
        return str(path.absolute()), version

    async def _rebuild(self, epoch: OpenEpoch, damaged: Named, why: str) -> None:
        log.warning("segment_damaged", epoch=epoch.archive.epoch, segment=damaged.name, why=why)
        await self._threads.run(epoch.archive.set_aside, damaged, why)
        await epoch.consumer.repair()

    async def _ran(self, fitting: Coroutine[None, None, FitResult], *, automatic: bool) -> FitResult:
        """Return the result of `fitting`, and take note of its time: without what archive and store were
        waited for, before and after.
        """
        began_at = time.monotonic()
        try:
            return await (self._unless_requested(fitting) if automatic else fitting)
        finally:
            self.schedule.ran(began_at, time.monotonic())

    async def _unless_requested(self, fitting: Coroutine[None, None, FitResult]) -> FitResult:
        """Return the result of `fitting`. Raises `GaveWayError`, with its process ended, when a request
        comes: the fit that was requested learns the same and more.
        """
        running = asyncio.create_task(fitting, name="fit")
        requested = asyncio.create_task(self._requests.wait(), name="wait for a request")
        try:
            await asyncio.wait({running, requested}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise GaveWayError("one that was requested comes first")
            return running.result()
        finally:
            running.cancel()
            requested.cancel()
            await asyncio.wait({running, requested})


def _version_of(live: LiveFit | None) -> bytes | None:
    """Return the version of the catalogue that a fit has learned; None where it has learned none."""
    result = None if live is None else live.result
    return None if result is None or result.catalogue is None else result.catalogue.encode()


def weights_of(types: Sequence[EventType]) -> tuple[TypeWeight, ...]:
    """Return what events of these types count in a ranking head; those of retired ones count on."""
    return tuple(TypeWeight(each.code, each.meaning, each.weight, each.consumed) for each in types)


def _failure(exc: Exception) -> Failure:
    if isinstance(exc, FitFailedError):
        return Failure("fit_refused" if exc.permanent else "fit_failed", str(exc))
    if isinstance(exc, NoRoomError):
        return Failure("store_full", str(exc))
    return Failure("gate_refused" if isinstance(exc, GateRefusedError) else "publish_failed", str(exc))
