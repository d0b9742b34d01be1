"""Finds the users whose taste is nearest to a user's, among the most active ones. Invariant: each user in an
answer was known to the store when it was asked, and has the likeness of that moment; no work of an answer
grows with the data.

Tastes are those of the ratings; where a generation has learned none, those of the ranking head, by events.

What a worker keeps of the most active users chooses whom to look at: it is read when a call asks for it, and
let go a minute after, where histories are read for it ten minutes after. Of those few the records are read
anew, or the histories.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np

from factors import Bools, Float32s, HeadTastes, Int64s, Tastes, item_statistics
from featurestore.codecs import History, pack_feedback
from featurestore.errors import StoreDamaged
from featurestore.generations.live import LiveGeneration
from featurestore.generations.served import FOLLOWED_S
from featurestore.id_columns import Ids
from featurestore.store import Store
from featurestore.users.active import MOST_ACTIVE_BY_EVENTS

# A user who came to be near is found as late; reading all is a few large batches of predictions.
_KEPT_S = 60.0
# By events it is histories that are read and folded in: 60 MB where all are long.
_KEPT_BY_EVENTS_S = 600.0
# What was read last stays for answers while the store is away, some 2 MB: as long as copies of users do.
_HELD_S = 300.0
# Numbers of records that are read at once, some 16 MB.
_NUMBERS_AT_ONCE = 1 << 22
# Numbers of records that are compared on the event loop: about a millisecond.
_QUICK_NUMBERS = 1 << 17
# Histories that are read and folded in at once: 2 MB of the longest, and 14 MB where all have contexts.
_HISTORIES_AT_ONCE = 32
# What is less is shown as 0.
_LEAST = 1e-6
# Looked at beside those that are wanted: some were forgotten or have moved away since.
_SPARE = 32


NO_HISTORY = History(np.zeros(0, np.int32), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True)
class NearUser:
    """A user, the `likeness` (1: the same taste, 0: none in common), and how many ratings that rests on;
    where there are none, how many events of all types were read, of a long history a sample.
    """

    user_id: bytes
    likeness: float
    count: int


@dataclass(frozen=True, slots=True)
class Seeker:
    """A user whose neighbours are looked for: the `vector` (user_width,), and where there are no ratings the
    `history`.
    """

    user_id: bytes
    vector: Float32s
    history: History = NO_HISTORY


@dataclass(frozen=True, slots=True)
class _Table:
    """`directions` float32 (u, rank) of users, by whose products these are alike; `counts` (u,): how many
    ratings or events they rest on. `begun`: which reading of users it is (`UserCopies.begun`).
    """

    tastes: Tastes | HeadTastes
    user_ids: list[bytes]
    known: frozenset[bytes]
    directions: Float32s
    counts: Int64s
    begun: int | None

    @property
    def kept_s(self) -> float:
        """For how long calls choose by it."""
        return _KEPT_S if isinstance(self.tastes, Tastes) else _KEPT_BY_EVENTS_S

    def among(self, user_id: bytes) -> int:
        """Return of how many users those found are the nearest: of all but the one who asks."""
        return len(self.user_ids) - (user_id in self.known)


class Nearest:
    """Answers of one worker. Every method may raise `StoreError`. While the store is away it answers from
    what it read last, as long as no user was forgotten since.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # By the generation and the store that it is of. A task is shared by those who wait for it.
        self._tables: dict[tuple[str, int], asyncio.Task[_Table]] = {}
        # What was read last, and the timer that lets it go.
        self._held: dict[tuple[str, int], tuple[_Table, asyncio.TimerHandle]] = {}

    async def near(
        self, live: LiveGeneration, seeker: Seeker, *, n: int, least: float
    ) -> tuple[list[NearUser], int]:
        """Return the `n` users nearest to one, the nearest first, those with a likeness above 0 and of at
        least `least`; and among how many they were looked for.
        """
        table, least = await self._table(live), max(least, _LEAST)
        own = await _direction_of(live, table.tastes, seeker)
        likeness = table.directions @ own
        found = [table.user_ids[k] for k in _best(likeness, n).tolist()]
        directions, counts, known = await self._current(live, table.tastes, found)
        likeness = directions @ own
        near = [
            NearUser(found[k], float(likeness[k]), int(counts[k])) for k in np.flatnonzero(known).tolist()
        ]
        return _nearest(near, seeker.user_id, n, least), table.among(seeker.user_id)

    async def held(
        self, live: LiveGeneration, seeker: Seeker, *, n: int, least: float
    ) -> tuple[list[NearUser], int] | None:
        """Return the same of what was read last, without the store; None where there is nothing that may be
        answered from.
        """
        copies = self._store.users.copies
        table, _ = self._held.get((self._store.identity, live.generation), (None, None))
        if table is None or copies is None or not copies.holds(table.begun):
            return None
        likeness = table.directions @ await _direction_of(live, table.tastes, seeker)
        near = [
            NearUser(table.user_ids[k], float(likeness[k]), int(table.counts[k]))
            for k in _best(likeness, n).tolist()
        ]
        return _nearest(near, seeker.user_id, n, max(least, _LEAST)), table.among(seeker.user_id)

    async def close(self) -> None:
        """End what is being read."""
        tasks = list(self._tables.values())
        for task in tasks:
            task.cancel()
        for _, timer in self._held.values():
            timer.cancel()
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
        failed, loop = task.cancelled() or task.exception() is not None, asyncio.get_running_loop()
        loop.call_later(0.0 if failed else task.result().kept_s, self._tables.pop, key, None)
        if not failed:
            self._hold(key, task.result())

    def _hold(self, key: tuple[str, int], table: _Table) -> None:
        """Hold a table in place of the one before; again for a while, as long as the store is away."""
        if key in self._held:
            self._held[key][1].cancel()
        timer = asyncio.get_running_loop().call_later(max(_HELD_S, table.kept_s), self._let_go, key)
        self._held[key] = table, timer

    def _let_go(self, key: tuple[str, int]) -> None:
        table, _ = self._held.pop(key)
        if time.monotonic() - self._store.users.followed_at > FOLLOWED_S:
            self._hold(key, table)

    async def _read(self, live: LiveGeneration) -> _Table:
        copies = self._store.users.copies
        # Before anything is read: of one who is forgotten meanwhile there may be something in it.
        begun = None if copies is None else copies.begun
        tastes: Tastes | HeadTastes
        if live.by_events and live.ranking is not None and not live.by_popularity:
            tastes = await live.in_thread(partial(HeadTastes, live.ranking.head))
            rank, step = tastes.rank, _HISTORIES_AT_ONCE
        else:
            tastes = await live.in_thread(partial(Tastes, live.posterior, live.items))
            rank, step = live.model.rank, max(1, _NUMBERS_AT_ONCE // live.model.user_width)
        ids = await self._store.active.ids(live.epoch)
        if isinstance(tastes, HeadTastes):
            # The fit has named so few where it had no ratings; of those that another named all workers take
            # the same.
            ids = sorted(ids, key=crc32)[:MOST_ACTIVE_BY_EVENTS]
        known: list[bytes] = []
        parts = [np.zeros((0, rank), dtype=np.float32)]
        counts = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(ids), step):
            some = ids[start : start + step]
            directions, count, there = await self._current(live, tastes, some)
            known += [some[k] for k in np.flatnonzero(there).tolist()]
            parts.append(directions[there])
            counts.append(count[there])
        return _Table(tastes, known, frozenset(known), np.concatenate(parts), np.concatenate(counts), begun)

    async def _current(
        self, live: LiveGeneration, tastes: Tastes | HeadTastes, user_ids: Sequence[bytes]
    ) -> tuple[Float32s, Int64s, Bools]:
        """Return the directions of users (u, rank) as of now, how much each rests on (u,), and who is known
        (u,).
        """
        if isinstance(tastes, Tastes):
            vectors, known = await self._records(live, user_ids)
            # A row of a user begins as one of an item.
            counts = item_statistics(vectors).count
            if vectors.size <= _QUICK_NUMBERS:
                return tastes.directions(vectors), counts, known
            return await asyncio.to_thread(tastes.directions, vectors), counts, known
        counts = np.zeros(len(user_ids), dtype=np.int64)
        parts = [np.zeros((0, tastes.rank), dtype=np.float32)]
        for start in range(0, len(user_ids), _HISTORIES_AT_ONCE):
            histories = await self._histories(live, user_ids[start : start + _HISTORIES_AT_ONCE])
            counts[start : start + len(histories)] = [each.entries for each in histories]
            parts.append(await _by_events(live, tastes, histories))
        return np.concatenate(parts), counts, counts > 0

    async def _histories(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> list[History]:
        """Return what the vectors of users rest on as of now, of a long history without a sample its end;
        nothing of one who is unknown.
        """
        try:
            return await self._store.users.parts(live.epoch, user_ids, one_look=True)
        except StoreDamaged:
            if len(user_ids) == 1:
                # One who cannot be read is near to no one, and keeps no other from an answer.
                return [NO_HISTORY]
        return [one for user_id in user_ids for one in await self._histories(live, [user_id])]

    async def _records(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> tuple[Float32s, Bools]:
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


async def _by_events(live: LiveGeneration, tastes: HeadTastes, histories: list[History]) -> Float32s:
    """Return the directions (u, r) of users with these histories."""

    def fold_in() -> Float32s:
        if live.ranking is None:
            # It was there when the tastes were learned, and came damaged when it was loaded again.
            return np.zeros((len(histories), tastes.rank), dtype=np.float32)
        return tastes.directions(live.ranking.head, pack_feedback(histories))

    return await live.in_thread(fold_in)


async def _direction_of(live: LiveGeneration, tastes: Tastes | HeadTastes, seeker: Seeker) -> Float32s:
    """Return the direction (rank,) of a user."""
    if isinstance(tastes, Tastes):
        (own,) = tastes.directions(seeker.vector[None])
    else:
        (own,) = await _by_events(live, tastes, [seeker.history])
    direction: Float32s = own
    return direction


def _best(likeness: Float32s, n: int) -> Int64s:
    """Return which of the users (u,) may be among the nearest `n`: those most alike, in no order."""
    wanted = min(len(likeness), n + 1 + _SPARE)
    best = np.argpartition(-likeness, wanted - 1)[:wanted] if wanted else np.zeros(0, dtype=np.int64)
    some: Int64s = best[likeness[best] > _LEAST]
    return some


def _nearest(found: Iterable[NearUser], user_id: bytes, n: int, least: float) -> list[NearUser]:
    """Return the `n` of some users that are nearest to another one, the nearest first."""
    near = [each for each in found if each.likeness >= least and each.user_id != user_id]
    # Of equal ones always the same comes first.
    near.sort(key=lambda each: (-each.likeness, each.user_id))
    return near[:n]
