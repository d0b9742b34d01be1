"""Top-10 of a million items, exact for 16 users at a time beside a flat faiss index, and by the index of the
generation; with a filter that leaves a tenth of the items beside the same without.

Invariant: both rank the same items for the same users on one core, in this process, in turn. The deployed
service is asked besides, where the machine has the memory for it.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
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
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, Target, at_most, compared, interleave, ratios
from benchmarks.load.client import Client
from benchmarks.load.generator import Load, Plan, get, post, write_requests
from benchmarks.load.requests import drive
from factors import Blended, BlendedRanker, Bools, Histories, Ranker, Scorer, build_index, posterior_of
from factors.engine_api import item_width, vector_columns

# The largest catalogue that the goals name; 16 users wait at a time, as many as the ranking takes together.
ITEMS, USERS, WAITING, TOP = 1_000_000, 10_000, 16, 10
# What is asked for: lists by the ranking head with the expected rating, by that alone, and the first under a
# filter that leaves a tenth of the items.
QUERIES = {"score": "", "rating": "&order=rating", "score, filtered": "&category=tenth"}
TENTH = 10  # one item in so many
# Filters of a front-end, and the part of a catalogue that is sold out or taken down.
FILTERS, HIDDEN = 12, 0.01
# Choices of a user who is folded in, and what that may take.
FOLDED, FOLD_TARGET = 80, at_most(0.2, 0.4)
# Items of the catalogue in a call: it takes 10,000.
ITEMS_A_CALL = 5_000
# Longer than a worker takes to read a hundred thousand of them, three times over.
WARM_UP_S = 5.0
# Users whose lists by the index are compared with exact ones: their 2,000 items tell half a percent.
MEASURED = 200
TARGET = Target(200, 100)
SEARCH_TARGET = Target(2_000, 1_000)
RECALL_TARGET = Target(0.95, 0.95)
FILTER_TARGET = Target(1_500, 750)
# The p99 with a filter beside that without, and so the time of one list.
FILTERED_TARGET = at_most(1.3, 2.0)


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
    rows += [*head_rows(options, generation, head), fold_in_row(options, generation, head)]
    what = f"GET /recommend, {WAITING} connections, {RATED} ratings a user, by "
    # The store, this process, the mapped files and what the service keeps of them.
    head_bytes = 4.0 * head.head.items.size + 8.0 * len(head.head.neighbours.item_row)
    if reason := lacking_memory(3.4 * table_bytes + 4.0 * head_bytes):
        return [*rows, *(Row(what + query, "1/s", skipped=reason) for query in QUERIES)]
    loads = deployed(options, replace(generation, ranking=head))
    targets = {"score": SEARCH_TARGET, "rating": None, "score, filtered": FILTER_TARGET}
    for query, target in targets.items():
        rates = tuple(load.per_second for load in loads[query])
        rows.append(Row(what + query, "1/s", rates, target))
    late = {query: [load.percentile_ms(99) for load in found] for query, found in loads.items()}
    slower = ratios(late["score, filtered"], late["score"])
    detail = f"{compared(late['score, filtered'], late['score'])} ms"
    p99 = Row("p99 with the filter", "x", slower, FILTERED_TARGET, against="without", detail=detail)
    return [*rows, p99]


def head_rows(options: CatalogueOptions, generation: Generation, made: MadeHead) -> list[Row]:
    """Measure lists by the ranking head, in this process, for one user at a time."""
    posterior, head = posterior_of(generation.model), made.head
    scorer = Scorer(posterior, generation.items)
    # As the service has it: without the index of the ratings, which no list by the head reads.
    bounds = Ranker(posterior, generation.items).rating_bounds
    users = np.random.default_rng(options.seed).permutation(len(generation.users))
    work = f"top-{TOP} by the head of {len(generation.items):,} x {head.parameters.rank}"

    def top(ranker: BlendedRanker, user: int, allowed: Bools | None = None) -> Blended:
        history = made.history(user)
        vector = generation.users[user : user + 1]
        seen = [history.other_row]
        return ranker.top(scorer, vector, history, TOP, seen, allowed=allowed, bounds=bounds)[0]

    def arm(ranker: BlendedRanker, *masks: Bools) -> Callable[[], float]:
        turn, mask = itertools.cycle(users.tolist()), itertools.cycle(masks or (None,))
        return lambda: _rate(options.seconds, lambda: top(ranker, next(turn), next(mask))) / WAITING

    def recall(allowed: Bools | None) -> float:
        hits = [
            len(np.intersect1d(top(exact, user, allowed).item_rows, top(indexed, user, allowed).item_rows))
            for user in users[:MEASURED].tolist()
        ]
        return float(np.mean(hits)) / TOP

    tenths, shown = _masks(len(generation.items), options.seed + 1)
    tenth = tenths[0]
    exact = BlendedRanker(head, posterior)
    arms = {"exact": arm(exact)}
    if made.index is not None:
        indexed = BlendedRanker(head, posterior, made.index)
        arms |= {"index": arm(indexed), "filtered": arm(indexed, tenth)}
        arms |= {"in turn": arm(indexed, *tenths), "hidden": arm(indexed, shown)}
        arms["numpy"] = arm(BlendedRanker(head, posterior, made.index, loops={}))
    with threadpool_limits(1):
        rates = interleave(options.rounds, arms)
        rows = [Row(f"{work}, exact", "1/s", tuple(rates["exact"]))]
        if made.index is None:
            reason = "so many lists would be looked into that it does not pay"
            return [*rows, Row(f"{work}, by its index", "1/s", target=SEARCH_TARGET, skipped=reason)]
        found, found_filtered = recall(None), recall(tenth)
    detail = f"{made.index.probes} of {len(made.index.centres):,} lists"
    filtered = "of a tenth that a filter leaves"
    slower = ratios(rates["index"], rates["filtered"])
    both = f"{compared(rates['filtered'], rates['index'])} a second"
    in_turn = f"the same {filtered}, {FILTERS} filters in turn"
    return [
        *rows,
        Row(f"{work}, by its index", "1/s", tuple(rates["index"]), SEARCH_TARGET, detail=detail),
        Row("the same without compiled loops", "1/s", tuple(rates["numpy"])),
        Row("recall@10 of these lists", "", (found,), RECALL_TARGET),
        Row(f"the same {filtered}", "1/s", tuple(rates["filtered"]), FILTER_TARGET),
        Row(f"recall@10 {filtered}", "", (found_filtered,), RECALL_TARGET),
        Row("time of a list under it", "x", slower, FILTERED_TARGET, against="without", detail=both),
        Row(in_turn, "1/s", tuple(rates["in turn"]), FILTER_TARGET),
        Row(f"the same with {HIDDEN:.0%} of the items hidden", "1/s", tuple(rates["hidden"]), FILTER_TARGET),
    ]


def fold_in_row(options: CatalogueOptions, generation: Generation, made: MadeHead) -> Row:
    """Measure how long it takes to fold a user with `FOLDED` choices into the head, as for a list."""
    solve = BlendedRanker(made.head, posterior_of(generation.model), made.index).solve
    users = made.rated[np.random.default_rng(options.seed).permutation(len(made.rated))[:MEASURED]]
    items = np.resize(users, (len(users), FOLDED))
    nothing, turn = np.full(FOLDED, np.nan), itertools.cycle(items)
    indptr, value = np.array([0, FOLDED]), np.full(FOLDED, 3.0)

    def fold_in() -> None:
        made.head.fold_in_events(Histories(indptr, next(turn), value, nothing), solve)

    fold_in()
    with threadpool_limits(1):
        rates = [_rate(options.seconds, fold_in) / WAITING for _ in turns(options.rounds)]
    times = tuple(1e3 / rate for rate in rates)
    return Row(f"fold-in of {FOLDED} choices into the head", "ms", times, FOLD_TARGET)


def _masks(n_items: int, seed: int) -> tuple[list[Bools], Bools]:
    """Return the masks of some filters, and of what is not hidden (n_items,), kept from call to call as the
    service keeps them.
    """
    rng = np.random.default_rng(seed)
    tenths = [rng.random(n_items) < 1 / TENTH for _ in range(FILTERS)]
    shown = rng.random(n_items) >= HIDDEN
    for mask in (*tenths, shown):
        mask.flags.writeable = False
    return tenths, shown


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


def deployed(options: CatalogueOptions, generation: Generation) -> dict[str, list[Load]]:
    """Return what came of asking the service for lists, by query, one load a round."""
    cores = stack.cores(options)
    n_users = len(generation.users)
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as name,
        stack.store_with(generation, cpus=cores.others) as url,
    ):
        # As for GET /predict: so many that no cache of answers could give the figure.
        users = np.random.default_rng(options.seed).integers(0, n_users, 5000).tolist()
        files = {}
        for query, text in QUERIES.items():
            requests = [get(f"/recommend/{user}?n={TOP}{text}") for user in users]
            files[query] = str(write_requests(Path(name) / query.replace(", ", "-"), requests))
        with stack.service(url, cpus=cores.server) as port:
            _categorize(port, len(generation.items))

            def drive_one(query: str, seconds: float, refusals: Sequence[int] = ()) -> Load:
                plan = Plan(port, files[query], WAITING, seconds=seconds, warm_up_s=0.0)
                return drive(plan, cpus=cores.others, refusals=refusals)

            # A worker that reads a large catalogue as a whole answers 503 meanwhile.
            for query in QUERIES:
                drive_one(query, max(WARM_UP_S, options.seconds), refusals=(503,))
            return interleave(
                options.rounds, {query: partial(drive_one, query, options.seconds) for query in QUERIES}
            )


def _categorize(port: int, n_items: int) -> None:
    """Put every tenth item into the catalogue, in the category of the filter."""
    items = [{"item_id": str(row), "categories": ["tenth"]} for row in range(0, n_items, TENTH)]
    with Client(port, timeout_s=120.0) as client:
        for start in range(0, len(items), ITEMS_A_CALL):
            client.ask(post("/items", json.dumps(items[start : start + ITEMS_A_CALL]).encode()))


main = benchmark("recommend", __doc__, measure, CatalogueOptions)
