"""Hold the lease. Invariant: `check` never passes after another trainer may have become the leader.

The time until which this process may act is counted from before the renewal was sent, so it ends no later
than the store's; a process that was stopped for a while finds it over before it can write. It is the first
line, and costs nothing. Where it is passed in the last moment, or clocks stood still, the store's functions
and the name of the archive refuse what is late.
"""

import asyncio
import time
from collections.abc import Callable

from featurestore.errors import LeaseLost, StoreUnavailable
from featurestore.leases import Lease
from trainer import log


class Leadership:
    """A lease that is kept, or lost. `began_at`: when it was asked for, by `clock`."""

    def __init__(
        self, lease: Lease, ttl_s: float, began_at: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lease = lease
        self._ttl_s = ttl_s
        self._clock = clock
        self._until = began_at + ttl_s
        self._lost_at: float | None = None

    def check(self) -> None:
        """Raise `LeaseLost` if this process may no longer act. Safe in any thread, costs nothing."""
        if self._clock() >= self._until:
            self._note()
            raise LeaseLost("the lease ran out before it could be renewed")

    @property
    def left_s(self) -> float:
        """For how many seconds more this process may act; 0 or less where it may not."""
        return self._until - self._clock()

    @property
    def lost_s(self) -> float:
        """For how many seconds this process has known that it may no longer act; 0 while it may. One that was
        stopped for a while begins to count when it goes on.
        """
        if self._clock() < self._until:
            return 0.0
        return self._clock() - self._note()

    def _note(self) -> float:
        if self._lost_at is None:
            self._lost_at = self._clock()
        return self._lost_at

    def end(self) -> None:
        """Act no more, whatever the lease says."""
        self._until = float("-inf")
        self._note()

    async def renew(self) -> None:
        """Lead on. Raises `LeaseLost`, `StoreUnavailable`."""
        began_at = self._clock()
        await self.lease.renew()
        self._until = began_at + self._ttl_s
        if self.left_s > 0:
            # What was late before is over: the next loss is counted from when it is known.
            self._lost_at = None

    async def keep(self) -> None:
        """Renew until cancelled. Raises `LeaseLost`."""
        try:
            while True:
                # Three renewals may fail before the lease runs out.
                await asyncio.sleep(self._ttl_s / 4)
                try:
                    async with asyncio.timeout(self._ttl_s):
                        await self.renew()
                except (StoreUnavailable, TimeoutError) as exc:
                    log.warning("lease_not_renewed", error=str(exc), left_s=round(self.left_s, 2))
                self.check()
        except LeaseLost:
            self.end()
            raise
