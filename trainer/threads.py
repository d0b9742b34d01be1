"""Run blocking work off the event loop. Invariant: `drained` returns only when no such work is running any
more.

Cancelling a task does not stop its thread: the next term, which has the same files, must wait for it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Runs functions in the loop's default executor and knows which are still running."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[object]] = set()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(*args, **kwargs)` in a thread; return its result."""
        future = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
        tracked: asyncio.Future[object] = asyncio.ensure_future(future)
        self._running.add(tracked)
        tracked.add_done_callback(self._ended)
        # Cancelling the awaiting task must not cancel what `drained` waits for.
        return await asyncio.shield(future)

    def _ended(self, future: asyncio.Future[object]) -> None:
        self._running.discard(future)
        # The task that awaited it may have been cancelled: then its error is read here, or asyncio would log
        # it.
        if not future.cancelled():
            future.exception()

    async def drained(self) -> None:
        """Wait until everything that was begun has ended, however it ended."""
        while self._running:
            await asyncio.wait(self._running)
