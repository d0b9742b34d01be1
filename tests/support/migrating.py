"""Migrations for tests: in this process, or in a child in which each stands still at a step."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from featurestore.migration.migration import Migrated, Migration, Step, Telling, no_step
from featurestore.migration.opening import leaving
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild
from tests.support.waiting import wait_until


async def migrated(source: StoreSettings, target: StoreSettings, *, step: Step = no_step) -> Migrated | None:
    """Move the namespace of `source` to `target`."""
    telling = Telling(lambda _line: None, lambda _done, _total: None)
    async with leaving(source) as store:
        return await Migration(store, target, telling, step=step).run()


async def archive(store: Store) -> None:
    """Take what waits in the streams, as a trainer does when it is archived."""
    lease = await store.leases.acquire("archives", 60_000)
    assert lease is not None
    events = await store.stream.read(1, lease, 100, 0)
    await store.stream.done(1, lease, events.last)
    await lease.release()


CHILD = """
import asyncio, json, sys, threading, time, traceback
from pathlib import Path
from featurestore.settings import StoreSettings
from tests.support.migrating import migrated

folder = Path(sys.argv[2])

def move(source, target, victim):
    def step(name):
        if name == victim:
            (folder / (source["namespace"] + ".there")).touch()
            while not (folder / "go").exists():
                time.sleep(0.02)

    try:
        asyncio.run(migrated(StoreSettings(**source), StoreSettings(**target), step=step))
    except Exception as exc:
        print(source["namespace"], "ended:", type(exc).__name__, flush=True)

threads = [threading.Thread(target=move, args=each) for each in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

Move = tuple[StoreSettings, StoreSettings, str]
"""From where, to where, and the step at which it stands still."""


@contextmanager
def standing_still(moves: Sequence[Move], folder: Path) -> Iterator[BlockingChild]:
    """Migrations in one process, each of which has come to its step and no further."""
    given = json.dumps([(asdict(source), asdict(target), step) for source, target, step in moves])
    command = [sys.executable, "-c", CHILD, given, str(folder)]
    with BlockingChild(command, folder / "child.log", environment=dict(os.environ)) as child:
        marks = [folder / f"{source.namespace}.there" for source, _, _ in moves]
        wait_until(lambda: all(mark.exists() for mark in marks) or child.code is not None, "all are there")
        assert child.code is None, child.text
        yield child
