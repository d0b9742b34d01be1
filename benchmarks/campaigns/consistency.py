"""Hundreds of new users rate and ask at once over several workers while refits follow each other.

Prints how many answers were stale (they lack a rating that had been acknowledged) and how many mix
generations (no generation explains them alone). An answer is explained by the generation that it names if
folding in what its user had rated, with item rows that this generation has had, gives its rating. Exit code 1
if any is not.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaigns.local_stack import local_stack
from benchmarks.harness.command import carry_out_campaign, read
from benchmarks.harness.stack import NO_REFITS
from evaluation.api_client import ApiClient, ApiError, Rating, TrainBody
from factors import Float32s, Histories, Model, Scorer, posterior_of
from featurestore.errors import StoreError
from featurestore.generations.manifest import decode_deltas
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.settings import setting, whole

# A world so small that many refits fall into one campaign.
SEEDERS, ITEMS = 150, 60
# New users rate the first of the items and ask about the last ones, whose rows move with no delta.
RATED, ASKED = 40, range(50, 60)
# Records are float32; the fold-in of the check adds in another order.
TOLERANCE = 2e-4
# Users at once, and how many may be asked for.
WAVE, MOST_USERS = 100, 1_000
# Seconds between waves, for the fits, which give way to the service: while users are wanted, and while only
# refits are; and how long those are waited for, on however busy a machine.
REST_S, LONG_REST_S, MOST_S = 0.25, 2.0, 180.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: what its user had rated by then (item, rating, time), what was asked, what came."""

    rated: tuple[tuple[int, float, float], ...]
    item: int
    rating: float
    generation: int


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    answers: int = 0
    stale: int = 0
    unexplained: int = 0
    unknown_generation: int = 0
    generations: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    refits: int = 0

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
            f"failed calls                    {self.failed:>9,}",
        ]


@dataclass(slots=True)
class Seen:
    """A generation as seen in the store: its model, and every value that a row of its table has had."""

    model: Model
    base: Float32s
    versions: dict[int, list[Float32s]] = field(default_factory=lambda: defaultdict(list))
    after: str = "0"

    def of(self, row: int) -> list[Float32s]:
        """Return the values that row has had."""
        return [self.base[row], *self.versions[row]]


async def campaign(*, users: int, rounds: int, refits: int, seed: int, data: Path) -> Report:
    """Run a campaign on a stack of its own in `data`.

    Waves of new users: at least `users` of them, and as many as come until `refits` have gone live.
    """
    report = Report()
    async with local_stack(data, workers=2, settings=NO_REFITS) as stack:
        await _seed(stack.api, random.Random(seed))
        store = await Store.open(StoreSettings(url=stack.redis_url), hot=False)
        try:
            seen: dict[int, Seen] = {}
            await _observe(store, seen)
            done = asyncio.Event()
            observer = asyncio.create_task(_observing(store, seen, done), name="observer")
            refitting = asyncio.create_task(_refits(stack.api, report, done), name="refits")
            gathered: list[tuple[list[Answered], int]] = []
            ends = time.monotonic() + MOST_S
            while len(gathered) < users or (report.refits < refits and time.monotonic() < ends):
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
            await _observe(store, seen)
            rows = await _rows(store)
        finally:
            await store.close()
    # Checked in the end, when every generation and each value of its rows is known.
    for answers, failed in gathered:
        report.failed += failed
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
        await _observe(store, seen)
        # Many times a refit: a generation is removed when the second one after it begins.
        await asyncio.sleep(0.05)


async def _observe(store: Store, seen: dict[int, Seen]) -> None:
    for summary in await store.generations.list():
        if summary.state != "ready":
            continue
        try:
            meta = await store.generations.meta(summary.epoch, summary.generation)
            if summary.generation not in seen:
                table = b"".join([chunk async for chunk in store.generations.load_items(meta)])
                base = np.frombuffer(table, np.float32).reshape(-1, meta.model.item_width)
                seen[summary.generation] = Seen(meta.model, base)
            known = seen[summary.generation]
            name = store.keys.deltas(summary.epoch, summary.generation)
            entries: Any = await store.redis.xrange(name, f"({known.after}")
        except StoreError:  # removed between the list and the reading
            continue
        # One by one: of several together only the last value of a row would be seen, and answers may rest on
        # those between.
        for entry in entries:
            deltas = decode_deltas([entry], meta.model.item_width, known.after, b"deltas")
            known.after = deltas.after
            for row, vector in zip(deltas.rows.tolist(), deltas.vectors, strict=True):
                known.versions[row].append(vector)


async def _rows(store: Store) -> list[int]:
    """Return the item row of each item number."""
    pointer = await store.generations.live()
    rows = await store.items(pointer.epoch).rows([str(item).encode() for item in range(ITEMS)])
    if None in rows:
        raise RuntimeError("an item of the campaign has no row")
    return [row for row in rows if row is not None]


async def _refits(api: ApiClient, report: Report, done: asyncio.Event) -> None:
    while not done.is_set():
        try:
            await api.train(retry=False)
        except ApiError as exc:
            if exc.status == 0:
                raise
        else:
            report.refits += 1


async def _rater(api: ApiClient, user: str, rounds: int, rng: random.Random) -> tuple[list[Answered], int]:
    """Be a new user, `rounds` times: rate, then ask at once."""
    answers: list[Answered] = []
    rated: dict[int, tuple[float, float]] = {}
    failed, taste = 0, rng.randrange(5)
    for turn in range(rounds):
        # The third rating of a user is one that is changed.
        item = next(iter(rated)) if turn == 2 else rng.randrange(RATED)
        rating, at = _rating(taste, item, rng), 1.7e9 + turn
        try:
            await api.rate([Rating(user, str(item), rating, at)])
        except ApiError:
            return answers, failed + 1
        rated.pop(item, None)
        rated[item] = (rating, at)
        for asked in rng.sample(ASKED, 2):
            try:
                answer = await api.predict(user, str(asked))
            except ApiError:
                failed += 1
                continue
            facts = tuple((i, r, t) for i, (r, t) in rated.items())
            answers.append(Answered(facts, asked, answer.rating, answer.generation))
    return answers, failed


def _check(answer: Answered, seen: dict[int, Seen], rows: list[int], report: Report) -> None:
    report.answers += 1
    report.generations[answer.generation] += 1
    known = seen.get(answer.generation)
    if known is None:
        report.unknown_generation += 1
    elif not _explained(known, answer, answer.rated, rows):
        # Without its newest rating it would be one that came too late to be counted.
        stale = any(
            _explained(known, answer, answer.rated[:count], rows) for count in range(len(answer.rated))
        )
        report.stale += stale
        report.unexplained += not stale


def _explained(
    known: Seen, answer: Answered, rated: tuple[tuple[int, float, float], ...], rows: list[int]
) -> bool:
    """Return whether some state of the generation's table explains the answer to a user who had rated
    `rated`.
    """
    values = [known.of(rows[item]) for item, _, _ in rated]
    asked = known.of(rows[answer.item])
    choices = list(itertools.product(*values))
    # A table of its own with each value that any of the rows has had, for all the choices in one call.
    flat = [*asked, *itertools.chain.from_iterable(choices)]
    table = np.stack(flat)
    histories = Histories(
        np.arange(len(choices) + 1, dtype=np.int64) * len(rated),
        np.arange(len(asked), len(flat), dtype=np.int32),
        np.tile(np.array([r for _, r, _ in rated], dtype=np.float64), len(choices)),
        np.tile(np.array([t for _, _, t in rated], dtype=np.float64), len(choices)),
    )
    # Whether the fit of that generation knew this user already is not seen from here.
    posterior = posterior_of(known.model)
    newcomers = np.repeat(posterior.prior_user[None], len(choices), axis=0)
    index = np.repeat(np.arange(len(choices)), len(asked)), np.tile(np.arange(len(asked)), len(choices))
    scorer = Scorer(posterior, table)
    found = [
        scorer.score(posterior.fold_in_users(table, histories, current=current), *index).rating
        for current in (None, newcomers)
    ]
    pairs = len(choices) * len(asked)
    return pairs > 0 and bool(np.min(np.abs(np.concatenate(found) - answer.rating)) < TOLERANCE)


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign takes."""

    users: int = setting(500, "new users, at least", whole(1, MOST_USERS))
    rounds: int = setting(3, "ratings of each user", whole(1))
    refits: int = setting(5, "refits that must have gone live", whole(0))
    seed: int = setting(1, "of all that is random", whole(0))


def main(argv: Sequence[str]) -> int:
    """Run a campaign; 1 where an answer was wrong."""
    return carry_out_campaign(campaign, read(Options, "consistency", __doc__, argv))
