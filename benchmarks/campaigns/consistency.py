"""Hundreds of new users rate and ask at once over several workers while refits follow each other.

Prints how many answers were stale (they lack a rating that had been acknowledged) and how many mix
generations (no generation explains them alone; see `foldin/torture/explaining.py`). Exit code 1 if any is.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.campaigns.local_stack import local_stack
from benchmarks.harness.command import carry_out_campaign, read
from benchmarks.harness.stack import NO_REFITS
from evaluation.api_client import ApiClient, ApiError, Rating, TrainBody
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.torture.explaining import Answered, Seen, judge, observe
from processes.settings import setting, whole

# A world so small that many refits fall into one campaign.
SEEDERS, ITEMS = 150, 60
# New users rate the first of the items and ask about the last ones, whose rows move with no delta.
RATED, ASKED = 40, range(50, 60)
# Users at once, and how many may be asked for.
WAVE, MOST_USERS = 100, 1_000
# Seconds between waves, for the fits, which give way to the service: while users are wanted, and while only
# refits are; and how long those are waited for, on however busy a machine.
REST_S, LONG_REST_S, MOST_S = 0.25, 2.0, 180.0


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    answers: int = 0
    stale: int = 0
    unexplained: int = 0
    unknown_generation: int = 0
    generations: Counter[int] = field(default_factory=Counter)
    unjudged: int = 0
    failed: int = 0
    degraded: int = 0

    @property
    def wrong(self) -> int:
        """How many things were found that must not be."""
        return self.stale + self.unexplained + self.unknown_generation + self.failed

    def lines(self) -> list[str]:
        """Return the figures for people."""
        return [
            f"answers checked                 {self.answers:>9,}",
            f"generations that gave them      {len(self.generations):>9,}",
            f"stale                           {self.stale:>9,}",
            f"mixing generations              {self.unexplained:>9,}",
            f"from a generation never live    {self.unknown_generation:>9,}",
            f"too much to be tried            {self.unjudged:>9,}",
            f"failed calls                    {self.failed:>9,}",
            f"that say they may lack the last {self.degraded:>9,}",
        ]


async def campaign(*, users: int, rounds: int, refits: int, seed: int, data: Path) -> Report:
    """Run a campaign on a stack of its own in `data`.

    Waves of new users: at least `users` of them, and as many as come until `refits` new generations have
    answered.
    """
    report = Report()
    async with local_stack(data, workers=2, settings=NO_REFITS) as stack:
        await _seed(stack.api, random.Random(seed))
        store = await Store.open(StoreSettings(url=stack.redis_url), hot=False)
        try:
            seen: dict[int, Seen] = {}
            await observe(store, seen)
            done = asyncio.Event()
            observer = asyncio.create_task(_observing(store, seen, done), name="observer")
            refitting = asyncio.create_task(_refits(stack.api, done), name="refits")
            gathered: list[tuple[list[Answered], int, int]] = []
            ends = time.monotonic() + MOST_S
            while len(gathered) < users or (
                len(_generations(gathered)) <= refits and time.monotonic() < ends
            ):
                first = len(gathered)
                wave = [
                    _rater(stack.api, f"new-{k}", rounds, random.Random(f"{seed}-{k}"))
                    for k in range(first, first + WAVE)
                ]
                gathered += await asyncio.gather(*wave)
                await asyncio.sleep(REST_S if len(gathered) < users else LONG_REST_S)
            done.set()
            await refitting
            await observer
            await observe(store, seen)
            rows = await _rows(store)
        finally:
            await store.close()
    # Checked in the end, when every generation and each value of its rows is known.
    for answers, failed, degraded in gathered:
        report.failed += failed
        report.degraded += degraded
        for answer in answers:
            _check(answer, seen, rows, report)
    return report


async def _seed(api: ApiClient, rng: random.Random) -> None:
    pairs = [(u, i) for u in range(SEEDERS) for i in range(ITEMS) if rng.random() < 0.5]
    users, items = [u for u, _ in pairs], [i for _, i in pairs]
    await api.train(TrainBody(SEEDERS, ITEMS, users, items, [_rating(u, i, rng) for u, i in pairs]))


def _rating(taste: int, item: int, rng: random.Random) -> float:
    """Return a rating that can be learned, so that the trainer's gate lets the refits pass."""
    return min(5.0, max(1.0, 3.0 + 0.5 * (taste % 5 - 2) + 0.5 * (item % 5 - 2) + rng.gauss(0.0, 0.3)))


async def _observing(store: Store, seen: dict[int, Seen], done: asyncio.Event) -> None:
    while not done.is_set():
        await observe(store, seen)
        # Many times a refit: a generation is removed when the second one after it begins.
        await asyncio.sleep(0.05)


async def _rows(store: Store) -> list[int]:
    """Return the item row of each item number."""
    pointer = await store.generations.live()
    rows = await store.items(pointer.epoch).rows([str(item).encode() for item in range(ITEMS)])
    if None in rows:
        raise RuntimeError("an item of the campaign has no row")
    return [row for row in rows if row is not None]


def _generations(gathered: Iterable[tuple[list[Answered], int, int]]) -> set[int]:
    return {answer.generation for answers, *_ in gathered for answer in answers}


async def _refits(api: ApiClient, done: asyncio.Event) -> None:
    while not done.is_set():
        try:
            await api.train(retry=False)
        except ApiError as exc:
            if exc.status == 0:
                raise


async def _rater(
    api: ApiClient, user: str, rounds: int, rng: random.Random
) -> tuple[list[Answered], int, int]:
    """Be a new user, `rounds` times: rate, then ask at once. Return the answers, how many calls failed, and
    how many answers said themselves that they may lack something.
    """
    answers: list[Answered] = []
    rated: dict[int, tuple[float, float]] = {}
    failed, degraded, taste = 0, 0, rng.randrange(5)
    for turn in range(rounds):
        # The third rating of a user is one that is changed.
        item = next(iter(rated)) if turn == 2 else rng.randrange(RATED)
        rating, at = _rating(taste, item, rng), 1.7e9 + turn
        try:
            await api.rate([Rating(user, str(item), rating, at)])
        except ApiError:
            return answers, failed + 1, degraded
        rated.pop(item, None)
        rated[item] = (rating, at)
        for asked in rng.sample(ASKED, 2):
            try:
                answer = await api.predict(user, str(asked))
            except ApiError:
                failed += 1
                continue
            # Where the store was late: of what it lacks it says so.
            degraded += answer.degraded
            if answer.degraded:
                continue
            facts = tuple((i, r, t) for i, (r, t) in rated.items())
            answers.append(Answered(facts, asked, answer.rating, answer.generation))
    return answers, failed, degraded


def _check(answer: Answered, seen: dict[int, Seen], rows: list[int], report: Report) -> None:
    report.answers += 1
    report.generations[answer.generation] += 1
    known = seen.get(answer.generation)
    if known is None:
        report.unknown_generation += 1
        return
    verdict = judge(known, answer, rows)
    report.stale += verdict == "stale"
    report.unexplained += verdict == "mixed"
    report.unjudged += verdict is None


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign takes."""

    users: int = setting(500, "new users, at least", whole(1, MOST_USERS))
    rounds: int = setting(3, "ratings of each user", whole(1))
    refits: int = setting(5, "refits that must have gone live and answered", whole(0))
    seed: int = setting(1, "of all that is random", whole(0))


def main(argv: Sequence[str]) -> int:
    """Run a campaign; 1 where an answer was wrong."""
    return carry_out_campaign(campaign, read(Options, "consistency", __doc__, argv))
