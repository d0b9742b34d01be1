"""SIGKILL of trainer, store and service at random moments of load: is anything acknowledged missing?

Prints how many ratings were acknowledged, how often each part was killed, and how many acknowledged ratings
are missing from the histories, from the archive, and from the generation that a refit at the end publishes.
Exit code 1 if any is.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.campaigns.local_stack import LocalStack, local_stack
from benchmarks.harness.command import carry_out_campaign, read
from evaluation.api_client import ApiClient, ApiError, Rating
from factors import Ranker, Scorer, posterior_of
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Pointer
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.settings import choice, real, setting, whole
from trainer.archive.segments import SegmentName, read_segment

VICTIMS = ("trainer", "store", "service")
# A world so small that refits end between two kills, and others are hit by them.
USERS, ITEMS = 400, 120
# What a user rates an item: something that can be learned, so that the trainer's gate lets the refits pass...
LEVELS = 7
# ... and a little more each time, so that each acknowledged rating of a pair can be told from any other.
TICK, TICKS = 1e-6, 400_000
# A call that a kill leaves without an answer must not keep its part of the load away for long.
CALL_S = 15.0


@dataclass(slots=True)
class Report:
    """What a campaign found. `missing`: by place, acknowledged ratings that are not there."""

    acknowledged: int = 0
    refused: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    missing: dict[str, int] = field(default_factory=dict)
    doubled: int = 0

    @property
    def wrong(self) -> int:
        """How many things were found that must not be."""
        return sum(self.missing.values()) + self.doubled

    def lines(self) -> list[str]:
        """Return the figures for people."""
        kills = ", ".join(f"{part} {self.kills[part]}" for part in VICTIMS)
        rows = [
            f"ratings acknowledged            {self.acknowledged:>9,}",
            f"calls refused or cut off        {self.refused:>9,}",
            f"SIGKILLs                        {kills}",
            *(f"missing from the {place:<14} {count:>9,}" for place, count in self.missing.items()),
            f"events twice in the archive     {self.doubled:>9,}",
        ]
        return [*rows, "nothing acknowledged is lost" if self.wrong == 0 else "LOST: see above"]


Pair = tuple[str, str]


async def campaign(
    *, seconds: float, seed: int, every_s: float, victims: Sequence[str], data: Path
) -> Report:
    """Run a campaign of `seconds` with a kill about every `every_s`, on a stack of its own in `data`."""
    report = Report()
    rng = random.Random(seed)
    # A small refit threshold, so that kills meet fits, publishes and archive writes.
    settings = {"FOLDIN_REFIT_EVENTS": "2000", "FOLDIN_REFIT_SECONDS": "5"}
    async with local_stack(data, workers=2, settings=settings) as stack:
        numbers = itertools.count()
        # What may stand as the last rating of a pair: the last one acknowledged, or one sent after it.
        allowed: dict[Pair, set[float]] = {}
        acknowledged: dict[Pair, float] = {}
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            for part in range(4):
                group.create_task(
                    _load(
                        stack,
                        part,
                        numbers=numbers,
                        books=(allowed, acknowledged),
                        until=until,
                        report=report,
                        rng=random.Random(seed + part + 1),
                    )
                )
            group.create_task(
                _killer(stack, rng, until=until, every_s=every_s, victims=victims, report=report)
            )
        await _refit(stack.api)
        await _check_histories(stack.api, allowed, acknowledged, report)
        await _check_archive_and_generation(stack, allowed, acknowledged, report)
    return report


async def _load(
    stack: LocalStack,
    part: int,
    *,
    numbers: "itertools.count[int]",
    books: tuple[dict[Pair, set[float]], dict[Pair, float]],
    until: float,
    report: Report,
    rng: random.Random,
) -> None:
    """Rate in small and larger calls until the time is up; note what was acknowledged.

    Each part has users of its own, so that of one pair no two calls are under way.
    """
    allowed, acknowledged = books
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        rows = {}
        # One rating and many take different ways through the service and in the store.
        for _ in range(rng.choice((1, 3, 50))):
            user, item = rng.randrange(USERS), rng.randrange(ITEMS)
            value = 1.0 + 0.5 * ((user + item) % LEVELS) + (next(numbers) % TICKS) * TICK
            rows[f"u{part}-{user}", f"i{item}"] = value
        for pair, value in rows.items():
            allowed.setdefault(pair, set()).add(value)
        try:
            async with asyncio.timeout(CALL_S):
                await stack.api.rate([Rating(*pair, value) for pair, value in rows.items()])
        except (ApiError, TimeoutError):
            report.refused += 1
            # The service is away, or waits for its store: asked at once again it would only refuse more.
            await asyncio.sleep(0.05)
            continue
        report.acknowledged += len(rows)
        for pair, value in rows.items():
            # An earlier call that was cut off may have been taken, but not after this one.
            allowed[pair] = {value}
            acknowledged[pair] = value


async def _killer(
    stack: LocalStack,
    rng: random.Random,
    *,
    until: float,
    every_s: float,
    victims: Sequence[str],
    report: Report,
) -> None:
    loop = asyncio.get_running_loop()
    turn = 0
    # After the last kill there is load for two seconds more: what it did must show.
    while (pause := rng.uniform(0.4, 1.6) * every_s) + loop.time() < until - 2.0:
        await asyncio.sleep(pause)
        # In turn, so that a short campaign meets each.
        victim = victims[turn % len(victims)]
        turn += 1
        if stack.kill(victim):
            report.kills[victim] += 1


async def _refit(api: ApiClient) -> None:
    """Ask for a refit until one succeeds."""
    last = ""
    for _ in range(60):
        try:
            return await api.train(retry=False)
        except ApiError as exc:
            last = str(exc)
        await asyncio.sleep(0.5)
    raise RuntimeError(f"no refit after the campaign: {last}")


async def _check_histories(
    api: ApiClient, allowed: dict[Pair, set[float]], acknowledged: dict[Pair, float], report: Report
) -> None:
    held = {
        (user, item): rating
        for user in sorted({user for user, _ in acknowledged})
        for item, rating in (await api.ratings(user)).items()
    }
    report.missing["histories"] = _missing(held, allowed, acknowledged)


def _missing(
    held: dict[Pair, float], allowed: dict[Pair, set[float]], acknowledged: dict[Pair, float]
) -> int:
    return sum(held.get(pair) not in allowed[pair] for pair in acknowledged)


async def _check_archive_and_generation(
    stack: LocalStack, allowed: dict[Pair, set[float]], acknowledged: dict[Pair, float], report: Report
) -> None:
    store = await Store.open(StoreSettings(url=stack.redis_url), hot=False)
    try:
        pointer = await store.generations.live()
        events = pa.concat_tables([read_segment(path)[0] for path in _segments(stack.data, pointer.epoch)])
        users, items = events["user_id"].to_pylist(), events["item_id"].to_pylist()
        counters, values = events["n"].to_pylist(), events["rating"].to_pylist()
        # A user's counter names an event: the same twice is one event archived twice.
        report.doubled = len(users) - len(set(zip(users, counters, strict=True)))
        held: dict[Pair, float] = {}
        for _, user, item, value in sorted(zip(counters, users, items, values, strict=True)):
            held[user, item] = value
        report.missing["archive"] = _missing(held, allowed, acknowledged)
        report.missing["generation"] = await _behind(store, pointer, acknowledged)
    finally:
        await store.close()


def _segments(data: Path, epoch: int) -> list[Path]:
    """Return the segments that count: a merge that was just made may still lie beside what it covers."""
    folder = data / "archive" / StoreSettings().namespace / f"epoch-{epoch:06d}"
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


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign takes."""

    seconds: float = setting(120.0, "length of the load", real(1, 1e6))
    every_s: float = setting(9.0, "seconds between kills, on average", real(0.1, 1e6), flag="--every")
    seed: int = setting(1, "of all that is random", whole(0))
    victims: tuple[str, ...] = setting(("trainer", "store"), "what is killed", choice(VICTIMS), many=True)


def main(argv: Sequence[str]) -> int:
    """Run a campaign; 1 where anything acknowledged was lost."""
    return carry_out_campaign(campaign, read(Options, "durability", __doc__, argv))
