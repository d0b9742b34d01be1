"""GET /predict of others while one key asks ten times as often as its quota allows, beside the same without.

Invariant: both are measured in turn on one service; every answer to the others is a 200. The same with the
quotas off tells what they are worth.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.report import Row, at_most, compared, interleave, ratios
from benchmarks.load.generator import Load, LoadError, Plan, run
from benchmarks.load.requests import drive, plan_for, predict_requests, warm

# As in `predict`.
USERS, ITEMS, RANK = 100_000, 10_000, 8
# The default quota of a key, and how much more the attacker asks.
SHARE, TIMES = 1_000, 10
# Others: within the quota of their key, and enough for a p99 of five seconds.
OTHERS_RATE, OTHERS_CONNECTIONS = 500.0, 8
# The attack has begun, and its bucket is empty, before others are measured.
HEAD_START_S = 1.5


def measure(options: Options, console: Console) -> list[Row]:
    """Measure with the default quota, then without any."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    cores = stack.cores(options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name:
        generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
        with stack.store_with(generation, cpus=cores.others) as url:
            console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
            files = {}
            for caller in ("others", "attacker"):
                (folder := Path(name) / caller).mkdir()
                key = stack.add_key(url, caller)
                files[caller] = str(predict_requests(folder, n_users, n_items, seed=options.seed, key=key))
            for quotas, called in ((f"requests={SHARE}/s", "the quota"), ("off", "quotas off")):
                with stack.service(url, cpus=cores.server, settings={"FOLDIN_QUOTAS": quotas}) as port:
                    rows += _under_attack(options, files, port, called, cores.others)
    return rows


def _under_attack(
    options: Options, files: dict[str, str], port: int, called: str, cpus: Sequence[int]
) -> list[Row]:
    others = plan_for(options, files["others"], port, OTHERS_RATE)
    others = replace(others, connections=OTHERS_CONNECTIONS)
    attack = replace(
        plan_for(options, files["attacker"], port, float(SHARE * TIMES)),
        seconds=options.seconds + 2 * HEAD_START_S,
        # What was due before would be let through first, and not be counted.
        warm_up_s=0.0,
        drain_s=0.1,
    )
    # Within the quota, which then has a second to fill up.
    warm(others, requests=SHARE // 4)
    let_in: list[float] = []

    def attacked() -> Load:
        # Threads only wait here: each generator is a process of its own.
        with ThreadPoolExecutor(1) as threads:
            attacking = threads.submit(_attack, attack, cpus)
            time.sleep(HEAD_START_S)
            load = drive(others, cpus=cpus)
            found = attacking.result()
        let_in.append(found.statuses.get(200, 0) / found.seconds)
        return load

    loads = interleave(options.rounds, {"alone": lambda: drive(others, cpus=cpus), "attacked": attacked})
    p99 = {name: tuple(load.percentile_ms(99) for load in each) for name, each in loads.items()}
    detail = f"{compared(p99['attacked'], p99['alone'])} ms"
    target = at_most(1.5, 2.0) if called == "the quota" else None
    work = f"p99 of others, one key at {TIMES} x {SHARE:,}/s, {called}"
    return [
        Row(work, "x", ratios(p99["attacked"], p99["alone"]), target, "without it", detail),
        Row(f"what that key is let through, {called}", "1/s", tuple(let_in)),
    ]


def _attack(plan: Plan, cpus: Sequence[int]) -> Load:
    """Flood; what comes of it is no figure of this benchmark."""
    try:
        return run(plan, cpus=cpus)
    except LoadError as exc:
        raise BenchmarkError(f"load generator: {exc}") from exc


main = benchmark("attack", __doc__, measure)
