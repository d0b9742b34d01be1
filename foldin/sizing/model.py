"""What a deployment takes: bytes of store, archive, service and fit, seconds of a fit and a publication.

Invariant: bytes are those of docs/sizing.md, which tests hold within 15 % of what is measured. Seconds are
those of measured fits, and what is beyond these says so.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from factors import INDEXED_ITEMS, Layout, RankingChoices, stored_width
from featurestore.settings import CLUSTER_PARTITIONS, PARTITIONS, STREAM_LIMIT
from foldin.sizing.measured import POINTS

# Of a user beside ratings and records, of a rating, and what a record takes beside its numbers (Redis 8.0,
# ids of 12 bytes; Valkey takes less).
USER, RATING, RECORD, RECORD_MORE = 260, 28, 12, 90
ITEM, EVENT = 120, 86  # in the registry of items; one that waits for the trainer
# The live generation, the one to roll back to, and the one that is being written.
GENERATIONS = 3
# Of the ranking head of a large catalogue.
HEAD_RANK, NEIGHBOURS = RankingChoices().rank, RankingChoices().neighbours
# Up to so many items the head may have them all as neighbours.
ALL_NEIGHBOURS = 2_000
# Of the servers of a cluster the fullest has so much more than the mean, for 1 to 64 of them, if there are
# enough partitions: each server holds whole ones (operations.md). More servers were never tried.
FULLEST, MANY_PARTITIONS, MOST_SERVERS = 1.05, 2048, 64
# The room that refits and the limit at which ratings are refused leave (`maxmemory`).
ROOM = 1.1
# The append-only file before it is rewritten, the rewrite, and what is kept free, in bytes of data.
DISK = (4 + 1) * 1.05
# Fewer primaries cannot agree on which of them is gone.
LEAST_PRIMARIES = 3
# A rating in the archive: 16 in large segments, 19 in those of a busy day.
ARCHIVED = 19
# A fit: a rating, one with sessions, a number of a row of either side, and all else; a rating while it is
# read. `foldin bench refit` prints how far off that is, and all that follows, but for the service.
FIT_RATING, FIT_SESSIONS, FIT_NUMBER, FIT_REST, FIT_READING = 67, 72, 32, 330e6, 120
# Its ranking head, once the ratings are done: an event, an item, and pairs of items that are worked on; a
# pair where all of them are neighbours.
HEAD_EVENT, HEAD_ITEM, HEAD_PAIRS, HEAD_PAIR = 44, 6_000, 70e6, 78
# All pairs are in one table of so many bytes, or of 40 a rating; else at most these.
HEAD_TABLE, HEAD_MOST = 1e8, 1.9e9
# The trainer: an event that is being archived or merged, and how many of them; a user and an item. The users
# of what came since the fit, a hundredth of the ratings, are there as the store has them.
TRAINER_EVENT, TRAINER_EVENTS, TRAINER_USER, TRAINER_ITEM, TRAINER_REST = 85, 1e6, 500, 1_500, 118e6
TRAINER_NEW = 0.01
# A service process, by item: both ways of its id, rows for large batches, when it may be shown; and all else.
# `foldin bench start` prints how far off that is.
WORKER_ITEM, WORKER_REST = 200 + 30 + 17, 120e6
# Seconds in which the records of a user are written, by the largest publication that was measured.
PUBLISHED_USER_S = 250e-6


class Figure(NamedTuple):
    """One figure of a deployment: `value` in `unit` (`bytes`, `s`, or of none), and what it `rests_on`."""

    part: str
    name: str
    value: float
    unit: str
    rests_on: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Its size, and of the model its `rank` and the `sessions` that the row of a user keeps. `server_bytes`:
    memory of a server of the store, which has so many `replicas`.
    """

    users: float
    items: float
    ratings: float
    rank: int = 16
    sessions: int = 0
    server_bytes: float = 32e9
    replicas: int = 1

    @property
    def user_width(self) -> int:
        """Numbers in the record of a user."""
        return Layout(self.rank, self.sessions).width

    @property
    def item_width(self) -> int:
        """Words in the stored row of an item."""
        return stored_width(Layout(self.rank, 0))

    @property
    def head_bytes(self) -> float:
        """The ranking head of a generation, an item."""
        neighbours = self.items if self.items <= ALL_NEIGHBOURS else NEIGHBOURS
        return 4 * HEAD_RANK + 8 + 8 * neighbours

    def store_bytes(self, partitions: int) -> float:
        """All that the store holds at most, with its ratings in so many partitions."""
        # Items that change between two fits: their rows at most twice, and their factors.
        changed = self.items * (8 * self.item_width + 8 * HEAD_RANK)
        return self.kept_bytes(GENERATIONS, GENERATIONS) + changed + EVENT * STREAM_LIMIT * partitions

    def kept_bytes(self, generations: int, heads: int) -> float:
        """What the store holds at most with so many `generations`, some with `heads`, where nothing waits for
        the trainer and no item has changed since the fit.
        """
        records = generations * (RECORD + 4 * self.user_width + RECORD_MORE)
        rows = ITEM + generations * 4 * self.item_width + heads * self.head_bytes
        of_users = self.users * (USER + records) + RATING * self.ratings
        return of_users + self.items * rows + generations * self._index()

    def _index(self) -> float:
        """The indexes of a generation, of the items and of the ranking head."""
        if self.items < INDEXED_ITEMS:
            return 0.0
        return 4 * self.items + 8 * (self.rank + 1 + HEAD_RANK) * math.sqrt(self.items)

    @property
    def primaries(self) -> int:
        """So many servers hold the store: one, or the primaries of a cluster."""
        return self._servers()[0]

    @property
    def partitions(self) -> int:
        """In so many parts the users' keys are to be (`FOLDIN_PARTITIONS`)."""
        return self._servers()[1]

    def _servers(self) -> tuple[int, int, float]:
        """Return the number of servers, that of partitions, and the share of the fullest server in all."""
        if self.store_bytes(PARTITIONS) * ROOM <= self.server_bytes:
            return 1, PARTITIONS, 1.0
        found = []
        for partitions in (CLUSTER_PARTITIONS, MANY_PARTITIONS):
            room = self.server_bytes / (ROOM * self.store_bytes(partitions))
            n = max(LEAST_PRIMARIES, math.ceil(FULLEST / room))
            # A server holds whole partitions.
            while n < partitions and math.ceil(partitions / n) > room * partitions:
                n += 1
            share = max(FULLEST / n, math.ceil(partitions / n) / partitions)
            found.append((share > room, n, partitions, share))
        return min(found)[1:]

    @property
    def fit_bytes(self) -> float:
        """The most that the process of a fit takes for the ratings."""
        rating = FIT_RATING + FIT_SESSIONS * (self.sessions > 0)
        fitting = rating * self.ratings + FIT_NUMBER * self.user_width * (self.users + self.items)
        return max(FIT_READING * self.ratings, fitting) + FIT_REST

    @property
    def head_fit_bytes(self) -> float:
        """The most that it takes for the ranking head."""
        n_items, ratings = self.items, self.ratings
        if n_items <= ALL_NEIGHBOURS:
            pairs = HEAD_PAIR * n_items**2
        elif n_items**2 <= max(HEAD_TABLE, 40 * ratings):
            pairs = HEAD_PAIRS + max(HEAD_ITEM * n_items, n_items**2)
        else:
            # Those of a user's items, as far as they are kept.
            pairs = HEAD_PAIRS + max(HEAD_ITEM * n_items, min(12 * ratings**2 / self.users, HEAD_MOST))
        return HEAD_EVENT * self.ratings + pairs + FIT_REST

    @property
    def trainer_bytes(self) -> float:
        """The most of its own that the trainer takes; files that it maps are the system's cache."""
        events = TRAINER_EVENT * min(self.ratings, TRAINER_EVENTS)
        raters = 4 * self.user_width * min(self.users, TRAINER_NEW * self.ratings)
        return events + TRAINER_USER * self.users + raters + TRAINER_ITEM * self.items + TRAINER_REST

    @property
    def worker_bytes(self) -> float:
        """What a process of the service takes of its own, once it has made lists and answered batches."""
        return self.items * (4 * (self.rank + 1) + 4 * HEAD_RANK + 8 + WORKER_ITEM) + WORKER_REST

    def figures(self) -> Iterator[Figure]:
        """Yield all that is known of it."""
        yield from self._store()
        archive = f"{ARCHIVED} bytes a rating"
        yield Figure("archive", "disk, backups as much again", ARCHIVED * self.ratings, "bytes", archive)
        yield from self._generation()
        yield from self._service()
        yield Figure(
            "trainer", "memory, beside that of a fit", self.trainer_bytes, "bytes", "sizing.md, the trainer"
        )
        yield from self._fit()

    def _store(self) -> Iterator[Figure]:
        n, partitions, share = self._servers()
        total = self.store_bytes(partitions)
        fullest = total * share
        kind = "one server" if n == 1 else "a cluster of primaries"
        yield Figure("store", "memory in all, without replicas", total, "bytes", "sizing.md, the store")
        rests = "--server" if n <= MOST_SERVERS else f"more than {MOST_SERVERS} were never tried: larger ones"
        yield Figure("store", kind, n, "", rests)
        yield Figure("store", "replicas", n * self.replicas, "", "--replicas")
        yield Figure("store", "FOLDIN_PARTITIONS", partitions, "", "before the first start")
        yield Figure(
            "store", "maxmemory of each", ROOM * fullest, "bytes", f"fullest <= {share * n:.3g} x the mean"
        )
        yield Figure("store", "disk of each", DISK * fullest, "bytes", "five times the data, for rewrites")

    def _generation(self) -> Iterator[Figure]:
        records = self.users * (RECORD + 4 * self.user_width)
        rows = self.items * (4 * self.item_width + self.head_bytes)
        yield Figure("publication", "written to the store", records + rows, "bytes", "all records and rows")
        seconds = PUBLISHED_USER_S * self.users
        yield Figure("publication", "until it is live", seconds, "s", "`bench publish`, a million users")

    def _service(self) -> Iterator[Figure]:
        table = 4 * self.item_width * (1.1 * self.items + 1024) + self.head_bytes * self.items
        rests = "sizing.md, a service process"
        yield Figure("service", "item tables of a host, mapped", GENERATIONS * table, "bytes", rests)
        yield Figure("service", "memory of a worker", self.worker_bytes, "bytes", rests)

    def _fit(self) -> Iterator[Figure]:
        rests = "sizing.md, a fit; on one machine"
        yield Figure("fit", "memory", max(self.fit_bytes, self.head_fit_bytes), "bytes", rests)
        measured = f"`bench refit`, {', '.join(f'{point.ratings:,}' for point in POINTS)} ratings"
        if self.ratings > POINTS[-1].ratings:
            measured += "; beyond in proportion"
        first = along(self.ratings, [(each.ratings, each.cold_s) for each in POINTS])
        again = along(self.ratings, [(each.ratings, each.again_s) for each in POINTS])
        yield Figure("fit", "until it is live, the first", first, "s", measured)
        yield Figure("fit", "again after 1 % more", again, "s", measured)


def along(at: float, points: Sequence[tuple[float, float]]) -> float:
    """Return the value at `at` of these points (where, value), in ascending order: on the line between two of
    them, before the first as there, and beyond the last in proportion.
    """
    where, value = np.array(points).T
    return float(np.interp(at, where, value) * max(at / where[-1], 1.0))
