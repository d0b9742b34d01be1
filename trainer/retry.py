"""Repeat a call until the store can be reached and the archive be written."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from featurestore.errors import StoreUnavailable
from processes.backoff import Backoff
from trainer import log
from trainer.errors import ArchiveFailedError, SegmentUnreadError

# Less than the five minutes for which the alert of trouble looks back.
_SAY_S = 200.0

P = ParamSpec("P")
T = TypeVar("T")


async def with_retries(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `call`, again and again until neither the store nor the archive's disk is in the way.

    For calls that may be repeated. Any error but `StoreUnavailable` and `ArchiveFailedError` passes through.
    """
    backoff, said_at = Backoff(0.05, 2.0), time.monotonic()
    while True:
        try:
            return await call(*args, **kwargs)
        except (StoreUnavailable, ArchiveFailedError) as exc:
            delay_s = backoff.next_s()
            # A store that is away for an hour gives some twenty lines, not two thousand; an alert goes by a
            # line of the last five minutes.
            if backoff.failures in (1, 10) or time.monotonic() - said_at > _SAY_S:
                said_at = time.monotonic()
                name = getattr(call, "__qualname__", str(call))
                told = {"doing": name, "failures": backoff.failures, "error": str(exc)}
                if isinstance(exc, SegmentUnreadError):
                    told["remedy"] = exc.REMEDY
                if isinstance(exc, StoreUnavailable):
                    log.warning("store_unavailable", **told)
                else:
                    log.warning("archive_waits", **told)
            await asyncio.sleep(delay_s)
