"""Start of a service worker until it is ready, with a large catalogue: the first one on a host, and the next
ones; and the memory of one that has made lists and answered batches.

Invariant: the clock runs from the start of the process to the first 200 of /readyz.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.data.made_head import make_head
from benchmarks.harness import stack
from benchmarks.harness.command import CatalogueOptions, benchmark
from benchmarks.harness.machine import lacking_memory
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, at_most, sized
from benchmarks.load.client import Client
from benchmarks.load.generator import get, post
from evaluation.offline.jobs import memory_mb
from factors.engine_api import item_width
from foldin.sizing.model import Deployment

# The largest catalogue that the goals name; users play no part in a start.
ITEMS, USERS = 1_000_000, 1_000
SHARED = Path("/dev/shm")
TARGET = at_most(3, 10)
# Of a worker's memory, with a ranking head: items, and the rank that larger sets have.
SIZES, SIZED_RANK = (50_000, 200_000, 500_000), 16
# So many users are given lists, and so many pairs predicted at once.
LISTS, PAIRS = 50, 1_000


def measure(options: CatalogueOptions, console: Console) -> list[Row]:
    """Measure the seconds until ready."""
    n_items, n_users, rank = options.size(ITEMS, 100), options.size(USERS, 50), options.rank
    first = f"worker ready with {n_items:,} items of rank {rank}, the first of a host"
    memory = "the same, the cache folder in memory, as in docker-compose.yml"
    later = "the same, the table already in the cache folder"
    # The store, the table made here, the mapped file and what the service keeps of it.
    if reason := lacking_memory(3.4 * 4 * n_items * item_width(rank)):
        return [Row(work, "s", target=TARGET, skipped=reason) for work in (first, memory, later)]
    nowhere = "" if SHARED.is_dir() else f"there is no {SHARED} here"
    generation = synthetic.make(n_users, n_items, rank=rank, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name, stack.store_with(generation) as url:
        console.print(f"{n_items:,} items of rank {rank} loaded", style="dim")
        cold, in_memory, warm = [], [], []
        for _ in turns(options.rounds):
            # Gone after the round: a host has three at most, and what is not on the disk yet is in the way.
            with tempfile.TemporaryDirectory(dir=name) as folder:
                cold.append(_start(url, Path(folder)))
                warm.append(_start(url, Path(folder)))
            if not nowhere:
                with tempfile.TemporaryDirectory(prefix="foldin-bench-", dir=SHARED) as folder:
                    in_memory.append(_start(url, Path(folder)))
    return [
        Row(first, "s", tuple(cold), TARGET),
        Row(memory, "s", tuple(in_memory), TARGET, skipped=nowhere),
        Row(later, "s", tuple(warm), TARGET),
        *sizes(tuple(options.size(n, 1_000) for n in SIZES), options.seed),
    ]


def sizes(of: tuple[int, ...], seed: int) -> Iterator[Row]:
    """Yield what `foldin size` says of a worker's memory, by the number of its items."""
    for n_items in of:
        generation = synthetic.make(LISTS, n_items, rank=SIZED_RANK, seed=seed)
        generation = replace(generation, ranking=make_head(LISTS, n_items, seed=seed))
        with (
            stack.store_with(generation) as url,
            stack.service_process(url) as (port, worker),
            Client(port, timeout_s=300.0) as client,
        ):
            for user in range(LISTS):
                client.ask(get(f"/recommend/{user}"))
            pairs = [(str(user % LISTS), str(user % n_items)) for user in range(PAIRS)]
            client.ask(post("/predict", json.dumps({"pairs": pairs}).encode()))
            found = memory_mb("RssAnon", worker.pid) * 1e6
        said = Deployment(LISTS, n_items, LISTS, rank=SIZED_RANK).worker_bytes
        yield sized(f"service, {n_items:,} items", said, found)


def _start(url: str, cache: Path) -> float:
    began = time.perf_counter()
    with stack.service(url, cache=cache):
        return time.perf_counter() - began


main = benchmark("start", __doc__, measure, CatalogueOptions)
