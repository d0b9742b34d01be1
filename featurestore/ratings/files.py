"""The files that the store itself writes: what was removed from its memory is in them until they are written
anew. Invariant: nothing that is stored is changed here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featurestore.client import Client
from featurestore.errors import StoreError
from featurestore.keys import Keys

# Entries of a stream that are copied in one step: a few milliseconds of the store.
_MOST_ENTRIES = 1_000


@dataclass(frozen=True, slots=True)
class FileState:
    """What the store says of its files. `run` tells one start of it from the next, from which `rewrites` of
    the append-only file and `saves` of a dump are counted as they begin. `busy`: with one of them;
    `rewritten`, `saved`: whether the last one went well. `appends`, `dumps`: which files it has.
    """

    run: str
    rewrites: int
    saves: int
    busy: bool
    rewritten: bool
    saved: bool
    appends: bool
    dumps: bool


Step = Literal["done", "wait", "rewrite", "save"]
# Asked of all servers at once.
_ORDER: tuple[Step, ...] = ("rewrite", "save")


def next_step(before: Sequence[FileState], now: Sequence[FileState]) -> Step:
    """Return what is left to do until each file was begun after `before`, of the same runs, when no server
    was busy. One state a server.
    """
    if any(each.busy for each in now):
        return "wait"
    earlier = {each.run: each for each in before}
    steps = {_next_step(earlier[each.run], each) for each in now}
    return next((step for step in _ORDER if step in steps), "done")


def _next_step(before: FileState, now: FileState) -> Step:
    if now.appends and not (now.rewritten and now.rewrites > before.rewrites):
        return "rewrite"
    if now.dumps and not (now.saved and now.saves > before.saves):
        return "save"
    return "done"


class StoreFiles:
    """What is asked of the store about its files. Every method may raise `StoreUnavailable`."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def states(self) -> list[FileState]:
        """Return what each server of the store says of its files. Raises `StoreError` where one does not."""
        return [
            _state(*each) for each in await self._client.each(["INFO", "server"], ["INFO", "persistence"])
        ]

    async def begin(self, step: Literal["rewrite", "save"]) -> None:
        """Have each server write a file anew, beside its work. Raises `StoreRefused` where it may not be
        asked, `StoreError` where it is writing one.
        """
        await self._client.execute_command("BGREWRITEAOF" if step == "rewrite" else "BGSAVE")

    async def renew_streams(self, epochs: Iterable[int]) -> bool:
        """Have nothing in the streams that was removed from them; return whether that is so.

        Redis marks what is removed, and keeps it until all of its node is: until then a rewrite has it, too.
        """
        partitions = range(self._keys.partitions)
        streams = [self._keys.ratings(epoch, p) for epoch in epochs for p in partitions]
        calls = [([stream], [b"%d" % _MOST_ENTRIES]) for stream in (*streams, self._keys.commands)]
        return [b"LATER"] not in await self._client.call("renew_stream", *calls)


def _state(server: Mapping[str, Any], found: Mapping[str, Any]) -> FileState:
    if "aof_rewrites" not in found:
        raise StoreError("the store does not tell of rewrites of its files")
    appends = bool(found["aof_enabled"])
    busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
    return FileState(
        run=str(server["run_id"]),
        rewrites=int(found["aof_rewrites"]),
        saves=int(found["rdb_saves"]),
        busy=any(found[name] for name in busy),
        rewritten=found["aof_last_bgrewrite_status"] == "ok",
        saved=found["rdb_last_bgsave_status"] == "ok",
        appends=appends,
        # A store that appends reads a dump at no start, and may have one all the same.
        dumps=found["rdb_saves"] > 0 or (not appends and found["rdb_last_load_keys_loaded"] > 0),
    )
