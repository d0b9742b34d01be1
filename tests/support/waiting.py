"""Waiting for something to become true, so that no test sleeps before it asserts; values that are there."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.02
# The one guard against hanging. No test asserts how long something takes.
PATIENCE_S = 60.0


def some(value: T | None) -> T:
    assert value is not None
    return value


def wait_until(
    get: Callable[[], T],
    what: str,
    says: Callable[[T], object] = bool,
    unless: tuple[type[Exception], ...] = (),
    *,
    timeout_s: float = PATIENCE_S,
) -> T:
    """Poll until `says` is true of what `get()` gives; return that. `unless`: errors that count as not yet.

    Raises AssertionError that names `what` after the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(*unless):
            value = get()
            if says(value):
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


async def wait_until_async(
    get: Callable[[], object],
    what: str,
    says: Callable[[Any], object] = bool,
    unless: tuple[type[Exception], ...] = (),
    *,
    timeout_s: float = PATIENCE_S,
) -> Any:
    """As `wait_until`, without blocking the event loop; what `get` gives may be an awaitable."""
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(*unless):
            value = get()
            found = await value if isinstance(value, Awaitable) else value
            if says(found):
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


async def retried(call: Callable[[], Awaitable[T]], what: str, *errors: type[Exception]) -> T:
    """Call until it raises none of these errors; return what it gives."""
    given: T = await wait_until_async(call, what, lambda _: True, errors)
    return given
