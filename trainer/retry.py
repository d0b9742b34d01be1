"""Repeat a call until the store can be reached and the archive be written."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from featurestore.errors import StoreUnavailable
from processes.backoff import Backoff
from trainer import log
from trainer.errors import ArchiveFailedError

P = ParamSpec("P")
T = TypeVar("T")


async def with_retries(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `call`, again and again until neither the store nor the archive's disk is in the way.

    For calls that may be repeated. Any error but `StoreUnavailable` and `ArchiveFailedError` passes through.
    """
    backoff = Backoff(0.05, 2.0)
    while True:
        try:
            return await call(*args, **kwargs)
        except (StoreUnavailable, ArchiveFailedError) as exc:
            delay_s = backoff.next_s()
            # A store that is away for an hour gives four lines, not two thousand.
            if backoff.failures in (1, 10, 100, 1_000):
                event = "store_unavailable" if isinstance(exc, StoreUnavailable) else "archive_waits"
                name = getattr(call, "__qualname__", str(call))
                log.warning(event, doing=name, failures=backoff.failures, error=str(exc))
            await asyncio.sleep(delay_s)
