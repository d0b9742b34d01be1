"""Where rankings are computed: at once where that is quick, else in a thread, together with those that wait.

Invariant: a ranking that takes longer than about 2 ms never runs on the event loop, and what runs in the
thread is one block of users against one item table at a time. So many wait; one more is refused at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factors import Float32s, Int64s, Ranked
from featurestore.generations.follower import LiveGeneration
from service.http.problems import Problem
from service.metrics import Snapshot

# Multiplications of a product that numpy does on one core in about half a millisecond; choosing the best
# takes as long again.
_QUICK = 1_000_000
_BLOCK = 64


@dataclass(slots=True)
class _Wish:
    """One user's ranking that waits for the thread."""

    live: LiveGeneration
    vector: Float32s
    n: int
    exclude: Int64s
    rng: np.random.Generator | None
    answer: asyncio.Future[Ranked]


def cost(live: LiveGeneration, *, sampled: bool, depth: int | None = None) -> float:
    """Multiplications of one ranking: rows that are gone through times what is multiplied of each.

    `depth`: how many items are wanted or excluded; None where the whole table is gone through.
    """
    dim = live.model.rank + 1
    if sampled:
        return live.ranker.n_items * (dim * (dim + 1) // 2 + dim)
    return live.ranker.n_items * dim * (1.0 if depth is None else live.ranker.share(depth))


class RankingDesk:
    """Ranks items for users. What is slow queues for one thread, which takes up to 64 users of a generation
    at once.
    """

    def __init__(self, counts: Snapshot, *, waiting: int) -> None:
        self._counts = counts
        self._most = waiting
        self._queue: list[_Wish] = []
        self._running: asyncio.Task[None] | None = None

    async def top(
        self,
        live: LiveGeneration,
        vector: Float32s,
        n: int,
        exclude: Int64s,
        rng: np.random.Generator | None = None,
    ) -> Ranked:
        """The best `n` items for the user with `vector` (user_width,) but the rows in `exclude`.

        Raises `overloaded` where too many wait already.
        """
        if cost(live, sampled=rng is not None, depth=n + len(exclude)) <= _QUICK:
            return live.ranker.top(vector[None], n, [exclude], rng)[0]
        if len(self._queue) >= self._most:
            self._counts.overloads += 1
            raise Problem("overloaded", f"{len(self._queue)} rankings wait", retry_after_s=1)
        answer: asyncio.Future[Ranked] = asyncio.get_running_loop().create_future()
        self._queue.append(_Wish(live, vector, n, exclude, rng, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="rank")
        return await answer

    async def similar(self, live: LiveGeneration, item_row: int, n: int) -> Ranked:
        """The `n` items most like `item_row`."""
        if live.ranker.prepared and cost(live, sampled=False) <= _QUICK:
            return live.ranker.similar(item_row, n)
        return await asyncio.to_thread(live.ranker.similar, item_row, n)

    async def popular(self, live: LiveGeneration, n: int) -> Ranked:
        """The `n` most loved items."""
        if live.ranker.prepared and cost(live, sampled=False) <= _QUICK:
            return live.ranker.popular(n)
        return await asyncio.to_thread(live.ranker.popular, n)

    async def close(self) -> None:
        """Give up what waits."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._queue:
                block = self._next_block()
                try:
                    ranked = await asyncio.to_thread(_rank, block)
                except Exception as exc:  # noqa: BLE001 -- each request of the block gets it; the edge tells what it is
                    for wish in block:
                        if not wish.answer.done():
                            wish.answer.set_exception(exc)
                    continue
                for wish, found in zip(block, ranked, strict=True):
                    if not wish.answer.done():
                        wish.answer.set_result(found)
        finally:
            self._running = None
            for wish in self._queue:
                wish.answer.cancel()
            self._queue.clear()

    def _next_block(self) -> list[_Wish]:
        """The first that waits, with those that can be ranked in the same product. A draw is made for one
        user alone.
        """
        first = self._queue[0]
        block = [first]
        if first.rng is None:
            block = [
                wish
                for wish in self._queue
                if wish.live is first.live and wish.n == first.n and wish.rng is None
            ][:_BLOCK]
        taken = set(map(id, block))
        self._queue = [wish for wish in self._queue if id(wish) not in taken]
        return block


def _rank(block: Sequence[_Wish]) -> list[Ranked]:
    first = block[0]
    vectors = np.stack([wish.vector for wish in block])
    return first.live.ranker.top(vectors, first.n, [wish.exclude for wish in block], first.rng)
