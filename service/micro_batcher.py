"""Predicts pairs: all requests of one turn of the event loop share one lookup and one call of the scorer.

Invariant: a pair is answered from one `LiveGeneration`, taken when its turn ends, and from a record that is
current by the counter rule. Nobody waits for company: a turn ends when the event loop has read what had
arrived.
"""

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from factors import BASIS, FactorsError, Float64s, Int64s, Scores
from featurestore.codecs import pack_histories
from featurestore.errors import StoreError
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.id_columns import Ids
from featurestore.store import Store
from featurestore.users.counter_rule import UserLookup
from service.http.problems import Problem, problem_of_store
from service.metrics import Snapshot
from service.prediction_json import OnePrediction, rounded, writer

log = logging.getLogger("foldin.service")

# Pairs that are scored or encoded between two looks at the event loop: about 2 ms.
SLICE = 2048


class Waiter(Protocol):
    """Waits for the prediction of one pair, as an `asyncio.Future` does; what it is told, it is told once."""

    def done(self) -> bool:
        """Whether it was told, or gave up."""

    def set_result(self, prediction: OnePrediction, /) -> None:
        """Take the prediction."""

    def set_exception(self, exc: Exception, /) -> None:
        """Take the reason why there is none."""


class MicroBatch:
    """The pairs of one turn of the event loop, in the order in which they came."""

    __slots__ = ("item_ids", "user_ids", "waiters")

    def __init__(self) -> None:
        self.user_ids: list[bytes] = []
        self.item_ids: list[bytes] = []
        self.waiters: list[Waiter] = []


def require(live: LiveGeneration | None) -> LiveGeneration:
    """`live`, or `no_generation`."""
    if live is None:
        raise Problem("no_generation", "no generation is loaded yet", retry_after_s=1)
    return live


def score(
    live: LiveGeneration,
    vectors: npt.NDArray[np.float32],
    index: Int64s | None,
    item_rows: Int64s,
    time: Float64s | None = None,
) -> Scores:
    """Scores as they are answered; see `Scorer.score`."""
    return rounded(live.scorer.score(vectors, index, item_rows, time), live.model.scale)


class MicroBatcher:
    """Answers pairs. `enter` is the hot path, `quick` takes every query; the rest shares the rules."""

    def __init__(self, store: Store, follower: Follower, counts: Snapshot) -> None:
        self._store = store
        self._follower = follower
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._batch: MicroBatch | None = None
        self._looking_up = False
        self._slow: set[asyncio.Task[None]] = set()
        # Batches are scored one after the other: side by side all would end late, and then all wait for the
        # store.
        self._one_batch = asyncio.Lock()

    def submit(self, user_id: bytes, item_id: bytes) -> asyncio.Future[OnePrediction]:
        """Predict one pair in the present batch. The future may raise `Problem`."""
        future: asyncio.Future[OnePrediction] = self._loop.create_future()
        self.submit_for(future, user_id, item_id)
        return future

    def submit_for(self, waiter: Waiter, user_id: bytes, item_id: bytes) -> None:
        """Predict one pair for `waiter`, which is told later.

        A batch ends with the turn of the event loop; while another waits for the store, when that is answered
        and the event loop has read once more: under load batches get longer and their fixed cost is shared by
        more, without any delay when idle.
        """
        batch = self._batch
        if batch is None:
            batch = self._batch = MicroBatch()
            if not self._looking_up:
                self._loop.call_soon(self._end_batch)
        batch.user_ids.append(user_id)
        batch.item_ids.append(item_id)
        batch.waiters.append(waiter)

    def _end_batch(self) -> None:
        self._looking_up = False
        batch, self._batch = self._batch, None
        if batch is None:
            return
        live = self._follower.live
        try:
            live = require(live)
            rows = self._store.items(live.epoch).known_rows(batch.item_ids)
            lookup = self._store.users.lookup(live, batch.user_ids)
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(batch.waiters, exc)
            return
        self._looking_up = True
        began = perf_counter()
        lookup.add_done_callback(lambda reply: self._looked_up(batch, live, rows, began, reply))

    def _looked_up(
        self,
        batch: MicroBatch,
        live: LiveGeneration,
        rows: list[int | None],
        began: float,
        reply: asyncio.Future[UserLookup],
    ) -> None:
        # The next turn also takes what comes while this one is answered: at the same load turns are then a
        # fifth longer, which saves more of a core than it would bring to have the store work meanwhile.
        self._loop.call_soon(self._end_batch)
        try:
            users = reply.result()
            now = perf_counter()
            self._counts.lookup.observe(now - began)
            self._counts.batch.observe(len(rows))
            self._score_batch(batch, live, rows, users)
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(batch.waiters, exc)
        except asyncio.CancelledError:
            _fail(batch.waiters, Problem("store_unavailable", "the lookup was given up", retry_after_s=1))

    def _score_batch(
        self, batch: MicroBatch, live: LiveGeneration, rows: list[int | None], users: UserLookup
    ) -> None:
        if not users.behind and None not in rows:
            item_rows = np.array(rows, dtype=np.int64)
            self._settle(batch, live, range(len(rows)), vectors=users.vectors, item_rows=item_rows)
            return
        late = set(users.behind)
        late.update(place for place, row in enumerate(rows) if row is None)
        task = self._loop.create_task(
            self._catch_up(batch, live, rows, users, sorted(late)), name="fold in and predict"
        )
        self._slow.add(task)
        task.add_done_callback(self._slow.discard)
        places = [place for place in range(len(rows)) if place not in late]
        if places:
            item_rows = np.array([rows[place] for place in places], dtype=np.int64)
            self._settle(batch, live, places, vectors=users.vectors[places], item_rows=item_rows)

    async def _catch_up(
        self,
        batch: MicroBatch,
        live: LiveGeneration,
        rows: list[int | None],
        users: UserLookup,
        places: list[int],
    ) -> None:
        """Answer the pairs at `places`, whose user's record is behind or whose item is not known here yet."""
        waiters = [batch.waiters[place] for place in places]
        began = perf_counter()
        try:
            strangers = [place for place in places if rows[place] is None]
            current, registered = await asyncio.gather(
                self._store.users.catch_up(live, users),
                self._store.items(live.epoch).rows([batch.item_ids[place] for place in strangers]),
            )
            self._counts.lookup.observe(perf_counter() - began)
            for place, row in zip(strangers, registered, strict=True):
                rows[place] = -1 if row is None else row
            item_rows = np.array([rows[place] for place in places], dtype=np.int64)
            self._settle(batch, live, places, vectors=current.vectors[places], item_rows=item_rows)
        except asyncio.CancelledError:
            _fail(waiters, Problem("store_unavailable", "the service ends", retry_after_s=1))
            raise
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(waiters, exc)

    def _settle(
        self,
        batch: MicroBatch,
        live: LiveGeneration,
        places: Sequence[int],
        *,
        vectors: npt.NDArray[np.float32],
        item_rows: Int64s,
    ) -> None:
        """Answer the pairs at `places`: `vectors` (m, user_width), `item_rows` (m,)."""
        scores = score(live, vectors, None, item_rows)
        generation, waiters = live.generation, batch.waiters
        for place, rating, std, basis in zip(
            places, scores.rating.tolist(), scores.std.tolist(), scores.basis.tolist(), strict=True
        ):
            waiter = waiters[place]
            if not waiter.done():
                waiter.set_result(OnePrediction(rating, std, BASIS[basis], generation))
        self._counts.predictions += len(places)

    async def look_up(
        self, live: LiveGeneration, user_ids: Sequence[bytes], item_ids: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.float32], Int64s]:
        """Vectors (u, user_width) of users and rows (m,) of items, -1 for items that are not registered."""
        registry = self._store.items(live.epoch)
        began = perf_counter()
        try:
            rows = np.fromiter(registry.known_rows(item_ids), dtype=np.int64, count=len(item_ids))
        except TypeError:
            # None for one that is not known here.
            current, registered = await asyncio.gather(
                self._store.users.current(live, user_ids), registry.rows(item_ids)
            )
            rows = np.array([-1 if row is None else row for row in registered], dtype=np.int64)
        else:
            current = await self._store.users.current(live, user_ids)
        self._counts.lookup.observe(perf_counter() - began)
        return current.vectors, rows

    async def one(
        self, user_id: bytes, item_id: bytes, time: float | None = None, *, distribution: bool = False
    ) -> OnePrediction:
        """Predict one pair at `time`, if given, with the probabilities of the steps of the scale."""
        live = require(self._follower.live)
        vectors, rows = await self.look_up(live, [user_id], [item_id])
        if time is not None and not live.posterior.keeps_time(vectors[0], time):
            vectors = await self._as_of(live, user_id, time)
        index = np.zeros(1, dtype=np.int64)
        times = None if time is None else np.array([time])
        scores = score(live, vectors, index, rows, times)
        answer = OnePrediction(
            float(scores.rating[0]), float(scores.std[0]), BASIS[scores.basis[0]], live.generation
        )
        if distribution:
            try:
                answer.distribution = live.scorer.distribution(vectors, index, rows, times)[0].tolist()
            except FactorsError as exc:
                raise Problem("invalid_parameter", f"distribution: {exc}", field="distribution") from exc
        self._counts.predictions += 1
        return answer

    async def _as_of(self, live: LiveGeneration, user_id: bytes, time: float) -> npt.NDArray[np.float32]:
        """The row (1, user_width) of a user for a prediction of `time`, from the whole history."""
        profile = await self._store.users.profile(live, user_id)
        packed, current = pack_histories([profile.history]), profile.vector[None]
        return await asyncio.to_thread(
            live.posterior.fold_in_users, live.items, packed, current=current, at=time
        )

    async def many(
        self,
        live: LiveGeneration,
        user_ids: Ids,
        item_ids: Ids,
    ) -> bytearray:
        """The body for the pairs `user_ids[j]`, `item_ids[j]` in their order, or of one user with all
        items.
        """
        vectors, user_index, rows = await self._look_up_many(live, user_ids, item_ids)
        elements = writer(live.model.scale).elements
        body = bytearray(b'{"generation":%d,"predictions":[' % live.generation)
        async with self._one_batch:
            for start in range(0, len(rows), SLICE):
                if start:
                    await asyncio.sleep(0)
                part = slice(start, start + SLICE)
                body += elements(score(live, vectors, user_index[part], rows[part]))
        if len(rows):
            # The last comma.
            del body[body.rindex(b",") :]
        body += b"]}"
        self._counts.predictions += len(rows)
        return body

    async def _look_up_many(
        self, live: LiveGeneration, user_ids: Ids, item_ids: Ids
    ) -> tuple[npt.NDArray[np.float32], Int64s, Int64s]:
        """Vectors (u, user_width) of users, which of them is that of each pair (m,), and rows (m,) of items,
        -1 for items that nobody registered.
        """
        registry = self._store.items(live.epoch)
        began = perf_counter()
        rows = registry.find(item_ids)
        lookup = self._store.users.current_distinct(live, user_ids)
        strangers = np.flatnonzero(rows < 0)
        if len(strangers):
            (current, place), found = await asyncio.gather(
                lookup, registry.rows(list(item_ids.take(strangers)))
            )
            rows[strangers] = [-1 if row is None else row for row in found]
        else:
            current, place = await lookup
        self._counts.lookup.observe(perf_counter() - began)
        return current.vectors, place if len(place) == len(rows) else np.zeros_like(rows), rows

    async def close(self) -> None:
        """End what still runs."""
        for task in self._slow:
            task.cancel()
        await asyncio.gather(*self._slow, return_exceptions=True)


def _fail(waiters: Sequence[Waiter], exc: Exception) -> None:
    for waiter in waiters:
        # Each its own, because raising one writes into it.
        problem = problem_of_store(exc) if isinstance(exc, StoreError) else None
        if not waiter.done():
            waiter.set_exception(problem or exc)
