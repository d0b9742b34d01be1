"""Three times the large calls that the service can carry, and GET /predict of others meanwhile.

Invariant: what it can carry is measured first, in the same run; every answer is a whole one, 200 or 503 (429
where the store is full).
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import batch, ratings
from benchmarks.data import synthetic
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, Target, at_most, number
from benchmarks.load.generator import Plan, write_requests
from benchmarks.load.requests import drive, predict_requests, warm
from benchmarks.load.scrape import metrics_text, total

# As in `batch` and `ratings`, whose calls these are.
USERS, ITEMS, RANK, A_CALL = 100_000, 10_000, 8, 10_000
# Past what a queue could smooth out within a run.
TIMES = 3.0
# More than may wait: an open load must not be held back by its own connections.
CONNECTIONS = 400
# The others: so few that they are no load of their own, enough for a p99 of five seconds.
OTHERS_RATE, OTHERS_CONNECTIONS = 100.0, 8
REFUSALS = {429, 503}
RESIDENT = "foldin_worker_resident_memory_bytes"
# Four pages of metrics a second are no load beside the flood.
SAMPLE_S = 0.25


@dataclass(slots=True)
class Kind:
    """What came of one kind of call, one figure a round."""

    work: str
    kept: list[float] = field(default_factory=list)
    others_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    refused: int = 0

    def rows(self) -> list[Row]:
        """Return its lines of the table. The goals are the project's own."""
        detail = f"{number(self.refused)} answers of 503 or 429"
        nothing = "" if self.refused else "nothing was refused"
        return [
            Row(
                f"{self.work}: answered, of what it carries",
                "x",
                tuple(self.kept),
                Target(0.9, 0.75),
                "",
                detail,
            ),
            Row(f"{self.work}: GET /predict of others, p99", "ms", tuple(self.others_ms), at_most(50, 100)),
            Row(
                f"{self.work}: a refusal, p99",
                "ms",
                tuple(self.refusal_ms),
                at_most(100, 250),
                skipped=nothing,
            ),
            Row(
                f"{self.work}: resident memory beyond that before",
                "MB",
                tuple(self.megabytes),
                at_most(256, 512),
            ),
        ]


def measure(options: Options, console: Console) -> list[Row]:
    """Measure each kind in turn: its peak, then three times as much."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    a_call = min(A_CALL, options.size(A_CALL, 1_000))
    cores = stack.cores(options)
    pairs = Kind(f"POST /predict, {a_call:,} pairs, {TIMES:g} times too often")
    rated = Kind(f"POST /ratings, {a_call:,} ratings, {TIMES:g} times too often")
    generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as name,
        stack.store_with(generation, cpus=cores.others) as url,
    ):
        folder = Path(name)
        small = str(predict_requests(folder, n_users, n_items, seed=options.seed))
        files = {
            "pairs": batch.bodies(n_users, n_items, a_call, seed=options.seed),
            "rated": ratings.bodies(n_users, n_items, a_call, seed=options.seed),
        }
        paths = {kind: str(write_requests(folder / kind, requests)) for kind, requests in files.items()}
        console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
        with (
            stack.trainer(url, settings=stack.NO_REFITS),
            stack.service(url, cpus=cores.server) as port,
        ):
            few = Plan(port, small, OTHERS_CONNECTIONS, seconds=options.seconds, warm_up_s=0.0, drain_s=30.0)
            warm(few)
            # Ratings last: users who have rated are folded in by the request that asks for them next.
            for kind, requests in ((pairs, paths["pairs"]), (rated, paths["rated"])):
                large = replace(few, requests=requests, connections=4)
                for _ in turns(options.rounds):
                    peak = drive(large, cpus=cores.others).per_second
                    flood = replace(large, connections=CONNECTIONS, rate=TIMES * peak)
                    _under(kind, flood, peak, replace(few, rate=OTHERS_RATE), cpus=cores.others)
                    ratings.until_archived(port)
    return [*pairs.rows(), *rated.rows()]


def _under(kind: Kind, flood: Plan, peak: float, others: Plan, *, cpus: Sequence[int]) -> None:
    """Send one round of `flood`, with GET /predict of others beside it; note what came of it."""
    before = total(metrics_text(flood.port), RESIDENT)
    # Threads only wait here: each generator is a process of its own.
    with ThreadPoolExecutor(2) as threads:
        flooding = threads.submit(drive, flood, cpus=cpus, refusals=REFUSALS)
        beside = threads.submit(drive, others, cpus=cpus)
        most = before
        while not flooding.done():
            most = max(most, total(metrics_text(flood.port), RESIDENT))
            time.sleep(SAMPLE_S)
        load = flooding.result()
        kind.others_ms.append(beside.result().percentile_ms(99))
    refused = load.codes >= 400
    kind.kept.append(load.statuses.get(200, 0) / load.seconds / peak)
    kind.refused += int(refused.sum())
    if refused.any():
        kind.refusal_ms.append(float(np.percentile(load.latencies_ms[refused], 99)))
    kind.megabytes.append((most - before) / 1e6)


main = benchmark("overload", __doc__, measure, Options)
