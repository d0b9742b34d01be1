"""POST /ratings, 10,000 a call, until the trainer has archived them; and one rating, then a prediction,
as served.

Invariant: a rating counts when it is in the archive: the clock runs until no event waits in the store's
streams.
"""

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, Target
from benchmarks.load.as_served import rows_as_served
from benchmarks.load.client import Client
from benchmarks.load.generator import Plan, post, write_requests
from benchmarks.load.requests import drive
from benchmarks.load.scrape import metrics_text, total

# A shop of some size; as many ratings as a call may hold.
USERS, ITEMS, A_CALL = 100_000, 10_000, 10_000
# 300,000 ratings: hardly a pair comes twice in one call.
BODIES = 30
# One call is parsed while another is written to the store and others are on their way.
CONNECTIONS = 4
# At a tenth of the rate that is aimed at, the ratings of a round are archived in half of this time.
ARCHIVE_S = LEARN_S = 120.0
LAG = "foldin_stream_lag_events"


def measure(options: Options, console: Console) -> list[Row]:
    """Measure the ratings a second until archived, and the pair of calls."""
    n_users, n_items = options.size(USERS, 100), options.size(ITEMS, 100)
    a_call = min(A_CALL, options.size(A_CALL, 100))
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name, stack.store() as url:
        requests = str(
            write_requests(Path(name) / "ratings", bodies(n_users, n_items, a_call, seed=options.seed))
        )
        # The fit is measured elsewhere; here it would only say how much of the second core it takes.
        with stack.trainer(url, settings=stack.NO_REFITS), stack.service(url) as port:
            learn(port, n_users, n_items, a_call, seed=options.seed)
            console.print(f"{n_users:,} users and {n_items:,} items learned", style="dim")
            rates = tuple(archived(options, port, requests, a_call) for _ in turns(options.rounds))
    archiving = Row(f"POST /ratings, {a_call:,} a call, archived", "1/s", rates, Target(100_000, 50_000))
    return [archiving, *rows_as_served(options, console)]


def learn(port: int, n_users: int, n_items: int, a_call: int, *, seed: int) -> None:
    """Rate once by each user, each item in turn, and refit, so that what is live is the trainer's own."""
    rng = np.random.default_rng(seed)
    with Client(port, timeout_s=LEARN_S) as client:
        for start in range(0, n_users, a_call):
            users = range(start, min(start + a_call, n_users))
            steps = rng.integers(0, 9, len(users)).tolist()
            rows = zip(users, steps, strict=True)
            client.ask(post("/ratings", body_of((user, user % n_items, step) for user, step in rows)))
        until_archived(port)
        told = json.loads(client.ask(post(f"/train?wait={LEARN_S - 10:.0f}", b"")))
        if "generation" not in told:
            raise BenchmarkError(f"the fit was not live after {LEARN_S - 10:.0f} s: {told}")


def archived(options: Options, port: int, requests: str, a_call: int) -> float:
    """Return the ratings a second of one round."""
    plan = Plan(port, requests, CONNECTIONS, seconds=options.seconds, warm_up_s=0.0, drain_s=60.0)
    load = drive(plan)
    # The wait counts: what is acknowledged fast and archived slowly is not carried.
    return a_call * load.answered / (load.seconds + until_archived(port))


def until_archived(port: int) -> float:
    """Return the seconds until no event waits. Raises `BenchmarkError` when that does not come."""
    began = time.perf_counter()
    while total(metrics_text(port), LAG) > 0:
        if time.perf_counter() - began > ARCHIVE_S:
            raise BenchmarkError(f"ratings were still not archived after {ARCHIVE_S:.0f} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def bodies(n_users: int, n_items: int, a_call: int, *, seed: int) -> list[bytes]:
    """Return POST requests with random ratings of known users and items."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(BODIES):
        columns = (
            rng.integers(0, n_users, a_call),
            rng.integers(0, n_items, a_call),
            rng.integers(0, 9, a_call),
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        requests.append(post("/ratings", body_of(rows)))
    return requests


def body_of(rows: Iterable[tuple[int, int, int]]) -> bytes:
    """Return the body of POST /ratings for (user, item, half stars above one)."""
    ratings = [
        {"user_id": str(user), "item_id": str(item), "rating": 1 + 0.5 * step} for user, item, step in rows
    ]
    return json.dumps(ratings, separators=(",", ":")).encode()


main = benchmark("ratings", __doc__, measure, Options)
