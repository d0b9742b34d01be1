"""A person waits in front of these commands: a store that is away is waited for, within reason."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from featurestore.errors import StoreUnavailable, StreamFull
from featurestore.store import Store
from foldin.errors import StoppedError

P = ParamSpec("P")
T = TypeVar("T")

# A store that restarts is back within seconds.
GIVE_UP_SILENT_S = 60.0
# A trainer that is behind archives at every moment: after so long there is none.
GIVE_UP_FULL_S = 300.0
# A person who waits sees that it goes on soon after the store is back.
_LONGEST_PAUSE_S = 2.0

Say = Callable[[str], None]
"""Shows a line to the person."""

Progress = Callable[[int, int], None]
"""Shows how much of how much is done."""


def no_progress(_done: int, _total: int) -> None:
    """Show nothing."""


async def retried(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `call`, which may be repeated, until the store takes it. Raises `StoppedError`."""
    began = time.monotonic()
    while True:
        try:
            return await call(*args, **kwargs)
        except StoreUnavailable as exc:
            limit_s = GIVE_UP_FULL_S if isinstance(exc, StreamFull) else GIVE_UP_SILENT_S
            if time.monotonic() - began > limit_s:
                raise StoppedError(f"{exc}: run this again later") from exc
            await asyncio.sleep(min(max(exc.retry_after_s, 0.05), _LONGEST_PAUSE_S))


async def has_leader(store: Store) -> bool:
    """Say whether a trainer leads."""
    return bool(await retried(store.leases.held))
