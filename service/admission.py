"""How many large calls a worker takes on. Invariant: of each kind so many are worked on and so many wait;
one more is refused at once, whatever the others are doing.

A call of 10,000 pairs takes as long as a thousand of one pair, and holds a hundred times what its body
holds while it is worked on. Were they bounded by the limit of requests in flight alone, a few clients that
send more than a worker can carry would make every other wait for seconds.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.metrics import Snapshot
from service.problems import Problem

# A body that is worked on in about half a millisecond is no large call.
LARGE_BYTES = 65_536


class Admission:
    """Calls of one kind: `at_once` are worked on, `waiting` more may wait for their turn."""

    def __init__(self, counts: Snapshot, *, at_once: int, waiting: int) -> None:
        self._counts = counts
        self._turns = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._taken = 0

    @asynccontextmanager
    async def turn(self, size: int = LARGE_BYTES + 1) -> AsyncIterator[None]:
        """The turn of a call of `size` bytes, waited for in the order of arrival; a small one has it at once.

        Raises `overloaded` where too many wait already.
        """
        if size <= LARGE_BYTES:
            yield
            return
        if self._taken >= self._most:
            self._counts.overloads += 1
            raise Problem("overloaded", f"{self._taken} such calls are under way or waiting", retry_after_s=1)
        self._taken += 1
        try:
            async with self._turns:
                yield
        finally:
            self._taken -= 1
