"""Where rankings are computed: at once where that is quick, else in a thread, together with others that wait.

Invariant: a ranking that takes longer than about 2 ms never runs on the event loop, and the thread works on
one block of users against one item table at a time. So many wait, with what else lists take long for; one
more is refused at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from factors import Blended, Bools, Float32s, Int64s, Ranked
from featurestore.codecs import History, pack_feedback
from featurestore.generations.live import LiveGeneration
from service.http.problems import Problem
from service.metrics import Counts

# Multiplications of a product that numpy does on one core in about half a millisecond; choosing the best
# takes as long again.
_QUICK = 1_000_000
# Users in one product: it reads the item table once for all of them. More would make the first wait longer.
_BLOCK = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class RankingRequest:
    """The ranking of one user: the best `n` items but the rows in `exclude`.

    `vector` float32 (user_width,); `exclude` int64 (m,). `history`: from which the ranking head of the
    generation folds the user in; None: the expected rating ranks. With `rng` a draw from the posterior ranks.
    `allowed` (n_items,): the rows that may be returned, None for all. `recency`: how many times the latest
    events of the history count more, None: as the head has chosen.
    """

    live: LiveGeneration
    vector: Float32s
    n: int
    exclude: Int64s
    history: History | None = None
    rng: np.random.Generator | None = None
    allowed: Bools | None = None
    recency: float | None = None

    def goes_with(self, other: "RankingRequest") -> bool:
        """Whether both can be ranked in one product. A draw is made for one user alone."""
        same = self.live is other.live and self.n == other.n and self.allowed is other.allowed
        same = same and self.recency == other.recency
        return same and (self.history is None) == (other.history is None) and self.rng is other.rng is None

    @property
    def quick(self) -> bool:
        """Whether it takes less than about 2 ms."""
        excluded, ranking, sampled = len(self.exclude), self.live.ranking, self.rng is not None
        if self.history is not None and ranking is not None:
            some = self.history.entries, self.n, excluded, self.allowed
            return ranking.multiplications(*some, sampled=sampled) <= _QUICK
        depth, ranker = self.n + excluded, self.live.ranker
        return ranker.multiplications(sampled=sampled, depth=depth, allowed=self.allowed) <= _QUICK

    def within(self) -> Blended | None:
        """Return the list where that turns out to take less than about 2 ms, None where it does not: how much
        of the catalogue a mask makes a ranking read depends on the user.
        """
        ranking, live = self.live.ranking, self.live
        if self.history is None or ranking is None or self.allowed is None or self.rng is not None:
            return None
        # That of folding in, too.
        if ranking.multiplications(self.history.entries, self.n, len(self.exclude)) > _QUICK:
            return None
        most = _QUICK // ranking.head.parameters.rank
        given = live.scorer, self.vector[None], pack_feedback([self.history]), self.n, self.exclude
        return ranking.top_within(
            *given,
            most=most,
            allowed=self.allowed,
            bounds=live.ranker.rating_bounds,
            recency=self.recency,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A request that waits for the thread."""

    request: RankingRequest
    ranked: asyncio.Future[Blended]


class RankingDesk:
    """Ranks items for users. At most `most_waiting` requests wait for the thread, or have what lists take
    long for in one.
    """

    def __init__(self, counts: Counts, *, most_waiting: int) -> None:
        self._counts = counts
        self._most_waiting = most_waiting
        self._waiting: list[_Waiting] = []
        self._in_threads = 0
        self._running: asyncio.Task[None] | None = None

    async def top(self, request: RankingRequest) -> Blended:
        """Return the best items for a user. Where the expected rating ranks, it is the score, and there is no
        relevance: NaN.

        Raises `overloaded` where too many wait already.
        """
        if request.quick:
            return _rank([request])[0]
        if (found := request.within()) is not None:
            return found
        self._require_room()
        ranked: asyncio.Future[Blended] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, ranked))
        # The task ends when nothing waits: an idle worker has no thread at work.
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="rank")
        return await ranked

    async def in_thread(self, compute: Callable[[], T], live: LiveGeneration | None = None) -> T:
        """Return what `compute` makes, in a thread; of the rows of `live`, none of which changes meanwhile.

        Raises `overloaded` where too many wait already.
        """
        self._require_room()
        self._in_threads += 1
        try:
            return await (asyncio.to_thread(compute) if live is None else live.in_thread(compute))
        finally:
            self._in_threads -= 1

    async def similar(
        self, live: LiveGeneration, item_row: int, n: int, allowed: Bools | None = None
    ) -> Ranked:
        """Return the `n` items most like `item_row`, of those `allowed`: by the ratings, and where there are
        none by the ranking head.
        """
        if (likeness := live.alike_by_events(item_row)) is not None:
            quick = likeness.prepared and likeness.multiplications <= _QUICK
            rank = partial(likeness.similar, item_row, n, allowed)
            return rank() if quick else await self.in_thread(rank, live)
        return await self._computed(live, partial(live.ranker.similar, item_row, n, allowed))

    async def popular(self, live: LiveGeneration, n: int, allowed: Bools | None = None) -> Ranked:
        """Return the `n` most loved items, of those `allowed`."""
        return await self._computed(live, partial(live.ranker.popular, n, allowed))

    async def close(self) -> None:
        """Cancel the requests that wait."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _require_room(self) -> None:
        waiting = len(self._waiting) + self._in_threads
        if waiting >= self._most_waiting:
            self._counts.overloads += 1
            raise Problem("overloaded", f"{waiting} rankings wait", retry_after_s=1)

    async def _computed(self, live: LiveGeneration, rank: Callable[[], Ranked]) -> Ranked:
        quick = live.ranker.prepared and live.ranker.multiplications() <= _QUICK
        return rank() if quick else await self.in_thread(rank, live)

    async def _run(self) -> None:
        try:
            while self._waiting:
                first = self._waiting[0].request
                # A draw does not even go with itself.
                others = [each for each in self._waiting[1:] if each.request.goes_with(first)]
                block = [self._waiting[0], *others][:_BLOCK]
                taken = set(block)
                self._waiting = [each for each in self._waiting if each not in taken]
                try:
                    rank = partial(_rank, [each.request for each in block])
                    ranked = await first.live.in_thread(rank)
                except Exception as exc:  # noqa: BLE001 -- each request of the block gets it; the dispatcher logs it
                    for each in block:
                        if not each.ranked.done():
                            each.ranked.set_exception(exc)
                    continue
                for each, found in zip(block, ranked, strict=True):
                    # One that was given up is done.
                    if not each.ranked.done():
                        each.ranked.set_result(found)
        finally:
            self._running = None
            for each in self._waiting:
                each.ranked.cancel()
            self._waiting.clear()


def _rank(block: list[RankingRequest]) -> list[Blended]:
    first = block[0]
    live, vectors = first.live, np.stack([request.vector for request in block])
    exclude = [request.exclude for request in block]
    histories = [request.history for request in block if request.history is not None]
    if live.ranking is not None and len(histories) == len(block):
        return live.ranking.top(
            *(live.scorer, vectors, pack_feedback(histories), first.n, exclude),
            allowed=first.allowed,
            rng=first.rng,
            events=None if first.rng is None else live.item_events(),
            bounds=live.ranker.rating_bounds,
            recency=first.recency,
        )
    found = live.ranker.top(vectors, first.n, exclude, first.rng, allowed=first.allowed)
    return [
        Blended(each.item_rows, each.scores, np.full(len(each.scores), np.nan), each.scores) for each in found
    ]
