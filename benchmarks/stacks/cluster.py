"""A store on a cluster: calls over the router beside one connection to one server, slots that move under
load, and a primary that is gone.

Invariant: the same commands over the same payloads; every answer is looked at, and one that failed is
counted.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.progress import turns
from benchmarks.harness.report import Row, Target, at_most, compared, ratios
from featurestore.cluster.slots import even_tags, slot_of_tag
from featurestore.errors import StoreUnavailable
from featurestore.keys import partition_of
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.cluster.forming import until
from torture.cluster_set import NODE_TIMEOUT_MS, ClusterSet, cluster_set
from torture.replica_set import Server, replica_set

# As many as a worker has of one turn, each of another user; a record of rank 8 is a little smaller.
TASKS, VALUE = 64, b"v" * 600
# A few for each server.
PARTITIONS = 16
# Of one slot, while it moves.
MOVED_BYTES, HISTORY = 50_000_000, 2_000
# Raters while slots move and servers go.
RATERS = 8


def measure(options: Options, console: Console) -> list[Row]:
    """Measure calls, moves of a slot, and losses of a primary."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="foldin-bench-") as name:
        folder = Path(name)
        with (
            replica_set("valkey", folder / "one", None) as one,
            cluster_set("valkey", folder / "three", 3) as three,
        ):
            address = f"redis://127.0.0.1:{one.primary().port}"
            rows += asyncio.run(_calls(options, address, three.url))
        with cluster_set("valkey", folder / "moving", 3, replicas=1) as servers:
            console.print("slots move, and a primary goes", style="dim")
            rows += asyncio.run(_accidents(options, servers))
    return rows


async def _calls(options: Options, one: str, three: str) -> list[Row]:
    stores = {
        name: await Store.open(StoreSettings(url=url, namespace="b", partitions=PARTITIONS))
        for name, url in (("one", one), ("three", three))
    }
    try:
        gets = [encode(b"GET", b"b:{%d}:%d" % (k, k)) for k in range(TASKS)]
        for store in stores.values():
            await store.bulk.execute_calls(
                [encode(b"SET", b"b:{%d}:%d" % (k, k), VALUE) for k in range(TASKS)]
            )
        kinds: dict[str, Callable[[Store], Awaitable[float]]] = {
            "64 tasks, a call each": lambda store: _by_tasks(store, gets, options.seconds),
            "one task, 64 calls at once": lambda store: _at_once(store, gets, options.seconds),
        }
        rows = []
        for kind, rate in kinds.items():
            rates: dict[str, list[float]] = {name: [] for name in stores}
            for _ in turns(options.rounds):
                for name, store in stores.items():
                    rates[name].append(await rate(store))
            ours, theirs = tuple(rates["three"]), tuple(rates["one"])
            detail = f"{compared(ours, theirs)} calls a second"
            against = "one connection to one server"
            work = f"router over 3 servers, {kind}"
            rows.append(Row(work, "x", ratios(ours, theirs), Target(0.75, 0.75), against, detail))
        return rows
    finally:
        for store in stores.values():
            await store.close()


def encode(*words: bytes) -> bytes:
    """Return a command as the store takes it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


async def _by_tasks(store: Store, calls: list[bytes], seconds: float) -> float:
    until, execute = time.perf_counter() + seconds, store.bulk.execute
    began = time.perf_counter()

    async def ask(call: bytes) -> int:
        count = 0
        while time.perf_counter() < until:
            assert (await execute(call, 1)) == [VALUE]
            count += 1
        return count

    counts = await asyncio.gather(*map(ask, calls))
    return sum(counts) / (time.perf_counter() - began)


async def _at_once(store: Store, calls: list[bytes], seconds: float) -> float:
    size, count = len(calls), 0
    until, began = time.perf_counter() + seconds, time.perf_counter()
    while time.perf_counter() < until:
        assert (await store.bulk.execute_calls(calls)) == [VALUE] * size
        count += size
    return count / (time.perf_counter() - began)


@dataclass
class _Raters:
    """Users of one slot who rate without a pause. `times`: of what was acknowledged."""

    store: Store
    times: list[float] = field(default_factory=list)
    failed: int = 0

    async def rate(self, user: bytes, until: asyncio.Event) -> None:
        for count in itertools.count():
            if until.is_set():
                return
            try:
                await self.store.ratings.append([NewRating(user, b"i%d" % (count % 50), 3.0, 1.7e9)])
            except StoreUnavailable:
                self.failed += 1
                await asyncio.sleep(0.02)
            else:
                self.times.append(time.perf_counter())

    async def amid(self, users: list[bytes], work: Callable[[], object]) -> float:
        """Rate while something is done in a thread; return the longest time without an acknowledgement."""
        self.times, self.failed, done = [time.perf_counter()], 0, asyncio.Event()
        tasks = [asyncio.create_task(self.rate(user, done)) for user in users]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(work)
        await asyncio.sleep(0.5)
        done.set()
        await asyncio.gather(*tasks)
        return max(later - before for before, later in itertools.pairwise(self.times))


async def _accidents(options: Options, servers: ClusterSet) -> list[Row]:
    settings = StoreSettings(
        url=servers.url, namespace="b", partitions=PARTITIONS, scale="1:5", stream_limit=10**7
    )
    store = await Store.open(settings)
    try:
        slot = slot_of_tag(even_tags(PARTITIONS)[0])
        names = (b"u%d" % k for k in itertools.count())
        users = list(itertools.islice((u for u in names if partition_of(u, PARTITIONS) == 0), 3_000))
        await _fill(store, users, options.size(MOVED_BYTES, 100_000))
        raters, rows = _Raters(store), list[Row]()
        ways: dict[str, Callable[[int, Server], object]] = {
            "key by key": servers.move,
            "at once": servers.migrate,
        }
        for way, move in ways.items():
            pauses, failed, size = list[float](), 0, 0
            for _ in turns(options.rounds):
                source = servers.owner(slot)
                target = next(s for s in servers.servers if s is not source and servers.is_primary(s))
                pauses.append(1000 * await raters.amid(users[:RATERS], partial(move, slot, target)))
                failed += raters.failed
                size = int(servers.command(target, "INFO", "memory")["used_memory"])
            work = f"longest pause of its users' ratings while a slot moves {way}"
            detail = f"{failed} calls failed; its server then uses {size / 1e6:.0f} MB"
            rows.append(Row(work, "ms", tuple(pauses), at_most(250, 250), detail=detail))
        gaps = list[float]()
        for _ in turns(options.rounds):
            owner = servers.owner(slot)
            gaps.append(await raters.amid(users[:RATERS], lambda: _lose(servers, slot)))
            owner.start()
            await asyncio.to_thread(servers.until_whole)
        work = (
            f"no rating of its users after the loss of a primary, node timeout {NODE_TIMEOUT_MS / 1000:g} s"
        )
        return [*rows, Row(work, "s", tuple(gaps), at_most(5, 5))]
    finally:
        await store.close()


async def _fill(store: Store, users: list[bytes], wanted: int) -> None:
    """Give the users of one slot histories of so many bytes in all."""
    each = max(1, wanted // (20 * len(users)))
    for user in users:
        rows = [NewRating(user, b"i%d" % item, 3.0, 1.7e9) for item in range(min(each, HISTORY))]
        await store.ratings.append(rows)


def _lose(servers: ClusterSet, slot: int) -> None:
    owner = servers.owner(slot)
    owner.kill()
    until(lambda: servers.owner(slot) is not owner, "a replica takes over")
    time.sleep(1.0)


main = benchmark("cluster", __doc__, measure, Options)
