"""How long to wait before trying again. Invariant: never for ever, never all at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from featurestore.errors import StoreUnavailable
from trainer import log

T = TypeVar("T")


class Backoff:
    """Delays that double up to a limit, each drawn between its half and its whole so that processes
    spread.
    """

    def __init__(self, first_s: float, limit_s: float, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.failures = 0

    def next_s(self) -> float:
        """The delay after one more failure."""
        whole = min(self._limit_s, self._first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return whole * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self.failures = 0


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
