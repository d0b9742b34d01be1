"""Waiting for something to become true, so that no test sleeps before it asserts."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.02
# The one guard against hanging. No test asserts how long something takes.
PATIENCE_S = 60.0


def wait_until(predicate: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S) -> T:
    """Poll until `predicate()` is true and return its value.

    Raises AssertionError that names `what` after the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if value := predicate():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


async def wait_until_async(
    predicate: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S
) -> Any:
    """As `wait_until`, without blocking the event loop; what a predicate gives may be an awaitable."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if found := (await value if isinstance(value, Awaitable) else value):
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(POLL_S)
