"""Top-10 of a million items, exact for 16 users at a time beside a flat faiss index, and by the index of the
generation.

Invariant: both rank the same items for the same users on one core, in this process, in turn. The deployed
service is asked besides, where the machine has the memory for it.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.data import synthetic
from benchmarks.data.made_head import RATED, MadeHead, make_head
from benchmarks.data.synthetic import Generation
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import CatalogueOptions, benchmark
from benchmarks.harness.machine import lacking_memory
from benchmarks.harness.report import Row, Target, compared, interleave, ratios
from benchmarks.load.generator import Plan, get, write_requests
from benchmarks.load.requests import drive
from factors import Blended, BlendedRanker, Ranker, Scorer, build_index, posterior_of
from factors.engine_api import item_width, vector_columns

# The largest catalogue that the goals name; 16 users wait at a time, as many as the ranking takes together.
ITEMS, USERS, WAITING, TOP = 1_000_000, 10_000, 16, 10
# How lists are ordered: by the ranking head with the expected rating, and by that alone.
ORDERS = ("score", "rating")
# Users whose lists by the index are compared with exact ones: their 2,000 items tell half a percent.
MEASURED = 200
TARGET = Target(200, 100)
SEARCH_TARGET = Target(2_000, 1_000)
RECALL_TARGET = Target(0.95, 0.95)


def measure(options: CatalogueOptions, console: Console) -> list[Row]:
    """Measure the users answered a second: by the ranking alone, by faiss, and by the service."""
    n_items, n_users, rank = options.size(ITEMS, 500), options.size(USERS, 100), options.rank
    width = item_width(rank)
    table_bytes = 4.0 * n_items * width
    # The table, and the means that the ranker, the index and faiss keep of it.
    if reason := lacking_memory(1.3 * table_bytes):
        raise BenchmarkError(f"{reason}: use --scale or --rank")
    generation = synthetic.make(n_users, n_items, rank=rank, seed=options.seed)
    console.print(f"{n_items:,} items of rank {rank} made, {table_bytes / 1e9:.1f} GB", style="dim")
    with threadpool_limits(1):
        began = time.perf_counter()
        # As the trainer does, also where a smaller catalogue would have none.
        rng = np.random.default_rng(options.seed)
        index = build_index(generation.model, generation.items, generation.users, rng, least_items=500)
        built_s = time.perf_counter() - began
    generation = replace(generation, index=index)
    rows = ranking(options, generation)
    rows.append(Row("building the index, one core", "s", (built_s,)))
    head = make_head(n_users, n_items, seed=options.seed)
    rows += head_rows(options, generation, head)
    what = f"GET /recommend, {WAITING} connections, {RATED} ratings a user, by "
    # The store, this process, the mapped files and what the service keeps of them.
    head_bytes = 4.0 * head.head.items.size + 8.0 * len(head.head.neighbours.item_row)
    if reason := lacking_memory(3.4 * table_bytes + 4.0 * head_bytes):
        return [*rows, *(Row(what + order, "1/s", skipped=reason) for order in ORDERS)]
    rates = deployed(options, replace(generation, ranking=head))
    targets = {"score": SEARCH_TARGET, "rating": None}
    return [*rows, *(Row(what + order, "1/s", rates[order], targets[order]) for order in ORDERS)]


def head_rows(options: CatalogueOptions, generation: Generation, made: MadeHead) -> list[Row]:
    """Measure lists by the ranking head, in this process, for one user at a time."""
    posterior, head = posterior_of(generation.model), made.head
    scorer = Scorer(posterior, generation.items)
    users = np.random.default_rng(options.seed).permutation(len(generation.users))
    work = f"top-{TOP} by the head of {len(generation.items):,} x {head.parameters.rank}"

    def top(ranker: BlendedRanker, user: int) -> Blended:
        history = made.history(user)
        vector = generation.users[user : user + 1]
        return ranker.top(scorer, vector, history, TOP, [history.other_row])[0]

    def arm(ranker: BlendedRanker) -> Callable[[], float]:
        turn = itertools.cycle(users.tolist())
        return lambda: _rate(options.seconds, lambda: top(ranker, next(turn))) / WAITING

    exact = BlendedRanker(head, posterior)
    arms = {"exact": arm(exact)}
    if made.index is not None:
        indexed = BlendedRanker(head, posterior, made.index)
        arms["index"] = arm(indexed)
    with threadpool_limits(1):
        rates = interleave(options.rounds, arms)
        rows = [Row(f"{work}, exact", "1/s", tuple(rates["exact"]))]
        if made.index is None:
            reason = "so many lists would be looked into that it does not pay"
            return [*rows, Row(f"{work}, by its index", "1/s", target=SEARCH_TARGET, skipped=reason)]
        hits = [
            len(np.intersect1d(top(exact, user).item_rows, top(indexed, user).item_rows))
            for user in users[:MEASURED].tolist()
        ]
    detail = f"{made.index.probes} of {len(made.index.centres):,} lists"
    return [
        *rows,
        Row(f"{work}, by its index", "1/s", tuple(rates["index"]), SEARCH_TARGET, detail=detail),
        Row("recall@10 of these lists", "", (float(np.mean(hits)) / TOP,), RECALL_TARGET),
    ]


def ranking(options: CatalogueOptions, generation: Generation) -> list[Row]:
    """Measure the ranking itself, in this process, and faiss."""
    ranker = Ranker(posterior_of(generation.model), generation.items)
    indexed = Ranker(posterior_of(generation.model), generation.items, generation.index)
    rng = np.random.default_rng(options.seed)
    # Users who have rated nothing: what is excluded is not what is measured.
    nothing = [np.zeros(0, dtype=np.int64)] * WAITING

    def some_users() -> Any:
        return generation.users[rng.integers(0, len(generation.users), WAITING)]

    def product() -> float:
        return _rate(options.seconds, lambda: ranker.top(some_users(), TOP, nothing))

    def search() -> float:
        return _rate(options.seconds, lambda: indexed.top(some_users(), TOP, nothing))

    arms: dict[str, Callable[[], float]] = {"foldin": product}
    if generation.index is not None:
        arms["index"] = search
    faiss = _faiss()
    what = f"faiss flat, {len(generation.items):,} x {generation.model.rank + 1}"
    if faiss is not None:
        arms["faiss"] = _faiss_arm(faiss, generation, some_users, options.seconds)
    with threadpool_limits(1):
        rates = interleave(options.rounds, arms)
    found = tuple(rates["foldin"])
    by_index = _index_rows(generation, tuple(rates.get("index", ())))
    work = f"top-{TOP} of {len(generation.items):,} x {generation.model.rank}, {WAITING} waiting"
    if faiss is None:
        reason = "faiss-cpu is not installed"
        return [Row(what, "1/s", skipped=reason), Row(work, "1/s", found, TARGET), *by_index]
    detail = f"{compared(found, rates['faiss'])} a second"
    return [
        Row(what, "1/s", tuple(rates["faiss"]), guards=True),
        Row(work, "1/s", found, TARGET),
        Row("the same as a ratio", "x", ratios(found, rates["faiss"]), against="faiss flat", detail=detail),
        *by_index,
    ]


def _index_rows(generation: Generation, rates: tuple[float, ...]) -> list[Row]:
    work = "the same by the index of the generation"
    index = generation.index
    if index is None:
        reason = "so many lists would be looked into that it does not pay"
        return [Row(work, "1/s", target=SEARCH_TARGET, skipped=reason)]
    detail = f"{index.probes} of {len(index.centres):,} lists"
    return [
        Row(work, "1/s", rates, SEARCH_TARGET, detail=detail),
        Row("its recall@10, on other users than chose that", "", (index.recall,), RECALL_TARGET),
    ]


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError:
        return None


def _faiss_arm(
    faiss: Any, generation: Generation, some_users: Callable[[], Any], seconds: float
) -> Callable[[], float]:
    rank = generation.model.rank
    # As the ranking: one core.
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(rank + 1)
    index.add(np.ascontiguousarray(generation.items[:, vector_columns(rank)]))

    def ask() -> None:
        vectors = np.ascontiguousarray(some_users()[:, vector_columns(rank)])
        vectors[:, -1] = 1.0  # the item's bias counts once
        index.search(vectors, TOP)

    return lambda: _rate(seconds, ask)


def _rate(seconds: float, answer: Callable[[], object]) -> float:
    """Return the users a second, `WAITING` an answer, over about so many seconds."""
    began = time.perf_counter()
    answers = 0
    while True:
        answer()
        answers += 1
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return WAITING * answers / elapsed


def deployed(options: CatalogueOptions, generation: Generation) -> dict[str, tuple[float, ...]]:
    """Return the users a second of the service by the order of the lists, one figure a round."""
    cores = stack.cores(options)
    n_users = len(generation.users)
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as name,
        stack.store_with(generation, cpus=cores.others) as url,
    ):
        # As for GET /predict: so many that no cache of answers could give the figure.
        users = np.random.default_rng(options.seed).integers(0, n_users, 5000).tolist()
        files = {}
        for order in ORDERS:
            requests = [get(f"/recommend/{user}?n={TOP}&order={order}") for user in users]
            files[order] = str(write_requests(Path(name) / order, requests))
        with stack.service(url, cpus=cores.server) as port:

            def drive_one(order: str, seconds: float) -> float:
                plan = Plan(port, files[order], WAITING, seconds=seconds, warm_up_s=0.0)
                return drive(plan, cpus=cores.others).per_second

            for order in ORDERS:
                drive_one(order, min(1.0, options.seconds))
            arms = {order: partial(drive_one, order, options.seconds) for order in ORDERS}
            return {order: tuple(found) for order, found in interleave(options.rounds, arms).items()}


main = benchmark("recommend", __doc__, measure, CatalogueOptions)
