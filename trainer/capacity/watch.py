"""Watch the room on the disks of archive and store and in the store's memory. Invariant: ratings are refused
before a disk is full, and taken again by themselves, also when this trainer is gone.
"""

import asyncio
import contextlib
import os
import time
from pathlib import Path

from featurestore.errors import FullReason, StoreUnavailable
from featurestore.leases import Lease
from featurestore.store import Store
from trainer import log
from trainer.capacity.watermarks import Space, disk, fullest, memory
from trainer.threads import Threads

# A second of ratings is megabytes, far less than what is kept free; one look costs the store 0.1 ms.
_ROUND_S = 1.0


class RoomWatch:
    """Looks once a second, for one term. `store_folder`: None where the store's disk is not this host's."""

    def __init__(
        self, store: Store, lease: Lease, archive_folder: Path, store_folder: Path | None, threads: Threads
    ) -> None:
        self._store = store
        self._lease = lease
        self._disks: dict[FullReason, Path] = {"archive_disk": archive_folder}
        if store_folder is not None:
            self._disks["store_disk"] = store_folder
        self._threads = threads
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
