"""POST /predict with 10,000 pairs, beside the same written with redis.asyncio, gather and JSON.

Invariant: both answer the same bodies from the same store, in turn, each on one core.
"""

import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.report import Row, Target, interleave, number, ratios
from benchmarks.load.generator import Plan, post, write_requests
from benchmarks.load.requests import drive
from benchmarks.yardsticks import naive

# A shop of some size; as many pairs as a call may hold.
USERS, ITEMS, RANK, PAIRS = 100_000, 10_000, 8, 10_000
# 200,000 pairs, which touch most of the users.
BODIES = 20
# Some wait for the store or are on their way while one is scored.
CONNECTIONS = 4


def measure(options: Options, console: Console) -> list[Row]:
    """Measure the pairs a second of both, and their ratio."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    n_pairs = min(PAIRS, options.size(PAIRS, 100))
    cores = stack.cores(options)
    generation = synthetic.make(n_users, n_items, rank=RANK, seed=options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as name,
        stack.store_with(generation, cpus=cores.others) as url,
    ):
        requests = str(
            write_requests(Path(name) / "batch", bodies(n_users, n_items, n_pairs, seed=options.seed))
        )
        asyncio.run(naive.load(url, generation))
        console.print(f"{n_users:,} users and {n_items:,} items loaded", style="dim")
        arguments = ("--store", url, "--items", str(n_items))
        with (
            stack.service(url, cpus=cores.server) as port,
            stack.yardstick("naive", "/livez", *arguments, cpus=cores.server) as naive_port,
        ):

            def arm(port: int) -> float:
                # Few calls, all of them large: none is spent on warming up, and the last are waited for.
                plan = Plan(port, requests, CONNECTIONS, seconds=options.seconds, warm_up_s=0.0, drain_s=60.0)
                return n_pairs * drive(plan, cpus=cores.others).per_second

            # The first answers pay for connections and for the read of the item table.
            arm(port)
            rates = interleave(
                options.rounds, {"naive": lambda: arm(naive_port), "foldin": lambda: arm(port)}
            )
    detail = f"{number(float(np.median(rates['naive'])))} pairs/s"
    return [
        Row("redis.asyncio gathered, and json", "pairs/s", tuple(rates["naive"]), guards=True),
        Row(f"POST /predict, {n_pairs:,} pairs", "pairs/s", tuple(rates["foldin"]), Target(1e6, 5e5)),
        Row(
            "the same as a ratio",
            "x",
            ratios(rates["foldin"], rates["naive"]),
            Target(10, 5),
            "redis.asyncio gathered, and json",
            detail,
        ),
    ]


def bodies(n_users: int, n_items: int, n_pairs: int, *, seed: int) -> list[bytes]:
    """Return POST requests with random known pairs."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(BODIES):
        users, items = rng.integers(0, n_users, n_pairs), rng.integers(0, n_items, n_pairs)
        pairs = [[str(user), str(item)] for user, item in zip(users.tolist(), items.tolist(), strict=True)]
        requests.append(post("/predict", json.dumps({"pairs": pairs}, separators=(",", ":")).encode()))
    return requests


main = benchmark("batch", __doc__, measure, Options)
