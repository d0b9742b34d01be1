"""Event loops of a process: the fastest there is, ended by signals; work beside other work; and waiting for
the first of several ends.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does, on uvloop where that is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def run_until_stopped(main: Coroutine[Any, Any, T]) -> T | None:
    """Run `main` to its end, or cancel it on SIGINT or SIGTERM and return None."""
    try:
        return run(_cancel_on_sigterm(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return None


async def _cancel_on_sigterm(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    if task is not None:
        with suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await main


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # no wheel for Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set, in place of ending this process."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def first_of(*waits: Awaitable[object], within_s: float | None = None) -> None:
    """Return when one of these has ended, however it ended, or the time is over; the others are cancelled.

    A future or task that is to go on is passed in `asyncio.shield`.
    """
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def beside(
    work: Coroutine[None, None, None], name: str, failed: Callable[[str, BaseException], None]
) -> AsyncIterator[None]:
    """Do `work` for the length of a `with`; `failed` is told its name and the error where it ends by one."""

    def tell(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            failed(name, exc)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(tell)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
