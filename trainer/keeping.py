"""Keep what the store has besides ratings in the archive. Invariant: the file is that of the archive's own
store: what was read while the store was emptied is not written.
"""

import math
import time
from collections.abc import Callable

from featurestore.store import Store
from trainer.archive.kept import kept_version
from trainer.archive.root import ArchiveRoot
from trainer.threads import Threads

# All is read anew after a change: a tenth of the time at most goes into that.
_REST = 9.0
# After a failure, so that it is told once a minute.
_AGAIN_S = 60.0


class KeptFile:
    """The file of one term. `clock`: seconds that never go back."""

    def __init__(
        self,
        store: Store,
        root: ArchiveRoot,
        threads: Threads,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._root = root
        self._threads = threads
        self._clock = clock
        self._due = -math.inf
        # Which version the file has; None before it was looked at.
        self._version: str | None = None

    async def follow(self) -> None:
        """Write the file anew where anything has changed since. Raises `StoreError`, `ArchiveFailedError`."""
        began = self._clock()
        if began < self._due:
            return
        self._due = began + _AGAIN_S
        await self._follow()
        ended = self._clock()
        self._due = ended + _REST * (ended - began)

    async def _follow(self) -> None:
        if self._version is None:
            self._version = await self._threads.run(kept_version, self._root.root)
        kept = self._store.kept
        if await kept.version() == self._version:
            return
        version, data = await kept.packed(users=False)
        changed = await kept.version() != version
        # After all of it: an emptied store would leave nothing in the file that brings it back.
        await self._store.require_same()
        await self._threads.run(self._root.keep, data)
        # What changed meanwhile may be in it or not, and may be changed back.
        self._version = "" if changed else version
