"""Turns of large calls. Invariant: what is worked on and what waits never exceeds its bytes, and who gives up
leaves no trace.
"""

import asyncio
import random
import time

import pytest

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


async def test_so_many_work_so_many_wait_and_one_more_is_refused() -> None:
    desk, counts = admission(2, 3)
    end = asyncio.Event()
    tasks = [asyncio.create_task(holds(desk, end)) for _ in range(7)]
    await settled()
    refused = [task for task in tasks if task.done()]
    assert tasks.index(refused[0]) == 5
    assert len(refused) == counts.overloads == 2
    for task in refused:
        with pytest.raises(Problem, match="wait already"):
            task.result()
    async with desk.admit(SMALL_BYTES):
        end.set()
    await asyncio.gather(*tasks[:5])
    async with desk.admit(2 * CALL):
        pass


async def test_two_work_however_large_and_one_may_wait_and_is_not_overtaken() -> None:
    desk, _ = admission(2, 1)
    first, second = asyncio.Event(), asyncio.Event()
    working = [asyncio.create_task(holds(desk, first, 100 * CALL)) for _ in range(2)]
    await settled()
    waiting = asyncio.create_task(holds(desk, second, 100 * CALL))
    await settled()
    with pytest.raises(Problem):
        await holds(desk, second)
    first.set()
    await asyncio.gather(*working)
    await settled()
    assert not waiting.done()
    second.set()
    await waiting


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
