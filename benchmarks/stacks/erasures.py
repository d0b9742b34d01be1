"""A thousand users are deleted while others rate, beside an archive of twenty million ratings.

Invariant: users ask to be forgotten all at once, and a rating counts as behind from its answer until it is in
the archive; an erasure ends when its receipt says so.
"""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.machine import lacking_memory
from benchmarks.harness.report import Row, at_most
from benchmarks.load.client import Client
from benchmarks.load.generator import get, post
from benchmarks.load.scrape import metrics_text, total
from benchmarks.ratings import LAG, body_of, until_archived
from benchmarks.stacks.refit import load
from factors import Ratings

RATINGS, USERS, ITEMS, ERASED = 20_000_000, 200_000, 10_000, 1_000
A_SECOND, AT_ONCE = 1_000, 1_000_000
# Of histories, streams and the archive's files in the page cache.
BYTES_A_RATING = 200
LONGEST_S, LOOK_S, AT_A_TIME = 900.0, 0.25, 50


def measure(options: Options, console: Console) -> list[Row]:
    """Measure how far the archive is behind meanwhile, and how long all take."""
    ratings, n_users = options.size(RATINGS, 10_000), options.size(USERS, 200)
    n_items, erased = options.size(ITEMS, 100), options.size(ERASED, 10)
    work = f"{erased:,} users erased beside {A_SECOND:,} ratings/s, {ratings:,} archived"
    if reason := lacking_memory(BYTES_A_RATING * ratings):
        return [Row(work, "s", target=at_most(5, 10), skipped=reason)]
    with (
        stack.store() as url,
        stack.trainer(url, settings=stack.NO_REFITS),
        stack.service(url) as port,
    ):
        rng = np.random.default_rng(options.seed)
        for start in range(0, ratings, AT_ONCE):
            n = min(AT_ONCE, ratings - start)
            user, item = (rng.integers(0, of, n).astype(np.int32) for of in (n_users, n_items))
            value = np.asarray(1.0 + 0.5 * rng.integers(0, 9, n), np.float64)
            time_s = np.full(n, 1.7e9 + start)
            asyncio.run(load(url, Ratings(user, item, value, time_s), synthetic.SCALE_TEXT))
        until_archived(port)
        console.print(f"{ratings:,} ratings archived", style="dim")
        behind, seconds = _erased(port, erased, n_items)
    rate = A_SECOND
    return [
        Row(f"{work}: most that the archive was behind", "s", (behind / rate,), at_most(5, 10)),
        Row(f"{work}: until the last receipt", "s", (seconds,)),
    ]


def _erased(port: int, erased: int, n_items: int) -> tuple[float, float]:
    """Return how many events waited at most, and the seconds until all users were erased."""
    done = threading.Event()
    load = threading.Thread(target=_rate, args=(port, n_items, done), name="ratings")
    load.start()
    try:
        with Client(port) as client:
            began = time.perf_counter()
            most, waiting = 0.0, list[str]()
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                asked = [pool.submit(_forget, port, f"user-{user}") for user in range(erased)]
                while not all(each.done() for each in asked):
                    most = max(most, total(metrics_text(port), LAG))
                    time.sleep(LOOK_S)
                waiting += [each.result() for each in asked]
            while waiting and time.perf_counter() - began < LONGEST_S:
                most = max(most, total(metrics_text(port), LAG))
                # They end together, the last ones asked last.
                while (
                    waiting and json.loads(client.ask(get(f"/receipts/{waiting[-1]}")))["archive"] == "erased"
                ):
                    waiting.pop()
                time.sleep(LOOK_S)
            if waiting:
                raise BenchmarkError(f"{len(waiting)} of {erased} users were not erased in {LONGEST_S:.0f} s")
            return most, time.perf_counter() - began
    finally:
        done.set()
        load.join()


def _rate(port: int, n_items: int, done: threading.Event) -> None:
    """Rate by users who stay, ten calls a second, until `done`."""
    number, began = 0, time.perf_counter()
    with Client(port) as client:
        while not done.is_set():
            first = number * (A_SECOND // 10)
            rows = (
                (10_000_000 + n % 50_000, n % n_items, n % 9) for n in range(first, first + A_SECOND // 10)
            )
            client.ask(post("/ratings", body_of(rows)))
            number += 1
            done.wait(max(0.0, began + number / 10 - time.perf_counter()))


def _forget(port: int, user: str) -> str:
    """Ask for an erasure, again where the service has no room; return its receipt."""
    request = f"DELETE /users/{user} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    while True:
        try:
            with Client(port) as client:
                return str(json.loads(client.ask(request))["receipt"])
        except BenchmarkError as exc:
            if "store_unavailable" not in str(exc):
                raise
            time.sleep(1.0)


main = benchmark("erasures", __doc__, measure, Options)
