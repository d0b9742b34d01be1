"""A whole feature store from an archive alone: ten million ratings into an empty store, beside a trainer.

Invariant: the clock runs from the first read of the archive until every rating is acknowledged by the store
and the trainer is asked to fit them; the fit is not in it.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.machine import lacking_memory
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, at_most
from featurestore.ratings.stream import Events
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.recovery.restoring import Restore, RestoreRequest
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import make_table
from trainer.settings import TrainerSettings

# The goal; users and items as of MovieLens 10M.
RATINGS, USERS, ITEMS = 10_000_000, 70_000, 10_000
# As a merged segment has.
SEGMENT_ROWS = 1_000_000
# Of events in arrays while they are merged, and of histories and streams in the store, measured.
BYTES_A_RATING = 500
TARGET = at_most(300, 600)
# Ten a second: a trainer leads after two seconds of a quiet machine.
LOOKS = 600


class _Written(Exception):  # noqa: N818 - says what happened
    """All ratings are in the store."""


def measure(options: Options, console: Console) -> list[Row]:
    """Measure the seconds of a restore."""
    ratings = options.size(RATINGS, 1000)
    work = f"{ratings:,} ratings of {options.size(USERS, 10):,} users restored from an archive"
    if reason := lacking_memory(BYTES_A_RATING * ratings):
        return [Row(work, "s", target=TARGET, skipped=reason)]
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name:
        archive = EpochArchive(Path(name), 1, guard=lambda: None)
        # A trainer has one for the fits of an epoch; a folder without is a backup that was cut off.
        (Path(name) / "fits").mkdir()
        for table in _tables(options, ratings):
            archive.append(table, {})
        console.print(f"{ratings:,} ratings archived", style="dim")
        seconds = []
        for _ in turns(options.rounds):
            with stack.store() as url, stack.trainer(url, settings=stack.NO_REFITS):
                seconds.append(asyncio.run(_restored(url, Path(name), console)))
    return [Row(work, "s", tuple(seconds), TARGET)]


async def _restored(url: str, path: Path, console: Console) -> float:
    settings = TrainerSettings(
        StoreSettings(url=url, scale=synthetic.SCALE_TEXT, timeout_s=15.0),
        Path(tempfile.gettempdir()) / "none",
    )
    store = await Store.open(settings.store, hot=False)
    try:
        for _ in range(LOOKS):
            if (await store.generations.live()).generation:
                break
            await asyncio.sleep(0.1)
        else:
            raise BenchmarkError("the trainer does not lead")
        began = time.perf_counter()

        def step(name: str) -> None:
            if name in {"begun", "planned", "items", "loaded"}:
                console.print(f"  {time.perf_counter() - began:.1f} s: {name}", style="dim")
            if name == "asked":
                raise _Written

        try:
            await Restore(store, settings, RestoreRequest(path), lambda _line: None, step=step).run()
        except _Written:
            return time.perf_counter() - began
        raise AssertionError("the store had it all")
    finally:
        await store.close()


def _tables(options: Options, ratings: int) -> Iterator[pa.Table]:
    """Events of users who rate as unevenly as people do, in order of time."""
    rng = np.random.default_rng(options.seed)
    n_users, n_items = options.size(USERS, 10), options.size(ITEMS, 10)
    users = [b"%d" % user for user in range(n_users)]
    items = [b"item-%d" % item for item in range(n_items)]
    counts = np.zeros(n_users, dtype=np.int64)
    for start in range(0, ratings, SEGMENT_ROWS):
        rows = min(SEGMENT_ROWS, ratings - start)
        user = (n_users * rng.random(rows) ** 2).astype(np.int64)
        order = np.argsort(user, kind="stable")
        first = np.searchsorted(user[order], np.arange(n_users))
        n = np.empty(rows, dtype=np.int64)
        n[order] = np.arange(rows) - first[user[order]] + 1
        n += counts[user]
        counts += np.bincount(user, minlength=n_users)
        events = Events(
            partition=np.zeros(rows, dtype=np.int32),
            stream_ms=np.full(rows, 1_000_000 + start, dtype=np.int64),
            stream_seq=start + 1 + np.arange(rows),
            users=users,
            user=user,
            n=n,
            item_row=(n_items * rng.random(rows) ** 2).astype(np.int64),
            type_code=np.zeros(rows, dtype=np.uint8),
            rating=0.5 * rng.integers(2, 11, rows).astype(np.float64),
            time=1.2e9 + start + np.arange(rows, dtype=np.float64),
        )
        yield make_table(events, items)


main = benchmark("recovery", __doc__, measure, Options)
