"""GET /predict: throughput and latency beside an aiohttp handler that returns 60 constant bytes.

Invariant: both get the same requests, from the same generator, on the same cores, in turn; answers other than
200 end the benchmark.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.report import Row, Target, at_most, compared, interleave, number, ratios
from benchmarks.load.generator import Load
from benchmarks.load.requests import drive, plan_for, predict_requests, warm
from benchmarks.load.scrape import buckets, metrics_text, quantile

# A shop of some size: records and item table together are past the caches of the processor.
USERS, ITEMS, RANK = 100_000, 10_000, 8
LOOKUP = "foldin_lookup_seconds"


def measure(options: Options, console: Console) -> list[Row]:
    """Measure one worker, then two, then one that asks for an API key, over one store."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    cores = stack.cores(options)
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name:
        requests = str(predict_requests(Path(name), n_users, n_items, seed=options.seed))
        generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
        with stack.store_with(generation, cpus=cores.others) as url:
            console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
            with _both(url, cores.server) as (port, bare_port):
                rows = one_worker(options, requests, port, bare_port, cores.others)
            # As many processes as a small machine has cores, none of its own: all share them.
            with _both(url, (), processes=2) as (port, bare_port):
                loads = peaks(options, requests, port, bare_port, ())
                work = "GET /predict, 2 workers, 64 connections"
                rows += peak_rows(work, loads, "bare handler, 2 processes")
            key = stack.add_key(url)
            keyed = str(predict_requests(Path(name), n_users, n_items, seed=options.seed, key=key))
            with _both(url, cores.server) as (port, bare_port):
                loads = peaks(options, keyed, port, bare_port, cores.others)
                work = "GET /predict with an API key, 1 worker, 64 connections"
                rows += peak_rows(work, loads, "bare handler, the same requests")
    return rows


@contextmanager
def _both(url: str, cpus: Sequence[int], *, processes: int = 1) -> Iterator[tuple[int, int]]:
    """Run the service and the bare handler; their ports."""
    with (
        stack.service(url, workers=processes, cpus=cpus) as port,
        stack.yardstick("bare", "/predict", "--processes", str(processes), cpus=cpus) as bare_port,
    ):
        yield port, bare_port


def peaks(
    options: Options, requests: str, port: int, bare_port: int, cpus: Sequence[int]
) -> dict[str, list[Load]]:
    """Measure closed loops of both, round by round."""
    for each in (port, bare_port):
        warm(plan_for(options, requests, each))
    return interleave(
        options.rounds,
        {
            "bare": lambda: drive(plan_for(options, requests, bare_port), cpus=cpus),
            "foldin": lambda: drive(plan_for(options, requests, port), cpus=cpus),
        },
    )


def peak_rows(work: str, loads: dict[str, list[Load]], against: str) -> list[Row]:
    """Return the yardstick and the ratio."""
    rates = {name: tuple(load.per_second for load in each) for name, each in loads.items()}
    busiest = max(load.generator_busy for each in loads.values() for load in each)
    detail = f"{compared(rates['foldin'], rates['bare'])} a second"
    # Then the figure is the generator's, not the server's.
    if busiest > 0.9:
        detail += f"; the generator used {busiest:.0%} of its core"
    return [
        Row(f"{against}", "1/s", rates["bare"], guards=True),
        Row(work, "x", ratios(rates["foldin"], rates["bare"]), Target(1.0, 0.9), against, detail),
    ]


def one_worker(options: Options, requests: str, port: int, bare_port: int, cpus: Sequence[int]) -> list[Row]:
    """Measure the peak, the latency at half of it, and the lookup inside."""
    loads = peaks(options, requests, port, bare_port, cpus)
    rows = peak_rows("GET /predict, 1 worker, 64 connections", loads, "bare handler, 1 process")
    # At the peak latency is a matter of the number of connections alone.
    half, bare_half = (
        float(np.median([load.per_second for load in loads[name]])) / 2 for name in ("foldin", "bare")
    )
    before = buckets(metrics_text(port), LOOKUP)
    lookups: list[float] = []

    def product() -> Load:
        nonlocal before
        load = drive(plan_for(options, requests, port, half), cpus=cpus)
        after = buckets(metrics_text(port), LOOKUP)
        lookups.append(1000 * quantile(before, after, 0.99))
        before = after
        return load

    open_loads = interleave(
        options.rounds,
        {
            "bare": lambda: drive(plan_for(options, requests, bare_port, half), cpus=cpus),
            "bare at its half": lambda: drive(plan_for(options, requests, bare_port, bare_half), cpus=cpus),
            "foldin": product,
        },
    )
    p99 = {name: tuple(load.percentile_ms(99) for load in each) for name, each in open_loads.items()}
    detail = f"{compared(p99['foldin'], p99['bare'])} ms"
    work = f"p99 at half of peak, open loop, {number(half)} a second"
    times = ratios(p99["foldin"], p99["bare"])
    inside = "lookup in the service there, p99"
    return [
        *rows,
        Row(work, "x", times, at_most(1.5, 2.0), "bare handler, same rate", detail),
        Row(
            f"p99 of the bare handler at half of its own, {number(bare_half)} a second",
            "ms",
            p99["bare at its half"],
        ),
        Row("p50 there", "ms", tuple(load.percentile_ms(50) for load in open_loads["foldin"])),
        Row(inside, "ms", tuple(lookups), at_most(0.5, 1.0), detail="from /metrics"),
    ]


main = benchmark("predict", __doc__, measure, Options)
