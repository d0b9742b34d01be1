"""Threads read, the event loop writes: never at once, and neither keeps the other for ever."""

import asyncio
import threading

from featurestore.generations.row_lock import RowLock
from tests.support.waiting import PATIENCE_S


async def test_readers_and_a_writer_take_turns() -> None:
    lock, rows, began, go_on = RowLock(), [0], threading.Event(), threading.Event()

    def read() -> tuple[int, int]:
        with lock.reading():
            first = rows[0]
            began.set()
            assert go_on.wait(PATIENCE_S)
            return first, rows[0]

    async def write() -> None:
        async with lock.writing():
            rows[0] = 1

    reading = asyncio.create_task(asyncio.to_thread(read))
    await asyncio.to_thread(began.wait, PATIENCE_S)
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    assert rows == [0]
    go_on.set()
    await writing
    assert (await reading, rows) == ((0, 0), [1])
