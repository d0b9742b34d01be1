"""Refits: when, on what, and whether the result goes live. Invariant: one fit at a time, always of everything
that was archived when it began, and only what passed the gate is published.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

from featurestore.commands import FailureCode
from featurestore.errors import EpochGone, GenerationBroken, GenerationUnknown
from featurestore.generations.manifest import GenerationMeta, Pointer
from featurestore.leases import Lease
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import gate, log
from trainer.archive.consumer import EpochConsumer
from trainer.archive.log import Snapshot
from trainer.archive.positions import tails
from trainer.archive.segments import Step, no_step
from trainer.errors import FitFailedError, GateRefusedError, SegmentGoneError
from trainer.fit_job.folder import FitFolder
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_process
from trainer.fit_job.results import FitResult, erase_user
from trainer.item_updates.keeper import ItemKeeper
from trainer.publication.publish import Publisher
from trainer.retry import patiently
from trainer.schedule import Situation, decide
from trainer.settings import TrainerSettings
from trainer.threads import Threads

# Merges may take away the files of a snapshot before a fit has opened them; a damaged one is rebuilt.
_ATTEMPTS = 4
# An import that pauses for less than this has not ended.
_LATELY_S = 2.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why what was asked for did not go live."""

    code: FailureCode
    detail: str


Ending = int | Failure
"""The generation that went live, or why none did."""


@dataclass(slots=True)
class Counts:
    """What happened so far, for metrics."""

    fits: int = 0
    failures: int = 0
    refusals: int = 0
    fit_seconds: float = 0.0


class _GaveWayError(Exception):
    """A fit that nobody asked for was ended for one that somebody did."""


@dataclass(slots=True)
class _Asked:
    epoch: int
    ending: "asyncio.Future[Ending]" = field(repr=False)


class Fits:
    """The fits of one leader. `consumer` gives the consumer of an epoch, started if need be."""

    def __init__(
        self,
        settings: TrainerSettings,
        store: Store,
        *,
        lease: Lease,
        items: ItemKeeper,
        consumer: Callable[[int], Awaitable[EpochConsumer]],
        folder: Callable[[int], FitFolder],
        threads: Threads,
        step: Step = no_step,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._items = items
        self._consumer = consumer
        self._folder = folder
        self._threads = threads
        self._step = step
        self._clock = clock
        self._publisher = Publisher(store, lease, step=step)
        self._asked: list[_Asked] = []
        self._wake = asyncio.Event()
        self._somebody_asks = asyncio.Event()
        self._backoff = Backoff(2.0, 300.0)
        self._not_before = 0.0
        self._arrivals: deque[tuple[float, tuple[int, int]]] = deque()
        # Users erased since the snapshot of the fit that runs now, which still knows them.
        self._erased: list[tuple[int, bytes]] | None = None
        self._cold = False
        self._fitting_items = 0
        # Forgotten users that no rating of was left in the snapshot of a generation.
        self._unseen: dict[int, dict[bytes, int]] = {}
        self.counts = Counts()
        # The generation that is being written: its files stay, though it is not live yet.
        self.publishing: set[int] = set()
        self.pid: int | None = None

    async def ask(self, epoch: int) -> Ending:
        """Fit everything that was acknowledged before this call, and publish it.

        A fit that runs unasked gives way: this one learns the same and more.
        """
        ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(epoch, ending))
        self._somebody_asks.set()
        self._wake.set()
        return await ending

    def wake(self) -> None:
        """Something changed that may make a fit due."""
        self._wake.set()

    def forget(self, epoch: int, user_id: bytes) -> None:
        """A user was erased from the archive."""
        if self._erased is not None:
            self._erased.append((epoch, user_id))

    async def run(self) -> None:
        """Fit whenever it is due, until cancelled."""
        while True:
            pointer = await patiently("live", self._store.generations.live)
            try:
                consumer = await self._consumer(pointer.epoch)
            except EpochGone:
                # Replaced since; the pointer says so soon.
                await self._sleep(0.1)
                continue
            decision = decide(self._situation(pointer, consumer), self._settings.rules)
            if decision.reason is None:
                await self._sleep(decision.wait_s)
                continue
            asked, self._asked = self._asked[:], []
            self._somebody_asks.clear()
            epochs = {each.epoch for each in asked} or {pointer.epoch}
            # A new history first: it takes the place of the other.
            for epoch in sorted(epochs, reverse=True):
                waiting = [each.ending for each in asked if each.epoch == epoch]
                ending = await self._attempt(epoch, decision.reason, automatic=not waiting)
                for future in waiting:
                    if not future.done():
                        future.set_result(ending)

    async def _sleep(self, wait_s: float | None) -> None:
        # The pointer may be moved by a person at any time: look once a second anyway.
        try:
            async with asyncio.timeout(1.0 if wait_s is None else min(1.0, wait_s)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _lately(self, consumer: EpochConsumer) -> int:
        """How many events came within `_LATELY_S`, as far as this was asked at each of them."""
        now, of = self._clock(), (consumer.epoch, consumer.archived_events)
        self._arrivals.append((now, of))
        while self._arrivals[0][0] < now - _LATELY_S or self._arrivals[0][1][0] != consumer.epoch:
            self._arrivals.popleft()
        return consumer.archived_events - self._arrivals[0][1][1]

    def _situation(self, pointer: Pointer, consumer: EpochConsumer) -> Situation:
        fitted = self._items.fitted_events if self._items.generation[0] == pointer.epoch else 0.0
        new_events = round(consumer.archived_events - fitted)
        if new_events > 0 and consumer.first_new_at is None:
            # They came under an earlier leader: counted from now on.
            consumer.first_new_at = self._clock()
        return Situation(
            now=self._clock(),
            asked=bool(self._asked),
            held=pointer.held,
            new_events=new_events,
            fitted_events=round(fitted),
            lately=self._lately(consumer),
            first_new_at=consumer.first_new_at,
            base_missing=self._items.base_missing,
            not_before=self._not_before,
        )

    async def _attempt(self, epoch: int, reason: str, *, automatic: bool) -> Ending:
        began_at = self._clock()
        log.event("fit_begins", epoch=epoch, reason=reason)
        try:
            generation, live = await self._fit_and_publish(epoch, automatic=automatic)
        except FitFailedError as exc:
            return self._failed("fit_refused" if exc.permanent else "fit_failed", str(exc), epoch)
        except SegmentGoneError as exc:
            return self._failed("fit_failed", f"the archive changed under it: {exc}", epoch)
        except (EpochGone, _GaveWayError) as exc:
            code: FailureCode = "epoch_gone" if isinstance(exc, EpochGone) else "gave_way"
            log.event("fit_ends", epoch=epoch, code=code)
            return Failure(code, str(exc))
        except (GenerationBroken, GenerationUnknown) as exc:
            return self._failed("publish_failed", str(exc), epoch)
        except GateRefusedError as exc:
            self.counts.refusals += 1
            self._cold = not self._cold
            return self._failed("gate_refused", str(exc), epoch)
        finally:
            await self._threads.run(self._folder(epoch).clear_new)
            self._erased = None
            self.pid = None
            self.publishing = set()
        took_s = self._clock() - began_at
        self.counts.fits += 1
        self.counts.fit_seconds += took_s
        self._backoff.reset()
        self._not_before = 0.0
        self._cold = False
        log.event("fit_published", epoch=epoch, generation=generation, live=live, seconds=took_s)
        return generation if live else Failure("held", "an older generation is held live")

    def _failed(self, code: FailureCode, why: str, epoch: int) -> Failure:
        self.counts.failures += 1
        delay_s = self._backoff.next_s()
        self._not_before = self._clock() + delay_s
        log.warning("fit_failed", epoch=epoch, code=code, why=why, retry_s=delay_s)
        return Failure(code, why)

    async def _fit_and_publish(self, epoch: int, *, automatic: bool) -> tuple[int, bool]:
        consumer = await self._consumer(epoch)
        # Read before the snapshot: whoever is forgotten by now is erased when the streams' ends are reached.
        forgotten = await patiently("forgotten", lambda: self._store.ratings.forgotten(epoch))
        ends = await patiently("tails", lambda: tails(self._store, epoch))
        await consumer.reached({partition: end.last for partition, end in ends.items()})
        self._step("fit:reached")
        folder = self._folder(epoch)
        result, snapshot, events = await self._fit(epoch, consumer, folder, automatic=automatic)
        self._step("fit:done")
        previous = self._items.live_meta if self._items.generation[0] == epoch else None
        await self._judge(result, epoch, previous)
        while self._erased:
            of_epoch, user_id = self._erased.pop()
            if of_epoch == epoch:
                await self._threads.run(erase_user, result.path, user_id)
        adopted: list[FitResult] = []

        def numbered(number: int) -> None:
            self.publishing = {number}
            adopted.append(folder.adopt(result, number))

        result.metrics["events"] = float(events)
        published = await self._publisher.publish(
            epoch, result, snapshot.positions, self._settings.engine, automatic=automatic, numbered=numbered
        )
        number = published.meta.summary.generation
        self._unseen[number] = forgotten
        if published.live:
            consumer.first_new_at = None if consumer.archived_events == events else self._clock()
            await self._items.switch(published.meta, adopted[0], consumer.archive.snapshot)
        return number, published.live

    async def _fit(
        self, epoch: int, consumer: EpochConsumer, folder: FitFolder, *, automatic: bool
    ) -> tuple[FitResult, Snapshot, int]:
        for attempt in range(1, _ATTEMPTS + 1):
            await self._threads.run(folder.clear_new)
            earlier = None if self._cold else await self._threads.run(folder.newest)
            registry = self._store.items(epoch)
            await patiently("items", registry.refresh)
            self._erased = []
            self._fitting_items = len(registry)
            snapshot, events = consumer.archive.snapshot(), consumer.archived_events
            low, high, step = self._settings.scale
            request = FitRequest(
                paths=tuple(str(path.absolute()) for path in snapshot.paths),
                n_items=self._fitting_items,
                output=str(folder.new.absolute()),
                engine=self._settings.engine,
                low=low,
                high=high,
                step=step,
                threads=self._settings.fit_threads,
                seed=epoch,
                earlier=None if earlier is None else str(earlier.path.absolute()),
            )
            try:
                async with fit_process(request) as fit:
                    self.pid = fit.pid
                    self._step("fit:started")
                    result = await (self._unless_asked(fit.result()) if automatic else fit.result())
            except SegmentGoneError:
                if attempt == _ATTEMPTS:
                    raise
            except FitFailedError as exc:
                if exc.damaged is None or attempt == _ATTEMPTS:
                    raise
                log.warning("segment_damaged", epoch=epoch, segment=exc.damaged.name, why=exc.why)
                await self._threads.run(consumer.archive.set_aside, exc.damaged, exc.why)
                await consumer.repair()
            else:
                return result, snapshot, events
        raise FitFailedError("the archive did not hold still")

    async def _unless_asked(self, fitting: Coroutine[None, None, FitResult]) -> FitResult:
        """What `fitting` gives. Raises `_GaveWayError`, with its process ended, as soon as somebody asks."""
        running = asyncio.create_task(fitting, name="fit")
        asking = asyncio.create_task(self._somebody_asks.wait(), name="wait for who asks")
        try:
            await asyncio.wait({running, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise _GaveWayError("one that somebody asked for comes first")
            return running.result()
        finally:
            running.cancel()
            asking.cancel()
            await asyncio.wait({running, asking})

    async def _judge(self, result: FitResult, epoch: int, previous: GenerationMeta | None) -> None:
        # From scratch after a refusal: if it is no better, the ratings have become harder to foretell, and to
        # hold on to the generation from before would hold for ever.
        metrics = None if previous is None or self._cold else previous.summary.metrics
        items = self._fitting_items
        evidence = await self._threads.run(gate.gather, result, items, metrics)
        why = gate.judge(evidence, self._settings.gate)
        log.event("fit_judged", epoch=epoch, ratings=result.n_ratings, **_for_log(result.metrics))
        if why is not None:
            raise GateRefusedError(why)

    async def release_forgotten(self, epoch: int, kept: set[int]) -> None:
        """Let the store drop what it remembers of users whom no kept generation has seen."""
        # `kept` was read a moment ago: a generation that went live since is not among them yet.
        newest = max(kept, default=0)
        self._unseen = {n: users for n, users in self._unseen.items() if n in kept or n > newest}
        if not kept or not kept <= self._unseen.keys():
            return
        settled = set.intersection(*[set(self._unseen[number].items()) for number in kept])
        if settled:
            released = await self._store.ratings.release_forgotten(epoch, dict(settled))
            log.event("forgotten_released", epoch=epoch, users=released)


def _for_log(metrics: dict[str, float]) -> dict[str, object]:
    wanted = ("unseen", "loss", "baseline_loss", "sweeps")
    return {name: metrics[name] for name in wanted if name in metrics}
