"""Requests that the benchmarks send, and runs of the load generator that must not fail."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.command import BenchmarkError
from benchmarks.harness.load import Load, LoadError, Plan, get, run, write_requests

DISTINCT = 20_000
CONNECTIONS = 64


def predict_requests(folder: Path, n_users: int, n_items: int, *, seed: int) -> Path:
    """A file of GET /predict for random known pairs."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, n_users, DISTINCT), rng.integers(0, n_items, DISTINCT)
    pairs = zip(users.tolist(), items.tolist(), strict=True)
    return write_requests(
        folder / "predict", [get(f"/predict?user_id={user}&item_id={item}") for user, item in pairs]
    )


def drive(plan: Plan, *, cpus: Sequence[int] = ()) -> Load:
    """Run a plan. Raises `BenchmarkError` when anything failed: a figure with failed answers says nothing."""
    try:
        load = run(plan, cpus=cpus)
    except LoadError as exc:
        raise BenchmarkError(f"load generator: {exc}") from exc
    if load.failed or not load.answered:
        raise BenchmarkError(f"answers by status {load.statuses}, {load.unanswered} requests without one")
    return load


def warm(plan: Plan, *, requests: int = 2000) -> None:
    """Send a few requests so that caches are filled and connections known to work."""
    drive(replace(plan, max_requests=requests, warm_up_s=0.0, rate=None, seconds=min(plan.seconds, 2.0)))
