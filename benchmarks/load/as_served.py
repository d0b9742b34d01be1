"""One rating, then a prediction, by the model that is served; and what folding a history in takes.

Invariant: nothing is chosen for the model: MovieLens 100K (a made set in steps where it cannot be had) is
imported by POST /ratings and fitted as the defaults have it, on a store that syncs each write. Refits follow
each other without a pause meanwhile. Pairs are asked at a steady rate, one of a bare aiohttp handler between
two of the service.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from tempfile import TemporaryFile

import numpy as np
from rich.console import Console

from benchmarks.data import datasets
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, Target, at_most
from benchmarks.load.client import Client
from benchmarks.load.generator import get, post
from evaluation.offline.data import DataSet
from factors import FitSettings, Fitted, Float64s, Histories, Scale, fit, fold_in_code
from featurestore.users import compiled

STARS = Scale(1, 5, 1)
# As many ratings as a call may hold.
A_CALL = 10_000
# A pair every 20 ms, and one of the bare handler half-way: both cores are idle most of the time.
EVERY_S = 0.02
# As soon as one refit has ended and anything was rated, the next begins.
REFITS = {"FOLDIN_REFIT_SECONDS": "0.5", "FOLDIN_REFIT_SHARE": "100"}
# The fit takes 11 s of a core, and gives way to all others.
LEARN_S = 900.0
# Of new users, the median and the busy ones of MovieLens 100K, and all that counts of a longer one.
LENGTHS = (10, 80, 300, 2048)
# That of larger stores.
RANK = 16
# Of one length: folded in so often in a row.
TIMES = 20
# So many writes of the size of a rating in the store's log show what the disk takes.
SYNCS, SYNCED_BYTES = 100, 300


def rows_as_served(options: Options, console: Console) -> list[Row]:
    """Measure the pairs, and the fold-in by itself."""
    data = ratings_in_steps(options)
    # Once for a machine, so that the service finds it at its start.
    compiled.main([])
    scale = "1:5:1"
    with (
        stack.store(fsync="always") as url,
        stack.trainer(url, scale=scale, settings=REFITS),
        stack.service(url, scale=scale) as port,
        stack.yardstick("bare", "/predict") as bare,
    ):
        learn(port, data)
        rounds = [
            (*rate_then_predict(options, port, bare, data), synced_writes()) for _ in turns(options.rounds)
        ]
        console.print(f"{live_ratings(port):,} ratings in the generation at the end", style="dim")
    served, plain, disk = zip(*rounds, strict=True)
    name = "rate, then predict"
    rows = [
        *latency_rows(
            f"{name}, as served", "of both together", [each.sum(axis=1) for each in served], at_most(3, 5)
        ),
        *latency_rows(f"{name}, as served", "of the rating", [each[:, 0] for each in served]),
        *latency_rows(f"{name}, as served", "of the prediction", [each[:, 1] for each in served]),
        *latency_rows(f"{name}, bare handler", "of both together", [each.sum(axis=1) for each in plain]),
        # The rating is not acknowledged before the store has done this.
        *latency_rows("a synced write of the disk alone", "", disk),
    ]
    return [*rows, *fold_rows(options, data)]


def ratings_in_steps(options: Options) -> DataSet:
    """Return MovieLens 100K, its first ratings where the scale is below 1."""
    n = options.size(100_000, 200)
    try:
        data = datasets.ml_100k()
    except BenchmarkError:
        return datasets.synthetic(943, 1682, n, seed=options.seed, scale=STARS)
    first = np.argsort(data.ratings.time, kind="stable")[:n]
    return replace(data, ratings=data.part(first))


def learn(port: int, data: DataSet) -> None:
    """Import the ratings and fit them."""
    ratings = data.ratings
    with Client(port, timeout_s=LEARN_S) as client:
        columns = (ratings.user_row, ratings.item_row, ratings.value, ratings.time)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        for start in range(0, len(rows), A_CALL):
            client.ask(
                post("/ratings", json.dumps([rating(*row) for row in rows[start : start + A_CALL]]).encode())
            )
    # Unasked, as a refit is: the first may have begun in the midst of the import.
    deadline = time.perf_counter() + LEARN_S
    while live_ratings(port) < len(ratings.value):
        if time.perf_counter() > deadline:
            raise BenchmarkError(f"the ratings were still not live after {LEARN_S:.0f} s")
        time.sleep(0.5)


def rating(user: int, item: int, value: float, at: float | None = None) -> dict[str, object]:
    """Return a rating as POST /ratings takes it."""
    given: dict[str, object] = {"user_id": str(user), "item_id": str(item), "rating": value}
    return given if at is None else {**given, "timestamp": at}


def live_ratings(port: int) -> int:
    """Return how many ratings the live generation was fitted to, 0 before the first."""
    with Client(port) as client:
        found = json.loads(client.ask(get("/generations")))
    return next((int(each["n_ratings"]) for each in found["generations"] if each["live"]), 0)


def rate_then_predict(options: Options, port: int, bare: int, data: DataSet) -> tuple[Float64s, Float64s]:
    """Return the seconds of the two calls of each pair, (pairs, 2), as served and of the bare handler."""
    rng = np.random.default_rng(options.seed)
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    with Client(port) as served, Client(bare) as plain:
        due = began = time.perf_counter()
        while due < began + options.seconds or not times[1]:
            user, rated, asked = (
                int(rng.integers(size)) for size in (data.n_users, data.n_items, data.n_items)
            )
            body = json.dumps(rating(user, rated, float(rng.integers(1, 6)))).encode()
            requests = post("/ratings", body), get(f"/predict?user_id={user}&item_id={asked}")
            for client, taken in zip((served, plain), times, strict=True):
                time.sleep(max(0.0, due - time.perf_counter()))
                moments = [time.perf_counter()]
                for request in requests:
                    client.ask(request)
                    moments.append(time.perf_counter())
                taken.append([after - before for before, after in pairwise(moments)])
                # What one of the two is late by is not the other's.
                due = max(due + EVERY_S / 2, time.perf_counter())
    return np.array(times[0]), np.array(times[1])


def synced_writes() -> Float64s:
    """Return the seconds of writes that are synced one by one, in the folder where the store has its own."""
    taken = []
    with TemporaryFile(buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(SYNCED_BYTES))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return np.array(taken)


def latency_rows(name: str, of: str, rounds: Sequence[Float64s], target: Target | None = None) -> list[Row]:
    """Return p50 and p99 of seconds, by round; `target`: of p99."""
    middle, late = (tuple(1000 * float(np.percentile(each, part)) for each in rounds) for part in (50, 99))
    return [
        Row(f"{name}: p50 {of}".rstrip(), "ms", middle),
        Row(f"{name}: p99 {of}".rstrip(), "ms", late, target),
    ]


def fold_rows(options: Options, data: DataSet) -> Iterator[Row]:
    """Fold histories in, by the model that the defaults fit and by one of rank 16."""
    code = compiled.kept([compiled.HOME / compiled.file_name()])
    for settings in (FitSettings(data.scale), FitSettings(data.scale, rank=RANK, link="ordinal")):
        rng = np.random.default_rng(options.seed)
        fitted = fit(data.ratings, data.n_users, data.n_items, settings=settings, rng=rng)
        model = fitted.model
        for length in LENGTHS:
            name = f"fold in {length:,} ratings, {model.link}, rank {model.rank}"
            target = at_most(0.15, 0.3) if (length, settings.rank) == (300, RANK) else None
            given = history(length, data, rng)
            yield Row(f"{name}, numpy", "ms", milliseconds(options, fitted, given, None))
            if code is None:
                yield Row(f"{name}, compiled", "ms", target=target, skipped="it could not be compiled")
            else:
                yield Row(f"{name}, compiled", "ms", milliseconds(options, fitted, given, code), target)


def history(length: int, data: DataSet, rng: np.random.Generator) -> Histories:
    """Return one history of `length` ratings, on 12 days; items are not known where there are too few."""
    item = rng.permutation(max(length, data.n_items))[:length].astype(np.int32)
    days = 8.8e8 + 86_400.0 * np.sort(rng.integers(0, 12, length)).astype(np.float64)
    return Histories(np.array([0, length]), item, rng.integers(1, 6, length).astype(np.float64), days)


def milliseconds(options: Options, fitted: Fitted, given: Histories, code: bytes | None) -> tuple[float, ...]:
    """Return what a fold-in takes of a core, each round."""
    fold_in_code.use(code)
    taken = []
    for _ in turns(options.rounds):
        began = time.process_time()
        for _ in range(TIMES):
            fitted.posterior.fold_in_users(fitted.items, given, current=fitted.users[:1])
        taken.append(1000 * (time.process_time() - began) / TIMES)
    return tuple(taken)
