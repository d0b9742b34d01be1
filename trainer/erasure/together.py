"""Runs of work that all who wait for one share: a pass over a whole disk serves many at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from featurestore.errors import StoreError
from trainer.errors import ArchiveFailedError

T = TypeVar("T")


@dataclass
class _Batch(Generic[T]):
    wanted: list[T] = field(default_factory=list)
    ended: bool = False
    error: StoreError | ArchiveFailedError | None = None


class Together(Generic[T]):
    """Runs `work` for all that is wanted, one run after the other. Between two it rests `rest` times as long
    as the last one took, or since it said that it `begins`, so that runs take 1 / (1 + rest) of the time at
    most, and `gather_s` at least.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[None]], *, rest: float, gather_s: float = 0.0
    ) -> None:
        self._work = work
        self._rest = rest
        self._gather_s = gather_s
        self._turn = asyncio.Lock()
        self._rests_until = self._began_at = 0.0
        self._next = _Batch[T]()

    def begins(self) -> None:
        """Say that the run has waited until now, and works from here on."""
        self._began_at = time.monotonic()

    async def run(self, wanted: T) -> None:
        """Return when a run has ended that began after this call. Raises the `StoreError` or
        `ArchiveFailedError` of its `work`."""
        batch = self._next
        batch.wanted.append(wanted)
        # The first that has the turn runs the work; where it is cancelled, the next one of them.
        async with self._turn:
            if not batch.ended:
                await asyncio.sleep(max(self._gather_s, self._rests_until - time.monotonic()))
                if batch is self._next:
                    self._next = _Batch()
                self._began_at = time.monotonic()
                try:
                    await self._work(batch.wanted)
                except (StoreError, ArchiveFailedError) as exc:
                    batch.error = exc
                self._rests_until = time.monotonic() + self._rest * (time.monotonic() - self._began_at)
                batch.ended = True
        if batch.error is not None:
            raise batch.error
