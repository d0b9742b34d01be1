"""Waiting until a write is where `durability` wants it: on the store's disk, or on its replicas.

Invariant: `wait` returns only where the server that took the write says so of a moment after it, over a
connection that was there before the write. Another server, or the same one started again, may say it without
having the write.
"""

import asyncio
import re
from typing import Literal, NamedTuple

from featurestore.errors import StoreError, StoreRefused, StoreUnavailable
from featurestore.wire.connection import Connection
from featurestore.wire.functions import encode_call, is_missing
from featurestore.wire.primary import Primary
from featurestore.wire.resp import ReplyError, encode

Durability = Literal["store", "fsync", "replicated"]

# `appendfsync everysec` syncs once a second, and up to another second late when the disk is busy.
EVERYSEC_S = 2.0
# Nothing reads the key: it goes by itself when its process no longer writes it.
KEY_KEPT_S = 60
# A replica tells once a second how far it is. One that is silent for so long may be left out; it is the time
# after which a store with `min-replicas-to-write` does not count it any more, unless told otherwise.
SILENT_S = 10
_REPLICA = re.compile(rb"^slave\d+:\S*\bstate=online\b\S*\blag=(\d+)", re.MULTILINE)


class Since(NamedTuple):
    """Which connections there are: how often each was made anew; of a cluster `begun` has that by server."""

    writing: int
    asking: int
    begun: object = None


class Confirmation:
    """Group commit: one question at a time, each for all calls that came before it was sent.

    `main`: the connection that writes. `asking`: one of its own, because the store answers nothing else on a
    connection that waits. `key` is written by each question.
    """

    def __init__(
        self,
        durability: Durability,
        primary: Primary,
        main: Connection,
        asking: Connection,
        *,
        key: bytes,
        wait_s: float,
    ) -> None:
        self._durability = durability
        self._primary = primary
        self._main = main
        self._asking = asking
        self._mark = mark_of(key)
        self._wait_ms = b"%d" % int(1000 * wait_s)
        # Replicas that must have a write, 0 where that is to be found out anew; on which connection it was.
        self._replicas = 0
        self._counted = 0
        self._waiting: list[tuple[Since, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and ask once. Raises `StoreRefused` where the store keeps no append-only file."""
        if self._durability == "store":
            return
        await self._asking.open()
        try:
            await self.ask()
        except StoreUnavailable:
            # Replicas may join later; the disk has to be there.
            if self._durability == "fsync":
                raise
        except StoreError as exc:
            if self._durability == "fsync":
                raise StoreRefused(
                    f"durability=fsync needs a store with appendonly yes ({exc}); "
                    "switch it on, or use durability=store"
                ) from exc
            raise

    def begin(self, *keys: bytes) -> Since:
        """Say before a write that it is to be confirmed. Raises `StoreUnavailable` where it cannot be.

        `keys`: one of each slot that is written to; none where that may be any.
        """
        if self._durability != "store":
            self._main.require()
            self._asking.require()
        return self.now()

    async def wait(self, since: Since, *keys: bytes) -> None:
        """Return when everything written since then is where it is wanted. `keys`: more that were written to,
        for a `since` with keys.

        Raises `StoreUnavailable` when that is not known in time; the write may be repeated.
        """
        if self._durability == "store":
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((since, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="confirm writes")
        await future

    async def close(self) -> None:
        """Stop; calls that still wait get `StoreUnavailable`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        _tell(self._waiting, StoreUnavailable("this process is closing"))
        await self._asking.close()

    def now(self) -> Since:
        """Return which connections there are."""
        return Since(self._main.reconnects_total, self._asking.reconnects_total)

    async def _run(self) -> None:
        while self._waiting:
            # A call that comes from here on may have written after the question: it waits for the next one.
            batch, self._waiting = self._waiting, []
            try:
                await self.ask()
                self._main.require()
            except StoreError as exc:
                _tell(batch, exc)
            except asyncio.CancelledError:
                _tell(batch, StoreUnavailable("this process is closing"))
                raise
            else:
                now = self.now()
                _tell([each for each in batch if each[0] == now], None)
                _tell(batch, StoreUnavailable("the store went away before it confirmed the write"))

    async def ask(self) -> None:
        """Return when the store has what it was given before. Raises `StoreUnavailable`."""
        if self._durability == "replicated" and (
            not self._replicas or self._counted != self._asking.reconnects_total
        ):
            self._counted = self._asking.reconnects_total
            self._replicas = await self._needed()
        for last in (False, True):
            # A question covers what its own connection has written, hence the mark: it comes after every
            # write that was acknowledged to this process. By a function, which a store without memory takes,
            # too.
            if self._durability == "fsync":
                question = encode(b"WAITAOF", b"1", b"0", self._wait_ms)
            else:
                question = encode(b"WAIT", b"%d" % self._replicas, self._wait_ms)
            calls = [self._mark, question, encode(b"INFO", b"replication")]
            replies = await self._asking.execute(b"".join(calls), len(calls))
            if last or not is_missing(replies[0]):
                break
            await self._asking.load_library()
        for reply in replies[:2]:
            if isinstance(reply, ReplyError):
                raise self._asking.failure(reply)
        if self._durability == "fsync":
            if replies[1][0] < 1:
                raise StoreUnavailable("the store's disk did not confirm the write in time")
        elif replies[1] < self._replicas:
            self._replicas = 0
            raise StoreUnavailable("the store's replicas did not confirm the write in time")
        else:
            # One that has joined may be the next primary.
            self._replicas = max(self._replicas, online(replies[2]))

    async def _needed(self) -> int:
        """How many replicas must have a write: all that are there, so that whichever is promoted has it.

        Raises `StoreUnavailable` while sentinels may be replacing the primary. A replica that has left may
        have been promoted, and what this primary and the others take from then on is lost: only the
        sentinels' word, given after the replicas were counted, lets fewer do.
        """
        (reply,) = await self._asking.execute(encode(b"INFO", b"replication"), 1)
        if isinstance(reply, ReplyError):
            raise self._asking.failure(reply)
        if not await self._primary.is_sure():
            raise StoreUnavailable("the sentinels are not sure of the primary")
        return max(1, online(reply))


def mark_of(key: bytes) -> bytes:
    """Return the call that writes a key which goes by itself."""
    return encode_call("keep_for", [key], [b"1", b"%d" % KEY_KEPT_S])


def online(info: bytes) -> int:
    """How many replicas follow, by what `INFO replication` says."""
    return sum(int(lag) <= SILENT_S for lag in _REPLICA.findall(info))


def _tell(waiting: list[tuple[Since, asyncio.Future[None]]], exc: StoreError | None) -> None:
    for _, future in waiting:
        if future.done():
            continue
        if exc is None:
            future.set_result(None)
        else:
            # An error for each, because raising one writes into it.
            future.set_exception(StoreUnavailable(str(exc)) if isinstance(exc, StoreUnavailable) else exc)
