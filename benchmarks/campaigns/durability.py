"""SIGKILL of trainer, store and service at random moments of load: is anything acknowledged missing?

Prints how many ratings were acknowledged, how often each part was killed, and how many acknowledged ratings
are missing from the histories, from the archive, and from the generation that a refit at the end publishes.
Exit code 1 if any is.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.campaigns.acknowledged import Books, refit
from benchmarks.campaigns.local_stack import LocalStack, local_stack
from benchmarks.harness.command import carry_out_campaign, read
from featurestore.settings import StoreSettings
from processes.settings import choice, real, setting, whole

VICTIMS = ("trainer", "store", "service")


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


async def campaign(
    *, seconds: float, seed: int, every_s: float, victims: Sequence[str], data: Path
) -> Report:
    """Run a campaign of `seconds` with a kill about every `every_s`, on a stack of its own in `data`."""
    report, books = Report(), Books()
    rng = random.Random(seed)
    # A small refit threshold, so that kills meet fits, publishes and archive writes.
    settings = {"FOLDIN_REFIT_EVENTS": "2000", "FOLDIN_REFIT_SECONDS": "5"}
    async with local_stack(data, workers=2, settings=settings) as stack:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            for part in range(4):
                raters = random.Random(seed + part + 1)
                group.create_task(books.rate(stack.api, part, lambda: loop.time() >= until, raters))
            group.create_task(
                _killer(stack, rng, until=until, every_s=every_s, victims=victims, report=report)
            )
        report.acknowledged, report.refused = books.ratings, books.refused
        await refit(stack.api)
        report.missing["histories"] = await books.missing_from_histories(stack.api)
        archive, generation, report.doubled = await books.missing_from_archive_and_generation(
            StoreSettings(url=stack.redis_url), data / "archive"
        )
        report.missing |= {"archive": archive, "generation": generation}
    return report


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
