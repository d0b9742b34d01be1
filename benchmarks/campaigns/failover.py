"""Replicas are promoted again and again under load: is anything acknowledged missing?

A primary with two replicas and three sentinels; two workers of the service and a trainer, with
`durability=replicated`. In turn the primary is killed, frozen and let go on after its replacement, or
replaced by a sentinel while it goes on. Prints how many ratings were acknowledged, for how long none was at
each promotion, and how many acknowledged ratings are missing in the end. Exit code 1 if any is.
"""

import asyncio
import contextlib
import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.campaigns.acknowledged import Books, refit
from benchmarks.campaigns.local_stack import CALL_S
from benchmarks.harness import stack
from benchmarks.harness.command import carry_out_campaign, read
from benchmarks.harness.progress import turns
from evaluation.api_client import ApiClient
from featurestore.confirmation import Durability
from featurestore.settings import StoreSettings
from foldin.torture.replica_set import WAYS, Kind, ReplicaSet, Way, replica_set
from processes.settings import choice, setting, whole

# Each has users of its own; two for each worker.
RATERS = 4
# Load before, between and after: refits and publishes that a promotion can meet.
LOAD_S = 2.0
# Ratings are acknowledged again within seconds; without an end a campaign that got stuck would say nothing.
BACK_WITHIN_S = 60.0


@dataclass(slots=True)
class Report:
    """What a campaign found. `gaps`: by way, for how many seconds no rating was acknowledged at a
    promotion.
    """

    acknowledged: int = 0
    refused: int = 0
    gaps: dict[Way, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    missing: dict[str, int] = field(default_factory=dict)
    doubled: int = 0

    @property
    def promotions(self) -> int:
        """How often a replica was promoted."""
        return sum(map(len, self.gaps.values()))

    @property
    def wrong(self) -> int:
        """How many things were found that must not be."""
        return sum(self.missing.values()) + self.doubled

    def lines(self) -> list[str]:
        """Return the figures for people."""
        rows = [
            f"ratings acknowledged            {self.acknowledged:>9,}",
            f"calls refused or cut off        {self.refused:>9,}",
            f"promotions                      {self.promotions:>9,}",
        ]
        rows += [
            f"  by {way:<26} {len(gaps):>9,}, no rating for {statistics.median(gaps):.1f} s (median), "
            f"{max(gaps):.1f} s (most)"
            for way, gaps in self.gaps.items()
            if gaps
        ]
        rows += [f"missing from the {place:<14} {count:>9,}" for place, count in self.missing.items()]
        rows.append(f"events twice in the archive     {self.doubled:>9,}")
        return [*rows, "nothing acknowledged is lost" if self.wrong == 0 else "LOST: see above"]


async def campaign(
    *, promotions: int, seed: int, ways: Sequence[Way], server: Kind, durability: Durability, data: Path
) -> Report:
    """Run a campaign of so many promotions, `ways` in turn, on servers of its own in `data`."""
    report, books = Report(), Books()
    settings = {"FOLDIN_DURABILITY": durability, "FOLDIN_SCALE": "1:5"}
    refits = {"FOLDIN_REFIT_EVENTS": "2000", "FOLDIN_REFIT_SECONDS": "5"}
    with contextlib.ExitStack() as ends:
        servers = ends.enter_context(replica_set(server, data / "store"))
        archive = ends.enter_context(stack.trainer(servers.url, scale="1:5", settings=settings | refits))
        port = ends.enter_context(stack.service(servers.url, workers=2, scale="1:5", settings=settings))
        # Each call has a connection of its own, perhaps to another worker.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True)
        ) as session:
            api = ApiClient(session, f"http://{stack.HOST}:{port}", timeout_s=CALL_S)
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for part in range(RATERS):
                    rng = random.Random(seed + part + 1)
                    group.create_task(books.rate(api, part, done.is_set, rng))
                try:
                    rng = random.Random(seed)
                    for turn in turns(promotions):
                        await asyncio.sleep(LOAD_S * rng.uniform(0.5, 1.5))
                        way = ways[turn % len(ways)]
                        report.gaps[way].append(await _promotion(servers, books, way))
                    await asyncio.sleep(LOAD_S)
                finally:
                    done.set()
            report.acknowledged, report.refused = books.ratings, books.refused
            report.missing["histories"] = await books.missing_from_histories(api)
            if report.wrong:
                # The trainer's archive is ahead of what is left, and it fits no more.
                return report
            await refit(api)
            in_archive, seen, report.doubled = await books.missing_from_archive_and_generation(
                StoreSettings(url=servers.url), archive
            )
            report.missing |= {"archive": in_archive, "generation": seen}
    return report


async def _promotion(servers: ReplicaSet, books: Books, way: Way) -> float:
    """Have a replica promoted; return for how long no rating was acknowledged."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    times, again = [began_at], asyncio.Event()

    def accepted() -> None:
        times.append(loop.time())
        again.set()

    books.accepted = accepted
    old = await asyncio.to_thread(servers.replace_primary, way)
    again.clear()
    # While the old one is on its way back, too: until it is told it takes itself for the primary.
    back = asyncio.create_task(asyncio.to_thread(servers.bring_back, old, way), name="bring back")
    async with asyncio.timeout(BACK_WITHIN_S):
        await again.wait()
    await back
    return max(later - before for before, later in itertools.pairwise(times))


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign takes."""

    promotions: int = setting(50, "how often a replica is promoted", whole(1))
    seed: int = setting(1, "of all that is random", whole(0))
    ways: tuple[Way, ...] = setting(WAYS, "what happens to the primary", choice(WAYS), many=True)
    server: Kind = setting("redis", "`redis` or `valkey`", choice(("redis", "valkey")))
    durability: Durability = setting(
        "replicated", "of the service and the trainer", choice(("store", "fsync", "replicated"))
    )


def main(argv: Sequence[str]) -> int:
    """Run a campaign; 1 where anything acknowledged was lost."""
    return carry_out_campaign(campaign, read(Options, "failover", __doc__, argv))
