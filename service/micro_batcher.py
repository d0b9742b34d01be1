"""Predicts single pairs: those that arrive in one turn of the event loop share one lookup and one call of the
scorer.

Invariant: a pair is answered from one `LiveGeneration`, taken when its batch ends, and from a record that is
current by the counter rule; while the store is away, from copies, and the answer says so. No pair waits for
others to come: a batch ends when the event loop has read what had arrived.
"""

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import numpy as np

from factors import BASIS, Float32s
from featurestore.errors import StoreDamaged, StoreError, StoreUnavailable
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.store import Store
from featurestore.users.counter_rule import UserLookup
from service.http.problems import Problem, problem_of_store
from service.metrics import Counts
from service.prediction_json import OnePrediction, rounded
from service.scoring import require_live

log = logging.getLogger("foldin.service")


class Waiter(Protocol):
    """Waits for the prediction of one pair; an `asyncio.Future` does. It is told once, if it is not done."""

    def done(self) -> bool:
        """Whether it was told, or gave up."""

    def set_result(self, prediction: OnePrediction, /) -> None:
        """Take the prediction."""

    def set_exception(self, exc: Exception, /) -> None:
        """Take the reason why there is none."""


class MicroBatch:
    """Pairs that are looked up and scored together, in the order in which they came.

    When it ends: the generation that answers it, and the row of each item, None for one not known here yet.
    """

    __slots__ = ("item_ids", "item_rows", "live", "user_ids", "waiters")

    live: LiveGeneration
    item_rows: list[int | None]

    def __init__(self) -> None:
        self.user_ids: list[bytes] = []
        self.item_ids: list[bytes] = []
        self.waiters: list[Waiter] = []

    def part(self, places: Sequence[int]) -> "MicroBatch":
        """Return the pairs at these places."""
        part = MicroBatch()
        part.live = self.live
        part.user_ids = [self.user_ids[k] for k in places]
        part.item_ids = [self.item_ids[k] for k in places]
        part.waiters = [self.waiters[k] for k in places]
        return part


class MicroBatcher:
    """Predicts pairs in batches, one batch after the other. `submit` is the way of one prediction."""

    def __init__(self, store: Store, follower: Follower, counts: Counts) -> None:
        self._store = store
        self._follower = follower
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        # The batch that pairs are put into, and whether it has any.
        self._batch = MicroBatch()
        self._begun = asyncio.Event()
        # One task for all batches: beside callbacks it takes 1 us more a batch, and reads from top to bottom.
        self._running = self._loop.create_task(self._run(), name="predict")
        self._catching_up: set[asyncio.Task[None]] = set()

    def submit(self, user_id: bytes, item_id: bytes) -> asyncio.Future[OnePrediction]:
        """Predict one pair in the present batch. The future may raise `Problem`."""
        future: asyncio.Future[OnePrediction] = self._loop.create_future()
        self.submit_for(future, user_id, item_id)
        return future

    def submit_for(self, waiter: Waiter, user_id: bytes, item_id: bytes) -> None:
        """Predict one pair for `waiter`, which is told after this call."""
        batch = self._batch
        batch.user_ids.append(user_id)
        batch.item_ids.append(item_id)
        batch.waiters.append(waiter)
        self._begun.set()

    async def _run(self) -> None:
        while True:
            await self._begun.wait()
            self._begun.clear()
            # What comes while this batch waits for the store is the next one: under load batches get longer
            # and their fixed cost is shared by more pairs, without any delay when idle.
            batch, self._batch = self._batch, MicroBatch()
            await self._answer_batch(batch)
            # The next batch also takes what came while this one was answered: at the same load batches are
            # then a fifth longer, which saves more of a core than to have the store work meanwhile.
            await asyncio.sleep(0)

    async def _answer_batch(self, batch: MicroBatch) -> None:
        try:
            batch.live = require_live(self._follower)
            await self._predict(batch)
        except asyncio.CancelledError:
            _fail(batch.waiters, _ending())
            raise
        except Exception as exc:  # noqa: BLE001 -- each waiter gets it; the dispatcher tells what it is
            _fail(batch.waiters, exc)

    async def _predict(self, batch: MicroBatch) -> None:
        live = batch.live
        batch.item_rows = list(map(self._store.items(live.epoch).row, batch.item_ids))
        began = perf_counter()
        try:
            users = await self._store.users.lookup(live, batch.user_ids)
        except StoreUnavailable as exc:
            parts = self._store.apart(live.epoch, batch.user_ids)
            if len(parts) > 1:
                # One server of several is away: that harms its own users alone.
                await asyncio.gather(*[self._predict(batch.part(places)) for places in parts])
            else:
                self._answer_from_copies(batch, range(len(batch.waiters)), exc)
            return
        self._counts.lookup.observe(perf_counter() - began)
        self._counts.batch.observe(len(batch.waiters))
        positions: Sequence[int] = range(len(batch.waiters))
        if users.behind or None in batch.item_rows:
            late = {*users.behind, *(k for k in positions if batch.item_rows[k] is None)}
            # The others of the batch do not wait for these: a fold-in may take milliseconds.
            task = self._loop.create_task(
                self._catch_up(batch, users, sorted(late)), name="fold in and predict"
            )
            self._catching_up.add(task)
            task.add_done_callback(self._catching_up.discard)
            positions = [k for k in positions if k not in late]
        self._answer(batch, positions, users.vectors)

    async def _catch_up(self, batch: MicroBatch, users: UserLookup, late: list[int]) -> None:
        """Answer the pairs at `late`, whose user is behind or whose item is not known here yet."""
        began = perf_counter()
        try:
            unknown = [k for k in late if batch.item_rows[k] is None]
            current, registered = await asyncio.gather(
                self._store.users.catch_up(batch.live, users),
                self._store.items(batch.live.epoch).rows([batch.item_ids[k] for k in unknown]),
            )
            self._counts.lookup.observe(perf_counter() - began)
            for k, row in zip(unknown, registered, strict=True):
                batch.item_rows[k] = -1 if row is None else row
            self._answer(batch, late, current.vectors)
        except StoreUnavailable as exc:
            self._answer_from_copies(batch, late, exc)
        except asyncio.CancelledError:
            _fail([batch.waiters[k] for k in late], _ending())
            raise
        except StoreDamaged as exc:
            of_user: dict[bytes, list[int]] = {}
            for k in late:
                of_user.setdefault(batch.user_ids[k], []).append(k)
            if len(of_user) == 1:
                log.error("a prediction failed: %s", exc)
                _fail([batch.waiters[k] for k in late], exc)
                return
            # What is damaged harms its own user alone.
            for user_id, some in of_user.items():
                behind = [k for k in users.behind if batch.user_ids[k] == user_id]
                alone = users._replace(behind=behind, behind_ids=[user_id] * len(behind))
                await self._catch_up(batch, alone, some)
        except Exception as exc:  # noqa: BLE001 -- each waiter gets it; the dispatcher tells what it is
            _fail([batch.waiters[k] for k in late], exc)

    def _answer_from_copies(self, batch: MicroBatch, positions: Sequence[int], exc: StoreUnavailable) -> None:
        """Answer the pairs at `positions` without the store; an item that is not known here counts as new."""
        copies = self._store.users.copies
        if copies is None:
            _fail([batch.waiters[k] for k in positions], exc)
            return
        batch.item_rows = [-1 if row is None else row for row in batch.item_rows]
        users = copies.lookup(batch.live, batch.user_ids)
        self._counts.degraded += len(positions)
        self._answer(batch, positions, users.vectors, degraded=True)

    def _answer(
        self, batch: MicroBatch, positions: Sequence[int], vectors: Float32s, *, degraded: bool = False
    ) -> None:
        """Answer the pairs at `positions`; `vectors` float32 (m, user_width) are those of all pairs."""
        if not positions:
            return
        item_rows = batch.item_rows
        if len(positions) < len(item_rows):
            vectors, item_rows = vectors[positions], [item_rows[k] for k in positions]
        live, waiters = batch.live, batch.waiters
        scores = live.scorer.score(vectors, None, np.array(item_rows, dtype=np.int64))
        scores = rounded(scores, live.model.scale)
        for k, rating, std, basis in zip(
            positions, scores.rating.tolist(), scores.std.tolist(), scores.basis.tolist(), strict=True
        ):
            waiter = waiters[k]
            if not waiter.done():
                waiter.set_result(
                    OnePrediction(rating, std, BASIS[basis], live.generation, degraded=degraded)
                )
        self._counts.predictions += len(positions)

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = [self._running, *self._catching_up]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What came while the last batch was looked up.
        _fail(self._batch.waiters, _ending())


def _ending() -> Problem:
    return Problem("store_unavailable", "the service ends", retry_after_s=1)


def _fail(waiters: Sequence[Waiter], exc: Exception) -> None:
    for waiter in waiters:
        # A problem for each, because raising one writes into it.
        problem = problem_of_store(exc) if isinstance(exc, StoreError) else None
        if not waiter.done():
            waiter.set_exception(problem or exc)
