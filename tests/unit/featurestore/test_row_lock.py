"""Threads read, the event loop writes: never at once, and neither keeps the other for ever."""

import asyncio
import threading

import pytest

from featurestore.generations.row_lock import RowLock


async def test_readers_and_a_writer_take_turns() -> None:
    lock, rows, ended = RowLock(), [0, 0], threading.Event()
    torn = []

    def read() -> None:
        while not ended.is_set():
            with lock.reading():
                first = rows[0]
                # Lets the others go on, as a long computation does.
                ended.wait(0.0001)
                torn.append(first != rows[1])

    readers = [asyncio.create_task(asyncio.to_thread(read)) for _ in range(3)]
    for value in range(1, 200):
        async with lock.writing():
            rows[0] = value
            rows[1] = value
        await asyncio.sleep(0.0005)
    ended.set()
    await asyncio.gather(*readers)
    assert len(torn) > 100
    assert not any(torn)


async def test_a_writer_that_gives_up_keeps_no_reader_out() -> None:
    lock, began, go_on = RowLock(), threading.Event(), threading.Event()

    def read() -> None:
        with lock.reading():
            began.set()
            assert go_on.wait(20)

    async def write() -> None:
        async with lock.writing():
            raise AssertionError("a thread reads")

    reading = asyncio.create_task(asyncio.to_thread(read))
    await asyncio.to_thread(began.wait, 20)
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    late = asyncio.create_task(asyncio.to_thread(lock.reading().__enter__))
    await asyncio.wait_for(late, 10)
    go_on.set()
    await reading
