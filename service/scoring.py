"""Scores outside the micro-batch: pairs of a time or with a distribution, and large batches.

Invariant: a call is answered from one `LiveGeneration`, and no part of it keeps the event loop for more than
about 2 ms.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np

from factors import BASIS, FactorsError, Float32s, Float64s, Int64s
from featurestore.codecs import pack_histories
from featurestore.errors import StoreUnavailable
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.id_columns import Ids
from featurestore.store import Store
from featurestore.users.copies import UserCopies
from featurestore.users.counter_rule import Profile, UserLookup
from featurestore.users.fold_in import columns_of
from featurestore.users.records import CurrentUsers
from service.http.problems import Problem
from service.metrics import Counts
from service.prediction_json import OnePrediction, rounded, writer

# Pairs that are scored and encoded between two looks at the event loop: about 2 ms.
_SLICE = 2048


def require_live(follower: Follower) -> LiveGeneration:
    """Return the generation that is served; raises `no_generation` before the first."""
    if follower.live is None:
        raise Problem("no_generation", "no generation is loaded yet", retry_after_s=1)
    return follower.live


class Looked(NamedTuple):
    """`vectors` float32 (u, user_width) of users, `rows` int64 (m,) of items, -1 for those that are not
    registered. `degraded`: from copies, because the store is away.
    """

    vectors: Float32s
    rows: Int64s
    degraded: bool


class PairScorer:
    """Looks pairs up and scores them, for calls that do not go through the `MicroBatcher`. While the store is
    away it answers from copies, and says so.
    """

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store = store
        self._counts = counts
        # Batches are scored one after the other: side by side all would end late, and then all wait for the
        # store.
        self._one_batch = asyncio.Lock()

    async def look_up(
        self, live: LiveGeneration, user_ids: Sequence[bytes], item_ids: Sequence[bytes]
    ) -> Looked:
        """Return what is known of a few users and items."""
        registry = self._store.items(live.epoch)
        began = perf_counter()
        rows = list(map(registry.row, item_ids))
        degraded = False
        try:
            if None in rows:
                # An item that another replica registered: both questions to the store at once.
                current, rows = await asyncio.gather(
                    self._store.users.current(live, user_ids), registry.rows(item_ids)
                )
            else:
                current = await self._store.users.current(live, user_ids)
            vectors = current.vectors
        except StoreUnavailable as exc:
            vectors, degraded = self._copies(exc).lookup(live, user_ids).vectors, True
        self._counts.lookup.observe(perf_counter() - began)
        item_rows = np.array([-1 if row is None else row for row in rows], dtype=np.int64)
        return Looked(vectors, item_rows, degraded)

    async def profile(self, live: LiveGeneration, user_id: bytes) -> tuple[Profile, bool]:
        """Return one user with the history, and whether it is a copy. Raises `StoreUnavailable` where there
        is none, either.
        """
        try:
            return await self._store.users.profile(live, user_id), False
        except StoreUnavailable as exc:
            profile = self._copies(exc).profile(live, user_id)
            if profile is None:
                raise
            self._counts.degraded += 1
            return profile, True

    async def vector(self, live: LiveGeneration, user_id: bytes) -> tuple[int, Float32s, bool]:
        """Return `n` of one user, the vector (user_width,), and whether it is a copy. Raises
        `StoreUnavailable` where there is none, either.
        """
        degraded = False
        try:
            found: CurrentUsers | UserLookup = await self._store.users.current(live, [user_id])
        except StoreUnavailable as exc:
            found, degraded = self._copies(exc).lookup(live, [user_id]), True
            if not found.n[0]:
                raise
            self._counts.degraded += 1
        return int(found.n[0]), found.vectors[0], degraded

    def _copies(self, exc: StoreUnavailable) -> UserCopies:
        if self._store.users.copies is None:
            raise exc
        return self._store.users.copies

    async def predict_one(
        self,
        live: LiveGeneration,
        user_id: bytes,
        item_id: bytes,
        *,
        time: float | None,
        distribution: bool,
        given: Float32s | None = None,
    ) -> OnePrediction:
        """Predict one pair at `time` and in the context `given` (1, k), if there are any; with the
        probabilities of the steps of the scale, if wanted.

        Raises `invalid_parameter` where the scale has no steps.
        """
        vectors, rows, degraded = await self.look_up(live, [user_id], [item_id])
        if time is not None and not live.posterior.keeps_time(vectors[0], time):
            # The record has dropped what it would need of that time: the history has all.
            profile, degraded = await self.profile(live, user_id)
            packed, current = pack_histories([profile.history]), profile.vector[None]
            fold_in = partial(
                live.posterior.fold_in_users,
                *(live.items, packed),
                current=current,
                at=time,
                attributes=columns_of(live, [profile.attributes]),
            )
            vectors = await live.in_thread(fold_in)
        index = np.zeros(1, dtype=np.int64)
        times = None if time is None else np.array([time])
        scores = rounded(live.scorer.score(vectors, index, rows, times, context=given), live.model.scale)
        prediction = OnePrediction(
            *(float(scores.rating[0]), float(scores.std[0]), BASIS[scores.basis[0]], live.generation),
            degraded=degraded,
        )
        if distribution:
            # The model knows whether its scale has steps; a fit may have found them.
            try:
                steps = live.scorer.distribution(vectors, index, rows, times, context=given)
                prediction.distribution = steps[0].tolist()
            except FactorsError as exc:
                raise Problem("invalid_parameter", f"distribution: {exc}", field="distribution") from exc
        self._counts.predictions += 1
        self._counts.degraded += degraded
        return prediction

    async def predict_batch(
        self,
        live: LiveGeneration,
        user_ids: Ids,
        item_ids: Ids,
        given: Float32s | None = None,
        times: Float64s | None = None,
    ) -> bytearray:
        """Return the body for the pairs `user_ids[j]`, `item_ids[j]` in their order, or for one user with all
        items. `given`: the contexts of the pairs (m, k), or one (1, k) of all of them; `times` (m,): NaN for
        a pair that has none.
        """
        (vectors, rows, degraded), index = await self._look_up_batch(live, user_ids, item_ids)
        elements = writer(live.model.scale).elements
        contexts = None if given is None else np.broadcast_to(given, (len(rows), given.shape[1]))
        mark = b'"degraded":true,' if degraded else b""
        body = bytearray(b'{"generation":%d,%b"predictions":[' % (live.generation, mark))
        async with self._one_batch:
            for start in range(0, len(rows), _SLICE):
                if start:
                    # Requests that came meanwhile have their turn.
                    await asyncio.sleep(0)
                part = slice(start, start + _SLICE)
                context = None if contexts is None else contexts[part]
                time = None if times is None else times[part]
                scores = live.scorer.score(vectors, index[part], rows[part], time, context)
                body += elements(rounded(scores, live.model.scale))
        if len(rows):
            # The last comma.
            del body[body.rindex(b",") :]
        body += b"]}"
        self._counts.predictions += len(rows)
        self._counts.degraded += degraded * len(rows)
        return body

    async def _look_up_batch(
        self, live: LiveGeneration, user_ids: Ids, item_ids: Ids
    ) -> tuple[Looked, Int64s]:
        """Return what is known of the distinct users and of the items, and which user is that of each pair
        (m,).
        """
        registry = self._store.items(live.epoch)
        began = perf_counter()
        rows = registry.find(item_ids)
        degraded = False
        try:
            lookup = self._store.users.current_distinct(live, user_ids)
            unknown = np.flatnonzero(rows < 0)
            if len(unknown):
                (current, index), found = await asyncio.gather(
                    lookup, registry.rows(list(item_ids.take(unknown)))
                )
                rows[unknown] = [-1 if row is None else row for row in found]
            else:
                current, index = await lookup
            vectors = current.vectors
        except StoreUnavailable as exc:
            vectors, degraded = self._copies(exc).lookup(live, list(user_ids)).vectors, True
            index = np.arange(len(vectors), dtype=np.int64)
        self._counts.lookup.observe(perf_counter() - began)
        return Looked(vectors, rows, degraded), index if len(index) == len(rows) else np.zeros_like(rows)
