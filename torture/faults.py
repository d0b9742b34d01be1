"""The faults, in one table: each does its harm, waits, mends it, and counts how often it hit.

Invariant: when one is over the machine is whole again: nothing frozen, no connection held, the clocks right.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from featurestore.cluster.servers import ClusterKeys
from featurestore.cluster.slots import even_tags, slot_of_tag
from torture.clients import Shared
from torture.cluster_set import ClusterSet
from torture.replica_set import WAYS, Way
from torture.stack import PARTITIONS, TRAINERS, Stack, StoreKind

# A fit comes a second after it is asked for; a new history when it is known what became of the one before.
MEETS_WITHIN_S = 45.0
LOOK_S = 0.02  # a fit lasts ten times as long, at least
# A batch comes within a second, if a trainer leads.
SEGMENT_WITHIN_S = 10.0
_SEGMENTS = "epoch-*/*.parquet"
# A lease lasts 5 s: a leader that is frozen for longer wakes up to another one.
PAST_LEASE_S = 8.0
# Starts of all parts at once, on busy cores.
UP_WITHIN_S = 30.0
# A worker that was not heard of for 2 s is not waited for when histories change.
UNHEARD_S = 5.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What faults act on."""

    stack: Stack
    shared: Shared
    rng: random.Random


Fault = Callable[[Scene], Awaitable[int]]
"""Does harm and mends it; returns how often it hit."""


# What an operator must do for a process to be there.
_WANTED = {"fit": "refit", "publication": "large history"}


async def _met(scene: Scene, kind: str) -> bool:
    """Wait until there is a process of a kind, asking for what it does."""
    if kind in _WANTED:
        scene.shared.wanted.add(_WANTED[kind])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MEETS_WITHIN_S):
            while not scene.stack.pids(kind):  # noqa: ASYNC110 -- processes come without a word
                await asyncio.sleep(LOOK_S)
            return True
    return False


async def _kill(scene: Scene, kind: str) -> int:
    return int(await _met(scene, kind) and scene.stack.kill(kind, scene.rng) > 0)


async def _freeze(scene: Scene, kind: str, seconds: float = 0.0) -> int:
    # None where it has ended since: 0 would be the group of this process.
    if not await _met(scene, kind) or not (pids := scene.stack.pids(kind)):
        return 0
    pid = scene.rng.choice(pids)
    try:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds or scene.rng.uniform(0.3, 3.0))
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return 0
    return 1


async def _cut(scene: Scene, name: str) -> int:
    cuts = scene.rng.randint(1, 4)
    for _ in range(cuts):
        scene.stack.proxies[name].cut()
        await asyncio.sleep(scene.rng.uniform(0.05, 0.5))
    return cuts


async def _delay(scene: Scene, name: str) -> int:
    proxy = scene.stack.proxies[name]
    proxy.delay_s = scene.rng.choice((0.01, 0.05, 0.2, 0.6))
    await asyncio.sleep(scene.rng.uniform(0.5, 3.0))
    proxy.delay_s = 0.0
    return 1


async def _hold(scene: Scene, name: str) -> int:
    proxy = scene.stack.proxies[name]
    proxy.open.clear()
    await asyncio.sleep(scene.rng.uniform(0.3, 3.0))
    proxy.open.set()
    return 1


async def _clock(scene: Scene, *parts: str) -> int:
    part = scene.rng.choice(parts)
    for ahead_s in (scene.rng.choice((-600.0, -30.0, -3.0, 3.0, 30.0, 600.0)), 0.0):
        scene.stack.disk.set_clock(part, ahead_s)
        await asyncio.sleep(scene.rng.uniform(0.5, 2.0))
    return 2


async def _full(scene: Scene, *parts: str) -> int:
    # A store that must sync each write ends without room, and would end again.
    with scene.stack.away("store") if "store" in parts else contextlib.nullcontext():
        for part in parts:
            scene.stack.disk.set_full(part, True)
        await asyncio.sleep(scene.rng.uniform(0.5, 3.0))
        for part in parts:
            scene.stack.disk.set_full(part, False)
    return 1


async def _power(scene: Scene) -> int:
    await scene.stack.cut_power(scene.rng)
    # Cut again before anything answers it would show nothing.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(UP_WITHIN_S):
            while not await asyncio.to_thread(scene.stack.answers):  # noqa: ASYNC110 -- of other processes
                await asyncio.sleep(0.2)
    return 1


async def _promote(scene: Scene, way: Way) -> int:
    servers = scene.stack.servers
    assert servers is not None
    old = servers.primary()
    scene.shared.promotions += 1
    try:
        await asyncio.to_thread(servers.replace_primary, way)
    except TimeoutError:
        # The sentinels did not agree: that is counted as no promotion.
        return 0
    finally:
        # One that cannot follow again keeps the stack from coming to rest, which is found then.
        with contextlib.suppress(TimeoutError):
            await asyncio.to_thread(servers.bring_back, old, way)
    return 1


async def _move(scene: Scene, *, whole: bool) -> int:
    """Move the slots of some partitions, of the pointer or the items to other servers."""
    servers, keys = scene.stack.servers, ClusterKeys("foldin", PARTITIONS)
    assert isinstance(servers, ClusterSet)
    tags = scene.rng.sample([*even_tags(PARTITIONS), keys.live, keys.catalogue], 4)
    for tag in tags:
        with contextlib.suppress(TimeoutError):
            await asyncio.to_thread(servers.move_away, slot_of_tag(tag), whole=whole)
    return len(tags)


async def _amid(scene: Scene, call: str, wanted: str, frozen_s: float = 0.0) -> int:
    """Kill something while a call is under way, or freeze it for so long."""
    scene.shared.wanted.add(wanted)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MEETS_WITHIN_S):
            while not scene.shared.caller.in_flight[call]:  # noqa: ASYNC110 -- calls come by themselves
                await asyncio.sleep(LOOK_S)
    await asyncio.sleep(
        scene.rng.uniform(0.0, 1.5) if call == "new history" else scene.rng.uniform(0.0, 0.05)
    )
    if not scene.shared.caller.in_flight[call]:
        return 0
    if frozen_s:
        return await _freeze(scene, scene.rng.choice(("worker", "trainer")), frozen_s)
    kind = scene.rng.choice(("store", "worker", "trainer"))
    if kind == "store" and scene.stack.servers is not None:
        return await _promote(scene, "kill")
    return await _kill(scene, kind)


async def _at_a_segment(scene: Scene) -> int:
    """Kill the trainers when a segment has come into the archive: its events are in the streams, too."""
    archive, pids = scene.stack.settings.archive_folder, scene.stack.pids("trainer")

    def killed() -> int:
        # In a thread of its own: the store is told within milliseconds.
        before, until = set(archive.glob(_SEGMENTS)), time.monotonic() + SEGMENT_WITHIN_S
        while before >= set(archive.glob(_SEGMENTS)):
            if time.monotonic() > until:
                return 0
            time.sleep(LOOK_S / 20)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    return await asyncio.to_thread(killed)


_PROMOTIONS: dict[str, Fault] = {
    f"promotion of a replica, the primary {what}": partial(_promote, way=way)
    for way, what in zip(WAYS, ("killed", "frozen", "replaced while it runs"), strict=True)
}
_MOVES: dict[str, Fault] = {
    "a slot moves key by key": partial(_move, whole=False),
    "a slot moves as a whole": partial(_move, whole=True),
}
_KINDS = {
    "the store": "store",
    "a service's supervisor": "service",
    "a worker": "worker",
    "a trainer": "trainer",
    "a fit": "fit",
    "a publication": "publication",
}
FAULTS: dict[str, Fault] = {
    **{f"SIGKILL of {name}": partial(_kill, kind=kind) for name, kind in _KINDS.items()},
    # A trainer for longer, below.
    **{
        f"SIGSTOP of {name}": partial(_freeze, kind=kind)
        for name, kind in _KINDS.items()
        if kind != "trainer"
    },
    "SIGSTOP of a trainer past its lease": partial(_freeze, kind="trainer", seconds=PAST_LEASE_S),
    "connections of the services cut": partial(_cut, name="service"),
    "connections of the trainers cut": partial(_cut, name="trainer"),
    "connections of the services delayed": partial(_delay, name="service"),
    "connections of the trainers delayed": partial(_delay, name="trainer"),
    "connections of the services held": partial(_hold, name="service"),
    "connections of the trainers held": partial(_hold, name="trainer"),
    "clock of the store jumps": lambda scene: _clock(scene, "store"),
    "clock of a service or trainer jumps": lambda scene: _clock(scene, "service-a", "service-b", *TRAINERS),
    "disk of the store full": lambda scene: _full(scene, "store"),
    "disk of the archive full": lambda scene: _full(scene, *TRAINERS),
    "power cut": _power,
    "SIGKILL of the trainers at a new segment": _at_a_segment,
    "SIGKILL amid a new history": partial(_amid, call="new history", wanted="history"),
    "SIGSTOP amid a new history": partial(_amid, call="new history", wanted="history", frozen_s=UNHEARD_S),
    "SIGKILL amid an erasure": partial(_amid, call="forget", wanted="forget"),
    **_PROMOTIONS,
    **_MOVES,
}
# Of a store in one folder, behind proxies.
_OF_ONE_SERVER = re.compile(r"(SIG\w+|clock|disk) of the store|connections|power")


def names_of(kind: StoreKind) -> list[str]:
    """Return the names of the faults that a store of this kind can have."""
    if kind == "cluster":
        return [name for name in FAULTS if not _OF_ONE_SERVER.match(name)]
    if kind == "replicas":
        return [name for name in FAULTS if not _OF_ONE_SERVER.match(name) and name not in _MOVES]
    return [name for name in FAULTS if name not in {**_PROMOTIONS, **_MOVES}]
