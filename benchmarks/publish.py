"""GET /predict while a generation of a million users is published, beside the same without.

Invariant: the load is open, at a fixed rate that is far under the peak, so that what the publication costs
shows as latency; it lasts from before the first byte is written until after the flip.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, at_most, compared, number, ratios
from benchmarks.load.generator import Plan
from benchmarks.load.requests import drive, plan_for, predict_requests, warm
from processes.blocking import python_command

# So many users that their records take longer to write than one round of the load.
USERS, ITEMS, RANK = 1_000_000, 10_000, 8
# A publication of a million users takes 10 s on quiet cores, and several times that under this load.
PUBLISH_S = 600.0
# The publisher, the store, the generator and the service share two cores.
SHARE_OF_PEAK = 0.25


def measure(options: Options, console: Console) -> list[Row]:
    """Measure the p99 without and during, one pair a round."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name, stack.store_with(generation) as url:
        folder = Path(name)
        requests = str(predict_requests(folder, n_users, n_items, seed=options.seed))
        console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
        quiet, busy, longest, seconds = [], [], [], []
        with stack.service(url) as port:
            plan = plan_for(options, requests, port)
            warm(plan)
            # The peak of this machine, today: a fixed rate would be idle on one and too much for another.
            plan = replace(plan, rate=SHARE_OF_PEAK * drive(plan).per_second)
            for i in turns(options.rounds):
                quiet.append(drive(plan).percentile_ms(99))
                arguments = (url, str(n_users), str(n_items), str(RANK), str(options.seed + i + 1))
                during, took = while_publishing(plan, arguments, folder / f"begun-{i}")
                busy.append(float(np.percentile(during, 99)))
                longest.append(float(during.max()))
                seconds.append(took)
    detail = f"{compared(busy, quiet)} ms"
    assert plan.rate is not None
    work = f"p99 of GET /predict during a publish of {n_users:,} users"
    return [
        Row(f"p99 without, {number(plan.rate)} a second", "ms", tuple(quiet)),
        Row(work, "x", ratios(busy, quiet), at_most(2.0, 3.0), "without", detail),
        Row("slowest answer during the publish", "ms", tuple(longest), at_most(50, 100)),
        Row("the publish", "s", tuple(seconds)),
    ]


def while_publishing(
    plan: Plan, arguments: Sequence[str], begun: Path
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Return the latencies in ms from begin to end of a publication, and how many seconds it took."""
    command = python_command("benchmarks.data.publisher", *arguments, str(begun))
    parts = []
    with stack.running(command, begun.exists, within_s=PUBLISH_S) as publisher:
        began = time.perf_counter()
        while publisher.code is None:
            if time.perf_counter() - began > PUBLISH_S:
                raise BenchmarkError(f"the publish was not done after {PUBLISH_S:.0f} s")
            parts.append(drive(replace(plan, warm_up_s=0.0)).latencies_ms)
        if publisher.code != 0:
            raise BenchmarkError(f"the publisher ended with code {publisher.code}")
        took = time.perf_counter() - began
    # A tiny publication may be over before the load has begun: the table still needs a figure.
    if not parts:
        parts.append(drive(replace(plan, warm_up_s=0.0)).latencies_ms)
    return np.concatenate(parts), took


main = benchmark("publish", __doc__, measure, Options)
