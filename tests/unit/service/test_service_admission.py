"""Turns of large calls. Invariant: what is worked on and what waits never exceeds its bytes, and who gives up
leaves no trace.
"""

import asyncio
import random
import time

from service.http.bodies import SMALL_BYTES, Admission
from service.http.problems import Problem
from service.metrics import Counts

CALL = 10 * SMALL_BYTES


def admission(at_once: int, waiting: int) -> tuple[Admission, Counts]:
    counts = Counts(0, time.time(), ())
    return Admission(counts, at_once_bytes=at_once * CALL, waiting_bytes=waiting * CALL), counts


async def holds(desk: Admission, until: asyncio.Event, size: int = CALL) -> None:
    async with desk.admit(size):
        await until.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_gives_up_leaves_no_trace() -> None:
    rng = random.Random(1)
    desk, _ = admission(3, 5)
    working = most = 0

    async def call(size: int) -> None:
        nonlocal working, most
        try:
            async with desk.admit(size):
                working += size
                most = max(most, working)
                try:
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    working -= size
        except Problem:
            pass

    for _ in range(200):
        tasks = [asyncio.create_task(call(rng.randrange(SMALL_BYTES + 1, 2 * CALL))) for _ in range(12)]
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        for task in rng.sample(tasks, 4):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # Two, however large, or more within the limit.
    assert 0 < most <= 4 * CALL
    # Everything is free again.
    end = asyncio.Event()
    last = [asyncio.create_task(holds(desk, end)) for _ in range(8)]
    await settled()
    assert not any(task.done() for task in last)
    end.set()
    await asyncio.gather(*last)
