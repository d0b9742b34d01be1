"""GET /predict as users and items grow: 10 thousand to a million users, a thousand to a million items.

Invariant: each size has its own store and its own service, all up at once, and they are measured in turn; a
ratio therefore compares seconds that lie next to each other.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.report import Row, Target, interleave, number, ratios
from benchmarks.load.generator import Plan
from benchmarks.load.requests import drive, plan_for, predict_requests, warm

# As in `predict`, so that its figure can be told from this one by the sizes alone.
RANK = 8
SMALLEST = "10 k users, 1 k items"
SIZES = {
    SMALLEST: (10_000, 1_000),
    "1 M users, 1 k items": (1_000_000, 1_000),
    "10 k users, 1 M items": (10_000, 1_000_000),
}


def measure(options: Options, console: Console) -> list[Row]:
    """Measure the throughput of each size beside the smallest."""
    cores = stack.cores(options)
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="foldin-bench-")))
        arms: dict[str, Callable[[], float]] = {}
        for i, (name, (full_users, full_items)) in enumerate(SIZES.items()):
            n_users, n_items = options.size(full_users, 100), options.size(full_items, 100)
            generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
            url = ends.enter_context(stack.store_with(generation, cpus=cores.others))
            port = ends.enter_context(stack.service(url, cpus=cores.server))
            # Known pairs differ by size, and so do the requests.
            own = folder / str(i)
            own.mkdir()
            requests = str(predict_requests(own, n_users, n_items, seed=options.seed))
            plan = plan_for(options, requests, port)
            warm(plan)
            arms[name] = _arm(plan, cores.others)
            console.print(f"{name}: {n_users:,} users and {n_items:,} items loaded", style="dim")
        rates = interleave(options.rounds, arms)
    rows = [Row(f"GET /predict, {SMALLEST}", "1/s", tuple(rates[SMALLEST]), guards=True)]
    for name in list(SIZES)[1:]:
        detail = f"{number(float(np.median(rates[name])))} a second"
        rows.append(
            Row(name, "x", ratios(rates[name], rates[SMALLEST]), Target(0.95, 0.90), SMALLEST, detail)
        )
    return rows


def _arm(plan: Plan, cpus: Sequence[int]) -> Callable[[], float]:
    return lambda: drive(plan, cpus=cpus).per_second


main = benchmark("growth", __doc__, measure, Options)
