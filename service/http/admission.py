"""How many large calls a worker takes on.

Invariant: so many are worked on and so many bytes of bodies wait; one more is refused at once.

A call of 10,000 pairs takes as long as a thousand of one pair, and holds thirty times its body while it is
worked on. Were they bounded by the limit of requests in flight alone, a few clients that send more than a
worker can carry would make all others wait for seconds.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.http.problems import Problem
from service.metrics import Snapshot

# A body that is worked on in less than half a millisecond: some 100 pairs.
SMALL_BYTES = 2_048
# While one waits for the store, another is worked on; each more makes the turns of the event loop longer.
AT_ONCE = 2


class Admission:
    """Calls of one kind: two are worked on at a time, or more if their bodies have up to `at_once_bytes`
    together; others wait, with bodies of up to `waiting_bytes`, or one of any size.
    """

    def __init__(self, counts: Snapshot, *, at_once_bytes: int, waiting_bytes: int) -> None:
        self._counts = counts
        self._at_once_bytes = at_once_bytes
        self._most_waiting_bytes = waiting_bytes
        self._calls = self._working = 0
        self._waiting = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def admit(self, size: int) -> AsyncIterator[None]:
        """Work on a body of `size` bytes in the block, in the order of arrival; on a small one at once.

        Raises `overloaded` where too much waits already.
        """
        # A small call does not queue behind large calls.
        if size <= SMALL_BYTES:
            yield
            return
        # A call that would fit waits too while others do: else large ones would never have their turn.
        if self._queue or not self._fits(size):
            await self._wait(size)
        else:
            self._begin(size)
        try:
            yield
        finally:
            self._end(size)

    def _fits(self, size: int) -> bool:
        return self._calls < AT_ONCE or self._working + size <= self._at_once_bytes

    def _begin(self, size: int) -> None:
        self._calls += 1
        self._working += size

    def _end(self, size: int) -> None:
        self._calls -= 1
        self._working -= size
        self._admit()

    async def _wait(self, size: int) -> None:
        if self._queue and self._waiting + size > self._most_waiting_bytes:
            self._counts.overloads += 1
            detail = f"{len(self._queue)} such calls of {self._waiting} bytes wait already"
            raise Problem("overloaded", detail, retry_after_s=1)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, admitted)
        self._queue.append(entry)
        self._waiting += size
        try:
            await admitted
        except asyncio.CancelledError:
            # A call that gives up leaves no trace, whether it waited or had just been let in.
            if entry in self._queue:
                self._queue.remove(entry)
                self._waiting -= size
                self._admit()
            else:
                self._end(size)
            raise

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            size, admitted = self._queue.popleft()
            self._waiting -= size
            self._begin(size)
            admitted.set_result(None)
