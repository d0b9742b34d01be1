"""Write a fit beside the live generation and flip. Invariant: until the flip nothing that is read changes,
and after a kill at any step the next leader removes the leftover.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from factors import FitSettings, Model, Scale, build_index, index_to_bytes, prior_model
from featurestore.errors import LeaseLost, StoreError
from featurestore.generations.catalog import GenerationDraft, GenerationMeta, GenerationWriter
from featurestore.leases import Lease
from featurestore.store import Store
from processes.messages import HelperEndedError
from trainer import log
from trainer.archive.events import Position, format_position
from trainer.archive.segments import Step, no_step
from trainer.fit_job.results import FitResult, is_erased
from trainer.publication.record_process import RecordProcess, record_process
from trainer.retry import with_retries

# Users in one call to the writer of records, which cuts it in small ones of its own.
_USERS_AT_ONCE = 2_000
# From so many users on a process of its own, which takes half a second to start, writes their records.
_APART_FROM = 20_000


@dataclass(frozen=True, slots=True)
class Tables:
    """What a generation consists of. `users`: the fit that has them, None for a generation without users."""

    model: Model
    items: npt.NDArray[np.float32]
    users: FitResult | None = None
    index: bytes | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A generation that has its number, and nothing written under it yet."""

    writer: GenerationWriter
    epoch: int
    tables: Tables

    @property
    def number(self) -> int:
        """The number of the generation."""
        return self.writer.number


@dataclass(frozen=True, slots=True)
class Published:
    """A generation that was written and verified; `live` where it also went live."""

    meta: GenerationMeta
    live: bool


class Publisher:
    """Publishes for one leader: `begin` gives a generation its number, `write` makes it live."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        step: Step = no_step,
        wall_clock: Callable[[], float] = time.time,
        apart_from: int = _APART_FROM,
    ) -> None:
        """`apart_from`: so many users and more have their records written by a process that gives way."""
        self._apart_from = apart_from
        self._store = store
        self._lease = lease
        self._step = step
        self._wall_clock = wall_clock

    async def begin(
        self, epoch: int, result: FitResult, positions: Mapping[int, Position], engine: str
    ) -> Draft:
        """Give a fit the number of its generation. `positions`: up to where it has learned the streams.

        Raises `StoreError` of every kind.
        """
        # In a thread: 11 s of a core for a million items of rank 50. Users are drawn by a seed that the
        # ratings give: a fit has one index.
        rng = np.random.default_rng(result.n_ratings)
        index = await asyncio.to_thread(build_index, result.model, result.items, result.users, rng)
        recall = {} if index is None else {"index_recall_at_10": index.recall}
        packed = None if index is None else index_to_bytes(index)
        description = GenerationDraft(
            created=self._wall_clock(),
            rank=result.model.rank,
            link=result.model.link,
            engine=engine,
            n_users=result.n_users,
            n_items=len(result.items),
            n_ratings=result.n_ratings,
            metrics={**result.metrics, **recall},
            positions={partition: format_position(position) for partition, position in positions.items()},
        )
        return await self._begin(epoch, description, Tables(result.model, result.items, result, packed))

    async def begin_prior(self, epoch: int, scale: Scale, engine: str) -> Draft:
        """Begin a generation of what is known before any rating, so that services can answer."""
        model = prior_model(FitSettings(scale))
        description = GenerationDraft(
            created=self._wall_clock(),
            rank=model.rank,
            link=model.link,
            engine=engine,
            n_users=0,
            n_items=0,
            n_ratings=0,
        )
        no_items = np.zeros((0, model.item_width), dtype=np.float32)
        return await self._begin(epoch, description, Tables(model, no_items))

    async def _begin(self, epoch: int, description: GenerationDraft, tables: Tables) -> Draft:
        self._step("publish:begin")
        writer = await with_retries(self._store.generations.begin, self._lease, epoch, description)
        return Draft(writer, epoch, tables)

    async def write(self, draft: Draft, *, automatic: bool) -> Published:
        """Write a generation beside the live one, verify it, flip. One that is `automatic` does not replace a
        generation that is held live.

        Raises `StoreError` of every kind; what was written is then removed, or by the next leader.
        """
        writer, tables = draft.writer, draft.tables
        try:
            self._step("publish:begun")
            await with_retries(writer.write_items, tables.items, tables.model)
            if tables.index is not None:
                await with_retries(writer.write_index, tables.index)
            self._step("publish:items")
            if tables.users is not None:
                await self._write_users(writer, draft.epoch, tables.users)
            self._step("publish:users")
            meta = await with_retries(writer.finish)
            self._step("publish:finished")
            # Repeated after a lost answer it finds the generation live and says so again.
            live = await with_retries(writer.flip, automatic=automatic)
        except LeaseLost:
            # The store refuses every write of this leader by now, the removal included.
            raise
        except StoreError:
            await with_retries(self._store.generations.remove, draft.epoch, writer.number)
            raise
        self._step("publish:flipped")
        return Published(meta, live)

    async def _write_users(self, writer: GenerationWriter, epoch: int, result: FitResult) -> None:
        taken = 0
        async with contextlib.AsyncExitStack() as ends:
            apart = await self._start_apart(writer, epoch, result, ends)
            for start in range(0, result.n_users, _USERS_AT_ONCE):
                stop = min(start + _USERS_AT_ONCE, result.n_users)
                ids = result.user_ids(start, stop)
                known = np.array([not is_erased(user_id) for user_id in ids], dtype=bool)
                n, vectors = result.user_n[start:stop][known], result.users[start:stop][known]
                kept = [user_id for user_id, keep in zip(ids, known.tolist(), strict=True) if keep]
                if apart is not None:
                    try:
                        taken += await apart.write(kept, n, vectors)
                    except HelperEndedError as exc:
                        log.warning("records_process_ended", generation=writer.number, why=str(exc))
                        await apart.end()
                        apart = None
                if apart is None:
                    taken += await with_retries(writer.write_users, kept, n, vectors)
                self._step("publish:some_users")
                # Packing 2,000 records takes milliseconds: the consumer and the lease come in between.
                await asyncio.sleep(0)
        log.event("records_written", generation=writer.number, users=result.n_users, taken=taken)

    async def _start_apart(
        self, writer: GenerationWriter, epoch: int, result: FitResult, ends: contextlib.AsyncExitStack
    ) -> RecordProcess | None:
        """Return the process that writes the records; None where they are few, or where it does not start."""
        if result.n_users < self._apart_from:
            return None
        starting = record_process(
            self._store.settings,
            epoch=epoch,
            number=writer.number,
            kept=sorted(writer.kept),
            width=result.model.user_width,
        )
        try:
            return await ends.enter_async_context(starting)
        except HelperEndedError as exc:
            log.warning("records_process_ended", generation=writer.number, why=str(exc))
            return None
