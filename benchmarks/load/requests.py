"""Requests that the benchmarks send, and runs of the load generator that must not fail."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.harness.command import Options
from benchmarks.load.generator import Load, LoadError, Plan, get, run, write_requests

# So many that no cache of answers, were there one, could give the figure.
DISTINCT = 20_000
# Enough to keep one core busy, few enough that the generator's own work stays small.
CONNECTIONS = 64
# Requests that fill caches.
WARMING = 2000


def predict_requests(folder: Path, n_users: int, n_items: int, *, seed: int, key: str | None = None) -> Path:
    """Write GET /predict for random known pairs, with an API key or without; return the file."""
    # Uniform: popular users would stay in the caches of store and processor.
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, n_users, DISTINCT), rng.integers(0, n_items, DISTINCT)
    pairs = zip(users.tolist(), items.tolist(), strict=True)
    return write_requests(
        folder / ("predict" if key is None else "predict-with-key"),
        [get(f"/predict?user_id={user}&item_id={item}", key=key) for user, item in pairs],
    )


def plan_for(options: Options, requests: str, port: int, rate: float | None = None) -> Plan:
    """Return a plan of the usual number of connections: a closed loop, or an open one at `rate`."""
    warm_up_s = min(0.5, options.seconds / 4)
    return Plan(port, requests, CONNECTIONS, seconds=options.seconds, warm_up_s=warm_up_s, rate=rate)


def drive(plan: Plan, *, cpus: Sequence[int] = (), refusals: Collection[int] = ()) -> Load:
    """Run a plan. Raises `BenchmarkError` when anything failed: a figure with failed answers says nothing.

    `refusals`: statuses that are none, as overload is measured.
    """
    try:
        load = run(plan, cpus=cpus)
    except LoadError as exc:
        raise BenchmarkError(f"load generator: {exc}") from exc
    refused = sum(count for status, count in load.statuses.items() if status in refusals)
    if load.failed > refused or not load.answered:
        raise BenchmarkError(f"answers by status {load.statuses}, {load.unanswered} requests without one")
    return load


def warm(plan: Plan) -> None:
    """Send a few requests so that caches are filled and connections known to work."""
    # At the closed rate and for two seconds at most, whatever the plan says.
    drive(replace(plan, max_requests=WARMING, warm_up_s=0.0, rate=None, seconds=min(plan.seconds, 2.0)))
