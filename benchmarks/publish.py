"""GET /predict while a generation of a million users is published, beside the same without.

Invariant: the load is open, at a fixed rate that is far under the peak, so that what the publication costs
shows as latency; it lasts from before the first byte is written until after the flip.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.harness import stack, synthetic
from benchmarks.harness.asking import CONNECTIONS, drive, predict_requests, warm
from benchmarks.harness.command import BenchmarkError, Options, run
from benchmarks.harness.load import Plan
from benchmarks.harness.processes import process, python_command
from benchmarks.harness.report import Row, Target, number, ratios

NAME = "publish"
USERS, ITEMS, RANK = 1_000_000, 10_000, 8
PUBLISH_S = 600.0
SHARE_OF_PEAK = 0.25  # the publisher, the store, the generator and the service share two cores


def measure(options: Options, console: Console) -> list[Row]:
    """p99 without and during, one pair a round."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name, stack.store() as url:
        folder = Path(name)
        requests = str(predict_requests(folder, n_users, n_items, seed=options.seed))
        synthetic.load(url, synthetic.make(n_users, n_items, rank=RANK, seed=options.seed))
        console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
        quiet, busy, longest, seconds = [], [], [], []
        with stack.service(url) as port:
            plan = Plan(
                port, requests, CONNECTIONS, seconds=options.seconds, warm_up_s=min(0.5, options.seconds / 4)
            )
            warm(plan)
            plan = replace(plan, rate=SHARE_OF_PEAK * drive(plan).per_second)
            for i in range(options.rounds):
                quiet.append(drive(plan).percentile_ms(99))
                arguments = (url, str(n_users), str(n_items), str(RANK), str(options.seed + i + 1))
                during, took = while_publishing(plan, arguments, folder / f"begun-{i}")
                busy.append(float(np.percentile(during, 99)))
                longest.append(float(during.max()))
                seconds.append(took)
    detail = f"{number(float(np.median(busy)))} against {number(float(np.median(quiet)))} ms"
    target = Target(2.0, 3.0, higher_is_better=False)
    assert plan.rate is not None
    work = f"p99 of GET /predict during a publish of {n_users:,} users"
    return [
        Row(f"p99 without, {number(plan.rate)} a second", "ms", tuple(quiet)),
        Row(work, "x", ratios(busy, quiet), target, "without", detail),
        Row(
            "slowest answer during the publish", "ms", tuple(longest), Target(50, 100, higher_is_better=False)
        ),
        Row("the publish", "s", tuple(seconds)),
    ]


def while_publishing(
    plan: Plan, arguments: Sequence[str], begun: Path
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Latencies in ms while a publisher works, from its begin to its end; and how many seconds it took."""
    command = python_command("benchmarks.harness.publisher", *arguments, str(begun))
    parts = []
    with process(command, begun.exists, ready_s=PUBLISH_S) as publisher:
        began = time.perf_counter()
        while publisher.poll() is None:
            if time.perf_counter() - began > PUBLISH_S:
                raise BenchmarkError(f"the publish was not done after {PUBLISH_S:.0f} s")
            parts.append(drive(replace(plan, warm_up_s=0.0)).latencies_ms)
        if publisher.returncode != 0:
            raise BenchmarkError(f"the publisher ended with code {publisher.returncode}")
        took = time.perf_counter() - began
    if not parts:
        parts.append(drive(replace(plan, warm_up_s=0.0)).latencies_ms)
    return np.concatenate(parts), took


def main(argv: Sequence[str]) -> int:
    """See `harness.command.run`."""
    return run(NAME, __doc__.splitlines()[0], measure, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
