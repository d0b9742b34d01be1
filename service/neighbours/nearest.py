"""Finds the users whose taste is nearest to a user's, among the most active ones. Invariant: each user in an
answer was known to the store when it was asked, and has the likeness of that moment; no work of an answer
grows with the data.

What a worker keeps of the most active users chooses whom to look at: it is read when a call asks for it, and
let go a minute after. Of those few the records are read anew.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from factors import Bools, Float32s, Tastes, item_statistics
from featurestore.errors import StoreDamaged
from featurestore.generations.live import LiveGeneration
from featurestore.id_columns import Ids
from featurestore.store import Store

# A user who came to be near is found as late; reading all is a few large batches of predictions.
_KEPT_S = 60.0
# Numbers of records that are read at once, some 16 MB.
_NUMBERS_AT_ONCE = 1 << 22
# Numbers of records that are compared on the event loop: about a millisecond.
_QUICK_NUMBERS = 1 << 17
# What is less is shown as 0.
_LEAST = 1e-6
# Looked at beside those that are wanted: some were forgotten or have moved away since.
_SPARE = 32


@dataclass(frozen=True, slots=True)
class NearUser:
    """A user, the `likeness` (1: the same taste, 0: none in common), and how many ratings that rests on."""

    user_id: bytes
    likeness: float
    ratings: int


@dataclass(frozen=True, slots=True)
class _Table:
    """`directions` float32 (u, rank) of users, by whose products these are alike."""

    tastes: Tastes
    user_ids: list[bytes]
    known: frozenset[bytes]
    directions: Float32s


class Nearest:
    """Answers of one worker. Every method may raise `StoreError`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By the generation and the store that it is of. A task is shared by those who wait for it.
        self._tables: dict[tuple[str, int], asyncio.Task[_Table]] = {}

    async def near(
        self, live: LiveGeneration, user_id: bytes, vector: Float32s, *, n: int, least: float
    ) -> tuple[list[NearUser], int]:
        """Return the `n` users nearest to one with the row `vector` (user_width,), the nearest first, those
        with a likeness above 0 and of at least `least`; and among how many they were looked for.
        """
        table, least = await self._table(live), max(least, _LEAST)
        (own,) = await _directions(live, table.tastes, vector[None])
        likeness = table.directions @ own
        wanted = min(len(likeness), n + 1 + _SPARE)
        best = np.argpartition(-likeness, wanted - 1)[:wanted] if wanted else np.zeros(0, dtype=np.int64)
        found = [table.user_ids[k] for k in best[likeness[best] > _LEAST].tolist()]
        vectors, known = await self._current(live, found)
        likeness = (await _directions(live, table.tastes, vectors)) @ own
        # A row of a user begins as one of an item.
        counts = item_statistics(vectors).count.tolist()
        near = [
            NearUser(found[k], float(likeness[k]), counts[k])
            for k in np.flatnonzero(known & (likeness >= least)).tolist()
            if found[k] != user_id
        ]
        # Of equal ones always the same comes first.
        near.sort(key=lambda each: (-each.likeness, each.user_id))
        return near[:n], len(table.user_ids) - (user_id in table.known)

    async def close(self) -> None:
        """End what is being read."""
        tasks = list(self._tables.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _table(self, live: LiveGeneration) -> _Table:
        key = (self._store.identity, live.generation)
        task = self._tables.get(key)
        if task is None:
            task = asyncio.create_task(self._read(live), name="read the most active users")
            self._tables[key] = task
            task.add_done_callback(partial(self._keep, key))
        # One caller that goes away leaves it to the others.
        return await asyncio.shield(task)

    def _keep(self, key: tuple[str, int], task: "asyncio.Task[_Table]") -> None:
        """Keep what was read for a while; what could not be read is tried again by the next call."""
        failed = task.cancelled() or task.exception() is not None
        asyncio.get_running_loop().call_later(0.0 if failed else _KEPT_S, self._tables.pop, key, None)

    async def _read(self, live: LiveGeneration) -> _Table:
        tastes = await live.in_thread(partial(Tastes, live.posterior, live.items))
        ids = await self._store.active.ids(live.epoch)
        step = max(1, _NUMBERS_AT_ONCE // live.model.user_width)
        known: list[bytes] = []
        parts = [np.zeros((0, live.model.rank), dtype=np.float32)]
        for start in range(0, len(ids), step):
            some = ids[start : start + step]
            vectors, there = await self._current(live, some)
            known += [some[k] for k in np.flatnonzero(there).tolist()]
            parts.append(await asyncio.to_thread(tastes.directions, vectors[there]))
        return _Table(tastes, known, frozenset(known), np.concatenate(parts))

    async def _current(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> tuple[Float32s, Bools]:
        """Return the records of users (u, user_width) as of now, and who is known (u,)."""
        try:
            users, index = await self._store.users.current_distinct(live, Ids.of(user_ids))
            return users.vectors[index], users.n[index] > 0
        except StoreDamaged:
            # One who cannot be read is near to no one, and keeps no other from an answer.
            lookup = await self._store.users.lookup(live, user_ids)
            known = lookup.n > 0
            known[lookup.behind] = False
            return lookup.vectors, known


async def _directions(live: LiveGeneration, tastes: Tastes, vectors: Float32s) -> Float32s:
    if vectors.size <= _QUICK_NUMBERS:
        return tastes.directions(vectors)
    return await asyncio.to_thread(tastes.directions, vectors)
