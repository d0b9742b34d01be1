"""Repeats calls to the store until it can be reached."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from featurestore.errors import StoreUnavailable
from processes.backoff import Backoff
from trainer import log

T = TypeVar("T")


async def patiently(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Do `call` until the store can be reached. For calls that may be repeated; everything else passes
    through.
    """
    backoff = Backoff(0.05, 2.0)
    while True:
        try:
            return await call()
        except StoreUnavailable as exc:
            delay_s = backoff.next_s()
            if backoff.failures in (1, 10, 100):
                log.warning("store_unavailable", doing=what, failures=backoff.failures, error=str(exc))
            await asyncio.sleep(delay_s)
