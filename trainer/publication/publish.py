"""Write a fit beside the live generation and flip. Invariant: until the flip nothing that is read changes,
and after a kill at any step the next leader removes the leftover.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from factors import FitSettings, Float32s, Index, build_index, index_of, index_to_bytes, prior_model
from featurestore.errors import GenerationBroken, GenerationUnknown, LeaseLost, StoreError, StoreFull
from featurestore.generations.activity import activity_to_bytes, is_by_events, positives_to_bytes
from featurestore.generations.manifest import (
    ACTIVITY,
    ATTRIBUTES,
    POSITIVES,
    RANKING,
    RANKING_INDEX,
    USER_ATTRIBUTES,
    GenerationMeta,
    GenerationSummary,
    Pointer,
)
from featurestore.generations.writer import GenerationWriter
from featurestore.leases import Lease
from featurestore.store import Store
from featurestore.users.active import MOST_ACTIVE, MOST_ACTIVE_BY_EVENTS
from processes.messages import HelperEndedError
from trainer import log
from trainer.archive.events import Position, format_position
from trainer.archive.segments import Step
from trainer.errors import ArchiveFailedError, NoRoomError
from trainer.fit_job.folder import FitFolder
from trainer.fit_job.results import FitResult, fit_in_memory, is_erased
from trainer.publication.recording import RecordProcess, Task, record_process
from trainer.retry import with_retries
from trainer.stage import Tools
from trainer.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

# Users in one call to the writer of records, which cuts it in small ones of its own.
_USERS_AT_ONCE = 2_000
# From so many users on a process of its own, which takes half a second to start, writes their records.
_APART_FROM = 20_000


@dataclass(frozen=True, slots=True)
class Published:
    """A generation that was written and verified, with the fit that it came from; `live` where it also went
    live.
    """

    meta: GenerationMeta
    fit: FitResult
    live: bool


@dataclass
class Publisher:
    """Publishes for one leader. From `apart_from` users on, a process that gives way writes their records."""

    store: Store
    lease: Lease
    threads: Threads
    step: Step
    apart_from: int = _APART_FROM

    async def publish(
        self,
        epoch: int,
        fit: FitResult,
        *,
        engine: str,
        positions: Mapping[int, Position],
        folder: FitFolder | None,
        automatic: bool,
    ) -> Published:
        """Write a fit beside the live generation, verify it, flip. One that is `automatic` does not replace a
        generation that is held live.

        `positions`: up to where it has learned the streams. `folder`: where its files are, None for a fit
        that is in memory only. Raises `StoreError` of every kind (`EpochGone` where the history was replaced
        meanwhile), `NoRoomError`; what was written is then removed, or by the next leader.
        """
        beside = await asyncio.to_thread(_made_beside, fit)
        draft = GenerationSummary(
            generation=0,
            epoch=epoch,
            state="writing",
            created=time.time(),
            rank=fit.model.rank,
            link=fit.model.link,
            engine=engine,
            n_users=fit.n_users,
            n_items=len(fit.items),
            n_ratings=fit.n_ratings,
            metrics={**fit.metrics, **beside.recalls()},
        )
        learned = {partition: format_position(position) for partition, position in positions.items()}
        self.step("publish:begin")
        since = self.store.confirmation.begin()
        writer = await _with_room(self.store.generations.begin, self.lease, draft, learned)
        # A number that a promoted replica does not know would be given again, to another fit.
        await self.store.confirmation.wait(since)
        try:
            if folder is not None:
                # Before anything is written: a generation that is live has its files under its number.
                fit = await self.threads.run(folder.adopt, fit, writer.number)
            self.step("publish:begun")
            await _write_items(writer, fit, beside)
            self.step("publish:items")
            await self._write_users(writer, epoch, fit)
            await self._write_active(epoch, fit, is_by_events(fit.n_ratings, beside.positives))
            self.step("publish:users")
            meta = await _with_room(writer.finish)
            self.step("publish:finished")
            # Repeated after a lost answer it finds the generation live and says so again.
            live = await with_retries(writer.flip, automatic=automatic)
        except LeaseLost:
            # The store refuses every write of this leader by now, the removal included.
            raise
        except (ArchiveFailedError, StoreError, NoRoomError):
            await self._remove(epoch, writer.number)
            raise
        self.step("publish:flipped")
        return Published(meta, fit, live)

    async def _remove(self, epoch: int, number: int) -> None:
        """Remove what was written. Raises `EpochGone` where the history was replaced or given up."""
        await with_retries(self.store.generations.remove, epoch, number, lease=self.lease)
        # Such a history takes along what was written here, which then looks damaged, or unknown.
        await with_retries(self.store.epochs.require, epoch)

    async def _write_active(self, epoch: int, fit: FitResult, by_events: bool) -> None:
        """Name the users among whom neighbours are looked for."""
        most = MOST_ACTIVE_BY_EVENTS if by_events else MOST_ACTIVE
        active = await self.threads.run(partial(fit.most_active, most, by_events=by_events))
        await _with_room(self.store.active.replace, epoch, active, lease=self.lease)

    async def _write_users(self, writer: GenerationWriter, epoch: int, fit: FitResult) -> None:
        taken = 0
        async with contextlib.AsyncExitStack() as ends:
            apart: RecordProcess | None = None
            if fit.n_users >= self.apart_from:
                kept, width = sorted(writer.kept), fit.model.user_width
                task = Task(self.store.settings, epoch, writer.number, kept, width, fit.users_read_ms)
                try:
                    apart = await ends.enter_async_context(record_process(task))
                except HelperEndedError as exc:
                    log.warning("records_process_ended", generation=writer.number, why=str(exc))
            for start in range(0, fit.n_users, _USERS_AT_ONCE):
                stop = min(start + _USERS_AT_ONCE, fit.n_users)
                ids = fit.user_ids(start, stop)
                known = np.array([not is_erased(user_id) for user_id in ids], dtype=bool)
                n, vectors = fit.user_n[start:stop][known], fit.users[start:stop][known]
                users = [user_id for user_id, keep in zip(ids, known.tolist(), strict=True) if keep]
                if apart is not None:
                    try:
                        taken += await apart.write(users, n, vectors)
                    except HelperEndedError as exc:
                        log.warning("records_process_ended", generation=writer.number, why=str(exc))
                        await apart.end()
                        apart = None
                if apart is None:
                    taken += await _with_room(writer.write_users, users, n, vectors, fit.users_read_ms)
                self.step("publish:some_users")
                # Packing 2,000 records takes milliseconds: the consumer and the lease come in between.
                await asyncio.sleep(0)
        log.event("records_written", generation=writer.number, users=fit.n_users, taken=taken)


@dataclass(frozen=True, slots=True)
class _Beside:
    """What is published beside the items: their index, the ranking head as bytes, and the index of its
    factors, how attributes of items and of users are encoded, and the positive events of the items (n, 2);
    each None where there is none.
    """

    index: Index | None
    head: memoryview | None
    head_index: Index | None
    attributes: memoryview | None
    user_attributes: memoryview | None
    positives: Float32s | None

    def recalls(self) -> dict[str, float]:
        """Return what the indexes find of the exact top 10."""
        found = {"index_recall_at_10": self.index, "ranking_index_recall_at_10": self.head_index}
        return {name: index.recall for name, index in found.items() if index is not None}


def _made_beside(fit: FitResult) -> _Beside:
    """Make what lies beside the items of a fit: 11 s of a core for a million of rank 50."""
    # Users are drawn by a seed that the ratings give: a fit has one index.
    rng = np.random.default_rng(fit.n_ratings)
    index = build_index(fit.model, fit.items, fit.users, rng)
    of_items, of_users = (
        None if each is None else each.data for each in (fit.attributes, fit.user_attributes)
    )
    head = fit.head()
    if head is None or fit.ranking is None or fit.ranking_users is None:
        return _Beside(index, None, None, of_items, of_users, None)
    head_index = index_of(head.items, fit.ranking_users, rng)
    return _Beside(index, fit.ranking.data, head_index, of_items, of_users, fit.positives())


async def publish_prior(tools: Tools) -> None:
    """Publish what is known before any rating, so that services can answer, in a store that has no
    generation, or such a one of another scale than was decided meanwhile. Raises `LeaseLost`.
    """
    store = tools.store
    scale = await with_retries(store.scale.look)
    pointer = await with_retries(store.generations.live)
    if not pointer.epoch or (pointer.generation and not await _is_outdated(store, pointer)):
        return
    model = prior_model(FitSettings(scale))
    users, items = (np.zeros((0, width), np.float32) for width in (model.user_width, model.item_width))
    prior = await Publisher(store, tools.lease, tools.threads, step=tools.step).publish(
        pointer.epoch,
        fit_in_memory(model, users, items, []),
        engine=tools.settings.engine,
        positions={},
        folder=None,
        automatic=False,
    )
    log.event("prior_published", generation=prior.meta.summary.generation)


async def _is_outdated(store: Store, pointer: Pointer) -> bool:
    try:
        meta = await with_retries(store.generations.meta, pointer.epoch, pointer.generation)
    except (GenerationUnknown, GenerationBroken):
        # A fit takes its place.
        return False
    return store.scale.outdated(meta.model, meta.summary.n_ratings)


async def _write_items(writer: GenerationWriter, fit: FitResult, beside: _Beside) -> None:
    """Write the items and what lies beside them."""
    await _with_room(writer.write_items, fit.items, fit.model)
    if beside.index is not None:
        await _with_room(writer.write_index, index_to_bytes(beside.index))
    if beside.head is not None:
        await _with_room(writer.write_blob, RANKING, beside.head)
    if beside.head_index is not None:
        await _with_room(writer.write_blob, RANKING_INDEX, index_to_bytes(beside.head_index))
    if beside.attributes is not None:
        await _with_room(writer.write_blob, ATTRIBUTES, beside.attributes)
    if beside.user_attributes is not None:
        await _with_room(writer.write_blob, USER_ATTRIBUTES, beside.user_attributes)
    # A fit that is in memory has no ratings by item.
    if len(fit.item_indptr) == len(fit.items) + 1:
        times = fit.item_indptr, fit.item_times, fit.wanted_times()
        activity = await asyncio.to_thread(activity_to_bytes, *times, now_s=time.time())
        await _with_room(writer.write_blob, ACTIVITY, activity)
    if beside.positives is not None:
        await _with_room(writer.write_blob, POSITIVES, positives_to_bytes(beside.positives))


async def _with_room(write: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `write` as `with_retries` does, but not until there is room: half a generation takes some itself.

    Raises `NoRoomError`.
    """

    async def once() -> T:
        try:
            return await write(*args, **kwargs)
        except StoreFull as exc:
            raise NoRoomError(str(exc)) from exc

    once.__qualname__ = getattr(write, "__qualname__", str(write))
    return await with_retries(once)
