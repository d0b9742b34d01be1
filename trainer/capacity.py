"""Watch the room on the disks of archive and store and in the store's memory; when ratings are refused for
lack of it is a function of sizes. Invariant: ratings are refused before a disk is full, and taken again by
themselves, also when this trainer is gone; but only when there is clearly more room than when that began.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import FullReason, StoreUnavailable
from trainer import log
from trainer.stage import Stage, Tools

# A second of ratings is megabytes, far less than what is kept free; one look costs the store 0.1 ms.
_ROUND_S = 1.0
# Of a disk: what others write to it in a second or two is little beside 5 %, and on a large one beside 1 GB.
# The file of the store is not rewritten before it has 64 MB: with as much room the first rewrite ends.
FREE_SHARE, MOST_FREE_BYTES, LEAST_FREE_BYTES = 0.05, 2**30, 64 * 2**20
# Of the memory of the store: what is left lets it serve its clients, take deltas, and forget. At its limit it
# refuses all that grows by itself.
MEMORY_FREE_SHARE = 0.05
# So much more than that is clearly more: else it would change from second to second.
CLEARLY_MORE = 1.1


@dataclass(frozen=True, slots=True)
class Space:
    """A place that may fill up. `needed_bytes` of `total_bytes` must be free for ratings to be taken."""

    reason: FullReason
    free_bytes: int
    total_bytes: int
    needed_bytes: int


def disk(reason: FullReason, free_bytes: int, total_bytes: int, rewritten_bytes: int = 0) -> Space:
    """Return the space of a disk. `rewritten_bytes`: what is written anew before the old is removed."""
    kept = min(MOST_FREE_BYTES, max(LEAST_FREE_BYTES, int(FREE_SHARE * total_bytes)))
    return Space(reason, free_bytes, total_bytes, kept + rewritten_bytes)


def memory(used_bytes: int, limit_bytes: int) -> Space | None:
    """Return the space in the memory of the store; None where it has no limit."""
    if limit_bytes <= 0:
        return None
    free_bytes = max(0, limit_bytes - used_bytes)
    return Space("store_memory", free_bytes, limit_bytes, int(MEMORY_FREE_SHARE * limit_bytes))


def fullest(spaces: Iterable[Space], refusing: FullReason | None) -> Space | None:
    """Return the space for whose sake ratings are refused, None where there is room in all.

    `refusing`: for whose sake they are refused so far.
    """
    lacking = [
        space
        for space in spaces
        if space.free_bytes < space.needed_bytes * (CLEARLY_MORE if space.reason == refusing else 1.0)
    ]
    # The one that needs the most of what it has, so that a person begins there.
    return min(lacking, key=lambda space: space.free_bytes / space.needed_bytes, default=None)


class RoomWatch(Stage):
    """Looks once a second, for one term."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._disks: dict[FullReason, Path] = {"archive_disk": tools.root.root}
        # None where the store's disk is not this host's.
        if (store_folder := tools.settings.store_dir) is not None:
            self._disks["store_disk"] = store_folder
        self._unreadable: set[FullReason] = set()
        self.refusing: FullReason | None = None
        # What was seen last: the room by place, by how many seconds this host's clock is ahead, and which
        # server answers.
        self.spaces: list[Space] = []
        self.clock_ahead_s = 0.0
        self.store_run: str | None = None

    async def run(self) -> None:
        """Look until cancelled. Raises `LeaseLost`."""
        while True:
            # A store that is away takes no ratings, and others say so.
            with contextlib.suppress(StoreUnavailable):
                await self.look()
            await asyncio.sleep(_ROUND_S)

    async def look(self) -> None:
        """Look once, and say what was found. Raises `LeaseLost`, `StoreUnavailable`."""
        load = await self._store.room.load()
        self.clock_ahead_s, self.store_run = time.time() - load.time, load.run
        spaces = await self._threads.run(self._disk_spaces, load.used_bytes)
        if (in_memory := memory(load.used_bytes, load.limit_bytes)) is not None:
            spaces.append(in_memory)
        self.spaces = spaces
        found = fullest(spaces, self.refusing)
        reason = None if found is None else found.reason
        if found is not None and reason != self.refusing:
            log.warning(
                "ratings_refused",
                reason=reason,
                free_mb=found.free_bytes >> 20,
                needed_mb=found.needed_bytes >> 20,
            )
        elif reason != self.refusing:
            log.event("ratings_taken_again", reason=self.refusing)
        # Said each second: it holds for a few seconds only, so that it ends with this trainer.
        await self._store.room.say(self._lease, reason, load.time)
        self.refusing = reason

    def _disk_spaces(self, dataset_bytes: int) -> list[Space]:
        spaces = []
        for reason, folder in self._disks.items():
            try:
                found = os.statvfs(folder)
            except OSError as exc:
                if reason not in self._unreadable:
                    log.warning("room_unknown", reason=reason, folder=str(folder), error=exc.strerror)
                self._unreadable.add(reason)
                continue
            free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
            # A rewrite of its file takes the store as many bytes as its data has in memory, or fewer.
            spaces.append(disk(reason, free, total, dataset_bytes if reason == "store_disk" else 0))
        return spaces
