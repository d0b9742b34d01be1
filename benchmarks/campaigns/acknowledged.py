"""What was acknowledged, and whether it is there: the books of a campaign.

Invariant: of one pair no two calls are under way, so that its last acknowledged rating is known.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from evaluation.api_client import ApiClient, ApiError, Rating
from factors import Ranker, Scorer, posterior_of
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Pointer
from featurestore.settings import StoreSettings
from featurestore.store import Store
from trainer.archive.segments import SegmentName, read_segment

# A world so small that refits end between two faults, and others are hit by them.
USERS, ITEMS = 400, 120
# What a user rates an item: something that can be learned, so that the trainer's gate lets the refits pass...
LEVELS = 7
# ... and a little more each time, so that each acknowledged rating of a pair can be told from any other.
TICK, TICKS = 1e-6, 400_000
# A call that a fault leaves without an answer must not keep its part of the load away for long.
CALL_S = 15.0
# Refits that are asked for in the end, at most: the parts may have to find each other first.
LAST_REFITS = 60

Pair = tuple[str, str]


@dataclass(slots=True)
class Books:
    """What the raters know. `allowed`: what may stand as the last rating of a pair: the last one that was
    acknowledged, or one sent after it. `accepted`: called for each call that is acknowledged.
    """

    allowed: dict[Pair, set[float]] = field(default_factory=dict)
    acknowledged: dict[Pair, float] = field(default_factory=dict)
    ratings: int = 0
    refused: int = 0
    accepted: Callable[[], None] = lambda: None
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def rate(self, api: ApiClient, part: int, until: Callable[[], bool], rng: random.Random) -> None:
        """Rate in small and larger calls until the time is up; note what was acknowledged.

        Each part has users of its own.
        """
        while not until():
            rows = {}
            # One rating and many take different ways through the service and in the store.
            for _ in range(rng.choice((1, 3, 50))):
                user, item = rng.randrange(USERS), rng.randrange(ITEMS)
                value = 1.0 + 0.5 * ((user + item) % LEVELS) + (next(self._numbers) % TICKS) * TICK
                rows[f"u{part}-{user}", f"i{item}"] = value
            for pair, value in rows.items():
                self.allowed.setdefault(pair, set()).add(value)
            try:
                async with asyncio.timeout(CALL_S):
                    await api.rate([Rating(*pair, value) for pair, value in rows.items()])
            except (ApiError, TimeoutError):
                self.refused += 1
                # The service is away, or waits for its store: asked at once again it would only refuse more.
                await asyncio.sleep(0.05)
                continue
            self.ratings += len(rows)
            self.accepted()
            for pair, value in rows.items():
                # An earlier call that was cut off may have been taken, but not after this one.
                self.allowed[pair] = {value}
                self.acknowledged[pair] = value

    async def missing_from_histories(self, api: ApiClient) -> int:
        """Count the acknowledged ratings that the service does not have."""
        held = {
            (user, item): rating
            for user in sorted({user for user, _ in self.acknowledged})
            for item, rating in (await api.ratings(user)).items()
        }
        return self._missing(held)

    async def missing_from_archive_and_generation(
        self, settings: StoreSettings, archive: Path
    ) -> tuple[int, int, int]:
        """Count the acknowledged ratings that are not in the archive, those that the live generation has not
        seen, and the events that are in the archive twice. `archive`: the folder of all namespaces.
        """
        store = await Store.open(settings, hot=False)
        try:
            pointer = await store.generations.live()
            folder = archive / settings.namespace / f"epoch-{pointer.epoch:06d}"
            events = pa.concat_tables([read_segment(path)[0] for path in _segments(folder)])
            users, items = events["user_id"].to_pylist(), events["item_id"].to_pylist()
            counters, values = events["n"].to_pylist(), events["rating"].to_pylist()
            # A user's counter names an event: the same twice is one event archived twice.
            doubled = len(users) - len(set(zip(users, counters, strict=True)))
            held: dict[Pair, float] = {}
            for _, user, item, value in sorted(zip(counters, users, items, values, strict=True)):
                held[user, item] = value
            return self._missing(held), await _behind(store, pointer, self.acknowledged), doubled
        finally:
            await store.close()

    def _missing(self, held: dict[Pair, float]) -> int:
        return sum(held.get(pair) not in self.allowed[pair] for pair in self.acknowledged)


async def refit(api: ApiClient) -> None:
    """Ask for a refit until one succeeds."""
    last = ""
    for _ in range(LAST_REFITS):
        try:
            return await api.train(retry=False)
        except ApiError as exc:
            last = str(exc)
        await asyncio.sleep(0.5)
    raise RuntimeError(f"no refit after the campaign: {last}")


def _segments(folder: Path) -> list[Path]:
    """Return the segments that count: a merge that was just made may still lie beside what it covers."""
    named = [(name, path) for path in sorted(folder.iterdir()) if (name := SegmentName.parse(path.name))]
    return [path for name, path in named if not any(other.covers(name) for other, _ in named)]


async def _behind(store: Store, pointer: Pointer, acknowledged: dict[Pair, float]) -> int:
    """Count the acknowledged ratings of users whose record in the generation has not seen all that they
    rated.
    """
    meta = await store.generations.meta(pointer.epoch, pointer.generation)
    posterior = posterior_of(meta.model)
    # The counter rule alone is asked, which needs no item.
    items = np.empty((0, meta.model.item_width), dtype=np.float32)
    scorer, ranker = Scorer(posterior, items), Ranker(posterior, items)
    live = LiveGeneration(
        pointer.epoch, pointer.generation, posterior, items, 0, scorer=scorer, ranker=ranker, meta=meta
    )
    ratings_of = Counter(user for user, _ in acknowledged)
    users = list(ratings_of)
    found = await store.users.lookup(live, [user.encode() for user in users])
    # An unknown user is not behind for the rule, but has lost all here.
    lost = {*found.behind, *np.flatnonzero(found.n == 0).tolist()}
    return sum(ratings_of[users[position]] for position in lost)
