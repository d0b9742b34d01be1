"""Keeps what reads rows of a table in threads apart from the event loop, which writes them. Invariant: while
a thread reads, no row changes; the event loop never waits for a lock.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator


class RowLock:
    """Many readers in threads, or one writer on the event loop; code on the event loop needs none to read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        # Set where a writer waits for the readers that there are.
        self._idle: asyncio.Future[None] | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read for the length of a `with`, in a thread; begins when no writer waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if self._readers == 0 and self._idle is not None:
                    # A loop that is closed has no writer any more.
                    with contextlib.suppress(RuntimeError):
                        self._idle.get_loop().call_soon_threadsafe(_done, self._idle)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write for the length of a `with` that awaits nothing. One writer at a time."""
        with self._changed:
            # Readers that come from here on wait: else the writer might wait for ever.
            self._writing = True
            if self._readers:
                self._idle = asyncio.get_running_loop().create_future()
        try:
            if self._idle is not None:
                await self._idle
            yield
        finally:
            with self._changed:
                self._writing, self._idle = False, None
                self._changed.notify_all()


def _done(idle: "asyncio.Future[None]") -> None:
    # The writer may have been cancelled meanwhile.
    if not idle.done():
        idle.set_result(None)
