"""Erasures that were not asked for. A service that ends between the step that forgets a user and the command
to erase leaves a mark in the stream alone. Invariant: a user whose mark was archived is erased to the end,
asked for or not, unless this trainer ends in the seconds in between, too: then by the next call to forget.
"""

import asyncio
import time
from collections import OrderedDict

from featurestore.keys import digest_of
from featurestore.store import Store
from trainer import log
from trainer.retry import with_retries

# A service asks a few milliseconds after the mark; by then it has ended, or waits for the store.
_WAITS_S = 3.0
# How often marks are looked at.
_LOOK_S = 0.5
# Users whose erasure was asked for last; of one that falls out an erasure may be asked for twice, harmlessly.
_REMEMBERED = 10_000
# The mark and the command have one time, but for the clock of a store that may go on between the two.
APART_MS = 1_000


class UnaskedErasures:
    """Compares the marks of forgotten users with the commands to erase them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By user: the epoch, the time of the mark by the store's clock, and when it was seen.
        self._marks: dict[bytes, tuple[int, int, float]] = {}
        self._asked: OrderedDict[bytes, int] = OrderedDict()

    def marked(self, epoch: int, user_id: bytes, at_ms: int) -> None:
        """Take in that a mark of a user was archived."""
        self._marks[user_id] = (epoch, at_ms, time.monotonic())

    def asked(self, user_id: bytes, at_ms: int) -> None:
        """Take in that a user's erasure was asked for."""
        digest = digest_of(user_id)
        self._asked[digest] = max(at_ms, self._asked.pop(digest, 0))
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)

    async def ask(self, epoch: int, user_id: bytes, at_ms: int) -> None:
        """Ask for the erasure of a user; twice is harmless."""
        await with_retries(self._store.commands.ask, "erase", epoch=epoch, user=user_id, at_ms=at_ms)
        log.event("erasure_asked", epoch=epoch)

    async def run(self) -> None:
        """Ask for what was not asked for, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            before = time.monotonic() - _WAITS_S
            for user_id, (epoch, at_ms, seen_at) in list(self._marks.items()):
                if seen_at > before:
                    continue
                if self._asked.get(digest_of(user_id), 0) + APART_MS < at_ms:
                    await self.ask(epoch, user_id, at_ms)
                # A mark that came meanwhile stays.
                if self._marks.get(user_id) == (epoch, at_ms, seen_at):
                    del self._marks[user_id]
