"""Predicts pairs: all requests of one turn of the event loop share one lookup and one call of the scorer.

Invariant: a pair is answered from one `LiveGeneration`, taken when its turn ends, and from a record that is
current by the counter rule. Nobody waits for company: a turn ends when the event loop has read what had
arrived.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Sequence
from time import perf_counter
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from factors import BASIS, FactorsError, Float64s, Int64s, Scorer, Scores, fold_in_users, keeps_time
from featurestore.codecs import pack_histories, pack_records, record_dtype
from featurestore.errors import StoreError
from featurestore.generations.follower import Follower, LiveGeneration
from featurestore.id_columns import Ids
from featurestore.store import Store
from featurestore.wire.connection import ReplyError
from service.http.parsing import MAX_ID_BYTES, Query
from service.http.problems import Problem
from service.http.store_failures import problem_of
from service.metrics import Snapshot
from service.prediction_json import rounded, writer

log = logging.getLogger("foldin.service")

PREDICT_ROUTE = "/predict"
# Ids that need no decoding, in the order in which nearly everybody writes them.
_PLAIN = re.compile(
    rf"/predict\?user(?:_id)?=([\w.~-]{{1,{MAX_ID_BYTES}}})&item(?:_id)?=([\w.~-]{{1,{MAX_ID_BYTES}}})",
    re.ASCII,
)
# Pairs that are scored or encoded between two looks at the event loop: about 2 ms.
SLICE = 2048


class OnePrediction(msgspec.Struct, omit_defaults=True):
    """The answer of GET /predict. `distribution`: probability of each step of the scale, lowest first."""

    rating: float
    std: float
    basis: str
    generation: int
    distribution: list[float] | None = None


class Asker(Protocol):
    """Who waits for the answer to one pair. Exactly one of both is called with effect, later than the asking;
    neither raises.
    """

    def answered(self, body: bytes) -> None:
        """The body of the answer."""

    def failed(self, exc: Exception) -> None:
        """There is no answer."""


class _Awaited:
    """An asker that waits in a task."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future

    def answered(self, body: bytes) -> None:
        if not self.future.done():
            self.future.set_result(body)

    def failed(self, exc: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(exc)


class _Turn:
    """The requests of one turn of the event loop, in the order in which they came."""

    __slots__ = ("askers", "began", "items", "users")

    def __init__(self) -> None:
        self.began = perf_counter()
        self.users: list[bytes] = []
        self.items: list[bytes] = []
        self.askers: list[Asker] = []


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


class Predictor:
    """Answers pairs. `enter` is the hot path, `quick` takes every query; the rest shares the rules."""

    def __init__(self, store: Store, follower: Follower, counts: Snapshot) -> None:
        self._store = store
        self._follower = follower
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._turn: _Turn | None = None
        self._asking = False
        self._encode = msgspec.json.Encoder().encode
        self._slow: set[asyncio.Task[None]] = set()
        # Batches are scored one after the other: side by side all would end late, and then all wait for the
        # store.
        self._one_batch = asyncio.Lock()
        self._scorer: Scorer | None = None
        self._dtype: np.dtype[Any] = record_dtype(0)
        self._unknown = b""

    def quick(self, raw_path: str) -> Awaitable[bytes]:
        """The body of the answer to GET `raw_path`. Raises `Problem` at once where the query is wrong."""
        plain = _PLAIN.fullmatch(raw_path)
        if plain is not None:
            user, item = plain.groups()
            return self.ask(user.encode(), item.encode())
        query = Query(raw_path)
        user_id, item_id = query.id("user_id", "user"), query.id("item_id", "item")
        time = query.number("timestamp")
        if query.flag("distribution", default=False):
            return self.one(user_id, item_id, time, distribution=True)
        return self.ask(user_id, item_id) if time is None else self.one(user_id, item_id, time)

    def enter(self, raw_path: str, asker: Asker) -> bool:
        """Put the pair of GET `raw_path` into the present turn; False where the query is not in the usual
        form, which is left to `quick`.
        """
        plain = _PLAIN.fullmatch(raw_path)
        if plain is None:
            return False
        user, item = plain.groups()
        self._put(user.encode(), item.encode(), asker)
        return True

    def ask(self, user_id: bytes, item_id: bytes) -> asyncio.Future[bytes]:
        """Put a pair into the present turn."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._put(user_id, item_id, _Awaited(future))
        return future

    def _put(self, user_id: bytes, item_id: bytes, asker: Asker) -> None:
        """A turn ends with the turn of the event loop; while another is not answered yet, when that is and
        the event loop has read once more: under load turns get longer and their fixed cost is shared by more,
        without any delay when idle.
        """
        turn = self._turn
        if turn is None:
            turn = self._turn = _Turn()
            if not self._asking:
                self._loop.call_soon(self._end_turn)
        turn.users.append(user_id)
        turn.items.append(item_id)
        turn.askers.append(asker)

    def _end_turn(self) -> None:
        self._asking = False
        turn, self._turn = self._turn, None
        if turn is None:
            return
        live = self._follower.live
        try:
            live = require(live)
            rows = self._store.items(live.epoch).known_rows(turn.items)
            lookup = self._store.users.read(live.epoch, live.generation, turn.users)
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(turn.askers, exc)
            return
        self._asking = True
        began = perf_counter()
        lookup.add_done_callback(lambda reply: self._looked_up(turn, live, rows, began, reply))

    def _looked_up(
        self,
        turn: _Turn,
        live: LiveGeneration,
        rows: list[int | None],
        began: float,
        reply: asyncio.Future[list[Any]],
    ) -> None:
        # The next turn also takes what comes while this one is answered: at the same load turns are then a
        # fifth longer, which saves more of a core than it would bring to have the store work meanwhile.
        self._loop.call_soon(self._end_turn)
        try:
            found = reply.result()
            now = perf_counter()
            self._counts.lookup.observe(now - began)
            self._counts.batch.observe(len(found))
            self._score_turn(turn, live, rows, found)
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(turn.askers, exc)
        except asyncio.CancelledError:
            _fail(turn.askers, Problem("store_unavailable", "the lookup was given up", retry_after_s=1))

    def _score_turn(
        self, turn: _Turn, live: LiveGeneration, rows: list[int | None], found: list[Any]
    ) -> None:
        if live.scorer is not self._scorer:
            self._scorer, self._dtype = live.scorer, record_dtype(live.model.user_width)
            # Nobody knows this user: the record is the prior.
            self._unknown = pack_records(np.zeros(1, dtype=np.int64), live.scorer.prior_user[None])[0]
        size, unknown = self._dtype.itemsize, self._unknown
        places: list[int] = []
        records: list[bytes] = []
        behind: list[int] = []
        for place, reply in enumerate(found):
            if rows[place] is None or isinstance(reply, ReplyError):
                behind.append(place)
                continue
            n, record = reply
            if n is None:
                places.append(place)
                records.append(unknown)
            # Both are whole numbers in different clothes: text of the store, and little endian.
            elif (
                record is not None and len(record) == size and int(n) == int.from_bytes(record[:8], "little")
            ):
                places.append(place)
                records.append(record)
            else:
                behind.append(place)
        if behind:
            said = [found[place] for place in behind]
            task = self._loop.create_task(
                self._catch_up(turn, live, behind, said), name="fold in and predict"
            )
            self._slow.add(task)
            task.add_done_callback(self._slow.discard)
        if places:
            vectors = np.frombuffer(b"".join(records), dtype=self._dtype)["vector"]
            item_rows = np.array([rows[place] for place in places] if behind else rows, dtype=np.int64)
            self._settle(turn, live, places, vectors=vectors, item_rows=item_rows)

    async def _catch_up(self, turn: _Turn, live: LiveGeneration, places: list[int], said: list[Any]) -> None:
        """Answer the pairs at `places`, whose user's record is behind or whose item is not known here yet;
        `said`: what the store said of their users.
        """
        askers = [turn.askers[place] for place in places]
        try:
            users = [turn.users[place] for place in places]
            # What failed is asked once more.
            found = None if any(isinstance(reply, ReplyError) for reply in said) else said
            items = [turn.items[place] for place in places]
            vectors, item_rows = await self.look_up(live, users, items, found)
            self._settle(turn, live, places, vectors=vectors, item_rows=item_rows)
        except asyncio.CancelledError:
            _fail(askers, Problem("store_unavailable", "the service ends", retry_after_s=1))
            raise
        except Exception as exc:  # noqa: BLE001 -- every request of the turn gets it; the edge tells what it is
            _fail(askers, exc)

    def _settle(
        self,
        turn: _Turn,
        live: LiveGeneration,
        places: list[int],
        *,
        vectors: npt.NDArray[np.float32],
        item_rows: Int64s,
    ) -> None:
        """Answer the pairs at `places`: `vectors` (m, user_width), `item_rows` (m,)."""
        scores = score(live, vectors, None, item_rows)
        encode, generation, askers = self._encode, live.generation, turn.askers
        for place, rating, std, basis in zip(
            places, scores.rating.tolist(), scores.std.tolist(), scores.basis.tolist(), strict=True
        ):
            askers[place].answered(encode(OnePrediction(rating, std, BASIS[basis], generation)))
        self._counts.predictions += len(places)
        # The first of the turn waited longest; the others are counted as if they had come with it.
        self._counts.request(PREDICT_ROUTE, 200, perf_counter() - turn.began, len(places))

    async def look_up(
        self,
        live: LiveGeneration,
        user_ids: Sequence[bytes],
        item_ids: Sequence[bytes],
        found: Sequence[Any] | None = None,
    ) -> tuple[npt.NDArray[np.float32], Int64s]:
        """Vectors (u, user_width) of users and rows (m,) of items, -1 for items that nobody registered.
        `found` as for `Users.current`.
        """
        registry = self._store.items(live.epoch)
        began = perf_counter()
        try:
            rows = np.fromiter(registry.known_rows(item_ids), dtype=np.int64, count=len(item_ids))
        except TypeError:
            # None for one that is not known here.
            current, registered = await asyncio.gather(
                self._store.users.current(live, user_ids, found), registry.rows(item_ids)
            )
            rows = np.array([-1 if row is None else row for row in registered], dtype=np.int64)
        else:
            current = await self._store.users.current(live, user_ids, found)
        self._counts.lookup.observe(perf_counter() - began)
        return current.vectors, rows

    async def one(
        self, user_id: bytes, item_id: bytes, time: float | None = None, *, distribution: bool = False
    ) -> bytes:
        """The body for one pair at `time`, if given, with the probabilities of the steps of the scale."""
        began = perf_counter()
        live = require(self._follower.live)
        vectors, rows = await self.look_up(live, [user_id], [item_id])
        if time is not None and not keeps_time(live.model, vectors[0], time):
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
        self._counts.request(PREDICT_ROUTE, 200, perf_counter() - began)
        return self._encode(answer)

    async def _as_of(self, live: LiveGeneration, user_id: bytes, time: float) -> npt.NDArray[np.float32]:
        """The row (1, user_width) of a user for a prediction of `time`, from the whole history."""
        profile = await self._store.users.current_with_history(live, user_id)
        packed, current = pack_histories([profile.history]), profile.vector[None]
        return await asyncio.to_thread(
            fold_in_users, live.model, live.items, packed, current=current, at=time
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
        lookup = self._store.users.many(live, user_ids)
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


def _fail(askers: Sequence[Asker], exc: Exception) -> None:
    for asker in askers:
        # Each its own, because raising one writes into it.
        problem = problem_of(exc) if isinstance(exc, StoreError) else None
        asker.failed(problem or exc)
