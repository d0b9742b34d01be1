"""Have the store write its files anew, so that they have nothing of users who were erased. Invariant: one
waits here until a rewrite has ended that began after the call, with no trace left in the streams, and with
no history left in the store that was replaced before.

A rewrite costs the store a copy of all that it has: many erasures share one, and between two the store rests.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.ratings.files import FileState, next_step
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.erasure.together import Together
from trainer.erasure.waiting import FILES, FILES_BUSY, FILES_REFUSED, FILES_ROOM, REPLACED, STREAMS
from trainer.retry import with_retries

# Erasures that come together, as those of a script, share a rewrite; one alone waits no longer for it.
_TOGETHER_S = 0.2
# Rests nine times as long as a rewrite took: it writes a tenth of the time at most.
_REST = 9.0
# A rewrite of a small store takes 50 ms, of a large one minutes; without the right to ask for it, days.
_LOOK_S, _SELDOM_S = 0.1, 1.0
# What a person mends.
_MENDED_S = 5.0


class FileRewrites:
    """Rewrites for one term. `no_room`: whether the store's disk has no room for another file."""

    def __init__(self, store: Store, no_room: Callable[[], bool]) -> None:
        self._store = store
        self._no_room = no_room
        self._runs = Together(self._rewrite_for, rest=_REST, gather_s=_TOGETHER_S)
        # In words for those who wait.
        self.waits_for = FILES

    async def rewritten(self) -> None:
        """Return when no file of the store has anything that was removed from it before this call."""
        await self._runs.run(None)

    async def _rewrite_for(self, waiting: Sequence[None]) -> None:
        # After a restart, or with another primary, what was done before may not be in the files.
        while not await self._rewritten_in_one_run():
            pass
        self.waits_for = FILES
        log.event("store_files_rewritten", erasures=len(waiting))

    async def _rewritten_in_one_run(self) -> bool:
        await self._renew_streams()
        before: list[FileState] | None = None
        backoff, ask_at, told, look_s = Backoff(0.5, 60.0), 0.0, False, _LOOK_S
        while True:
            try:
                now = await with_retries(self._store.files.states)
                if before is None and not any(each.busy for each in now):
                    before = now
                    # What was waited for until now has cost the store nothing.
                    self._runs.begins()
                if before is not None and {each.run for each in now} != {each.run for each in before}:
                    return False
                step = "wait" if before is None else next_step(before, now)
                if before is None:
                    self.waits_for = FILES_BUSY
                elif step != "wait" and self._no_room():
                    self.waits_for = FILES_ROOM
                elif not told:
                    self.waits_for = FILES
                if step == "done":
                    return True
                if step != "wait" and not self._no_room() and time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + backoff.next_s()
                    await self._store.files.begin(step)
            except StoreUnavailable:
                pass
            except StoreError as exc:
                # One may have begun just now. Without the right to ask for one the next that comes will do.
                if "progress" not in str(exc) and not told:
                    told, self.waits_for = True, FILES_REFUSED
                    log.warning("store_files_not_rewritten", why=str(exc))
            await asyncio.sleep(look_s)
            look_s = min(1.1 * look_s, _SELDOM_S)

    async def _renew_streams(self) -> None:
        while True:
            try:
                pointer = await with_retries(self._store.generations.live)
                epochs = {pointer.epoch, pointer.pending} - {0}
                # What was replaced may name them in any of its keys, and goes as a whole.
                if await with_retries(self._store.generations.epochs) - epochs:
                    self.waits_for = REPLACED
                    await asyncio.sleep(_LOOK_S)
                    continue
                if await with_retries(self._store.files.renew_streams, epochs):
                    return
            except StoreError as exc:
                # Those who wait do not end before a person has mended it.
                log.warning("store_files_not_rewritten", why=str(exc))
                await asyncio.sleep(_MENDED_S)
            self.waits_for = STREAMS
            # The trainer is far behind: it trims whole nodes while it catches up.
            await asyncio.sleep(_LOOK_S)
