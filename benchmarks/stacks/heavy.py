"""One user with 300,000 ratings: errors from a part of them, the fit, and what others notice of each more.

Invariant: everything stands beside the same without that user, in the same run and in turn. The errors of the
part of a history that counts are those of the same users, on the same ratings, from the same fit.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.data import datasets, synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, at_most, ratios
from benchmarks.load.client import Client
from benchmarks.load.generator import Plan, get, post, write_requests
from benchmarks.load.requests import drive, predict_requests, warm
from benchmarks.ratings import body_of, until_archived
from evaluation.offline.data import DataSet
from factors import RECENT, SAMPLED, FitSettings, Ratings, Scorer, fit
from factors.engine_api import prepare, user_rows
from processes.settings import choice, setting

PARTS = ("errors", "fit", "answers")
# The accident that this is about; the light user has what a busy person has.
HEAVY, LIGHT = 300_000, 300
# A deployment that one such user outweighs.
USERS, EACH, RANK = 10_000, 100, 8
# As many as a call may hold.
A_CALL = 10_000
# Ten ratings a second, each followed by a prediction; the others as in `overload`.
OWN_RATE, OTHERS_RATE, OTHERS_CONNECTIONS = 20.0, 100.0, 8
# What counts, and what else it could be.
BOUNDS = (64, 128, 256, 512, 1024, 2048, 4096)
# So few users say too little of a bound.
FEWEST = 20


@dataclass(frozen=True, slots=True)
class HeavyOptions(Options):
    """Those of every benchmark, and which parts of it are run."""

    parts: tuple[str, ...] = setting((), "parts to run", choice(PARTS), many=True, shown="all")


def measure(options: HeavyOptions, console: Console) -> list[Row]:
    """Measure the parts that are wanted, in this order."""
    rows: list[Row] = []
    parts = options.parts or PARTS
    if "errors" in parts:
        rows += _errors(options, console)
    if "fit" in parts:
        rows.append(_fits(options))
    if "answers" in parts:
        rows += _answers(options, console)
    return rows


def _errors(options: Options, console: Console) -> Iterator[Row]:
    """Yield, for each bound, the error from so much of a history, of that from all of it."""
    try:
        yield from _errors_of(datasets.ml_100k(), options)
    except BenchmarkError as exc:
        yield Row("ml-100k: RMSE from a part of the ratings", "x", skipped=str(exc))
    # Users of thousands of ratings.
    yield from _errors_of(
        datasets.synthetic(200, 8_000, options.size(700_000, 20_000), seed=options.seed), options
    )
    console.print("errors measured", style="dim")


def _errors_of(data: DataSet, options: Options) -> Iterator[Row]:
    held_out = np.random.default_rng(options.seed).random(len(data.ratings.value)) < 0.1
    # As ratings come: of a history, the latest are the last.
    order = np.argsort(data.ratings.time, kind="stable")
    train, test = (data.part(order[part[order]]) for part in (~held_out, held_out))
    sizes, settings = (data.n_users, data.n_items), FitSettings(data.scale)
    with threadpool_limits(1, user_api="blas"):
        fitted = fit(train, *sizes, settings=settings, rng=np.random.default_rng(options.seed))
        by_user = prepare(train, *sizes, settings)
        scorer = Scorer(fitted.posterior, fitted.items)
        whole = _squares(scorer, user_rows(fitted, by_user), test)
        for bound in BOUNDS:
            longer = by_user.counts > bound
            if longer.sum() < FEWEST:
                return
            some = longer[test.user_row]
            root = float(np.sqrt(whole[some].mean()))
            mixed, latest = (
                float(np.sqrt(_squares(scorer, user_rows(fitted, part), test)[some].mean())) / root
                for part in (by_user.thinned(bound // 2, bound - bound // 2), by_user.thinned(bound, 0))
            )
            yield Row(
                f"{data.name}: RMSE from {bound:,} ratings, half of them the latest",
                "x",
                (mixed,),
                at_most(1.005, 1.01) if bound == RECENT + SAMPLED else None,
                "all ratings of these users",
                f"{root:.4f} of {longer.sum()} users; the latest {bound:,} alone {latest:.4f} x",
            )


def _squares(scorer: Scorer, users: np.ndarray, test: Ratings) -> np.ndarray:
    scores = scorer.score(users, test.user_row.astype(np.int64), test.item_row.astype(np.int64), test.time)
    return np.asarray((test.value - scores.rating) ** 2)


def _fits(options: Options) -> Row:
    """Return the CPU seconds of a fit with the heavy user, of those without."""
    heavy, n_users = options.size(HEAVY, 5_000), options.size(USERS, 200)
    crowd = datasets.synthetic(n_users, 3_000, n_users * EACH, seed=options.seed)
    rng, r = np.random.default_rng(options.seed), crowd.ratings
    both = Ratings(
        np.append(r.user_row, np.full(heavy, n_users, dtype=np.int32)),
        np.append(r.item_row, np.arange(heavy, dtype=np.int32)),
        np.append(r.value, rng.choice(r.value, heavy)),
        np.append(r.time, np.sort(rng.uniform(r.time.min(), r.time.max(), heavy))),
    )
    with_user = DataSet("with", both, n_users + 1, max(crowd.n_items, heavy), crowd.scale)
    # The first round also pays for what is loaded: it does not count.
    rounds = [[_fit_s(data) for data in (with_user, crowd)] for _ in turns(max(2, options.rounds // 2))][1:]
    seconds, without = ([each[k] for each in rounds] for k in (0, 1))
    return Row(
        f"a fit with a user of {heavy:,} ratings of as many items: CPU",
        "x",
        ratios(seconds, without),
        None,
        "without that user",
        f"{seconds[-1]:.1f} and {without[-1]:.1f} s; {len(both.value) / len(r.value):.2f} times the ratings",
    )


def _fit_s(data: DataSet) -> float:
    with threadpool_limits(1, user_api="blas"):
        began = time.process_time()
        rng = np.random.default_rng(1)
        fit(data.ratings, data.n_users, data.n_items, settings=FitSettings(data.scale), rng=rng)
        return time.process_time() - began


def _answers(options: Options, console: Console) -> Sequence[Row]:
    """Return what others notice while the heavy user rates, of what they do while the light one does."""
    n_users, heavy = options.size(USERS, 100), options.size(HEAVY, 5_000)
    generation = synthetic.make(n_users, heavy, rank=RANK, seed=options.seed)
    cores = stack.cores(options)
    ids, counts = (n_users, n_users + 1), (heavy, LIGHT)
    others_ms: list[list[float]] = [[], []]
    own_ms: list[list[float]] = [[], []]
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as name,
        stack.store_with(generation, cpus=cores.others) as url,
        stack.trainer(url, settings=stack.NO_REFITS),
        stack.service(url, cpus=cores.server) as port,
    ):
        folder = Path(name)
        asked = str(predict_requests(folder, n_users, heavy, seed=options.seed))
        few = Plan(port, asked, OTHERS_CONNECTIONS, seconds=options.seconds, warm_up_s=0.0, drain_s=30.0)
        for user, count in zip(ids, counts, strict=True):
            _rate(port, user, count)
        console.print(f"{n_users:,} users, one with {heavy:,} ratings", style="dim")
        rating = [_rates_and_asks(folder / str(user), user, heavy) for user in ids]
        warm(few)
        for turn in turns(options.rounds):
            for which in (0, 1) if turn % 2 else (1, 0):
                own = replace(few, requests=str(rating[which]), connections=1, rate=OWN_RATE)
                with ThreadPoolExecutor(2) as threads:
                    beside = threads.submit(drive, own, cpus=cores.others)
                    load = drive(replace(few, rate=OTHERS_RATE), cpus=cores.others)
                others_ms[which].append(load.percentile_ms(99))
                own_ms[which].append(beside.result().percentile_ms(50))
    against = f"a user of {LIGHT} ratings"
    rows = []
    for work, times, target in (
        (f"GET /predict of others, p99, while a user of {heavy:,} ratings rates", others_ms, at_most(1.5, 3)),
        ("that user's own rating, and the prediction after it: median of both", own_ms, None),
    ):
        detail = " and ".join(f"{np.median(each):.1f}" for each in times) + " ms"
        rows.append(Row(work, "x", ratios(*times), target, against, detail))
    return rows


def _rate(port: int, user: int, count: int) -> None:
    """Rate so many items by `user`, and have that learned and archived."""
    with Client(port, timeout_s=60.0) as client:
        for start in range(0, count, A_CALL):
            items = range(start, min(start + A_CALL, count))
            client.ask(post("/ratings", body_of((user, item, item % 9) for item in items)))
        client.ask(get(f"/predict?user_id={user}&item_id=0"))
    until_archived(port)


def _rates_and_asks(path: Path, user: int, n_items: int) -> Path:
    """Write requests: a rating of `user`, then a prediction, over and over; return the file."""
    requests = []
    for item in range(min(1_000, n_items)):
        rating = {"user_id": str(user), "item_id": str(item), "rating": 1 + 0.5 * (item % 9)}
        requests.append(post("/ratings", json.dumps(rating).encode()))
        requests.append(get(f"/predict?user_id={user}&item_id={(7 * item) % n_items}"))
    return write_requests(path, requests)


main = benchmark("heavy", __doc__, measure, HeavyOptions)
