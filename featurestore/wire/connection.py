"""One multiplexed connection to the store. Invariant: a reply reaches the call that asked for it, or the call
fails.

All that is asked for in one turn of the event loop leaves in one write, unless it is wanted at once. Replies
come in the order of the questions, so one timer watches the oldest call. When the store has been silent for
the timeout, or has not come to the oldest call within five, everything behind it is late too: the socket is
given up and all calls in flight fail with `StoreUnavailable`. Nothing is sent twice from here:
whether a write may be repeated is known where it is asked for. While the store is away calls fail at once;
the connection comes back by itself.
"""

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import hiredis
from redis.asyncio.connection import parse_url

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.settings import redacted
from featurestore.wire.resp import (
    ELSEWHERE,
    RepliesReader,
    ReplyError,
    UnusualReplies,
    encode,
    end_of_replies,
    error_code,
    store_error,
)

log = logging.getLogger(__name__)

# With at most half a second between attempts a store that is back is noticed well within two seconds.
BACKOFF_S = (0.02, 0.5)
# A store that answers, but slowly, has so many timeouts for one call: many large writes may be before it.
PATIENCE = 5
# The reader moves what is left of its buffer after every thousand bytes that it has read: with a quarter of a
# megabyte in it a reply costs three times as much.
FEED_BYTES = 16_384
# Taken from the socket at once, as much as the event loop takes by itself.
READ_BYTES = 262_144
# Calls that would not fit are refused at once: what waits here would only be answered late.
IN_FLIGHT_BYTES = 64 * 1024 * 1024

Execute = Callable[[bytes, int], "asyncio.Future[list[Any]]"]
Prepare = Callable[[Execute], Awaitable[None]]


class _Call(NamedTuple):
    """A call in flight. `asked_at`: by the clock of the loop; `wait_s`: how long the store may block."""

    future: "asyncio.Future[Any]"
    replies: int
    payload_bytes: int
    asked_at: float
    wait_s: float
    reader: RepliesReader | None
    decode: Callable[[list[Any]], Any] | None


def swallow(future: "asyncio.Future[Any]") -> None:
    """A callback for a future that nobody may wait for: its failure then does no harm."""
    if not future.cancelled():
        future.exception()


class _Wire(asyncio.BufferedProtocol):
    """One socket and the calls in flight on it."""

    def __init__(self, timeout_s: float, lost: Callable[["_Wire"], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=ReplyError)
        # Oldest first.
        self._waiting: deque[_Call] = deque()
        self._heard_at = self._loop.time()
        self._got: list[Any] = []
        # What is read into, where the call at the front does not read its replies itself.
        self._common = memoryview(bytearray(READ_BYTES))
        self._reading: RepliesReader | None = None
        self._out: list[bytes] = []
        self._bytes = 0
        self._watch: asyncio.TimerHandle | None = None
        self.why: StoreUnavailable | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def execute(
        self,
        payload: bytes,
        replies: int,
        wait_s: float = 0.0,
        *,
        at_once: bool = False,
        reader: RepliesReader | None = None,
        decode: Callable[[list[Any]], Any] | None = None,
    ) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.why is not None:
            future.set_exception(self.why)
            return future
        if replies == 0:
            future.set_result([] if decode is None else decode([]))
            return future
        size = len(payload)
        if self._bytes and self._bytes + size > IN_FLIGHT_BYTES:
            future.set_exception(StoreUnavailable("too much is waiting for the store already", 0.1))
            return future
        if not (self._out or at_once):
            self._loop.call_soon(self._flush)
        self._out.append(payload)
        self._bytes += size
        self._waiting.append(_Call(future, replies, size, self._loop.time(), wait_s, reader, decode))
        if self._watch is None:
            self._arm(self._timeout_s)
        if at_once:
            self._flush()
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and self.why is None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def get_buffer(self, sizehint: int) -> memoryview:
        self._reading = self._waiting[0].reader if self._waiting else None
        return self._common if self._reading is None else self._reading.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._loop.time()
        data = b""
        if self._reading is None:
            data = bytes(self._common[:nbytes])
        else:
            if not self._waiting or self._waiting[0].reader is not self._reading:
                return
            data = self._took(self._reading, nbytes)
        data = self._take_wholes(data)
        try:
            while data and self.why is None:
                stop = self._border(data)
                for start in range(0, stop, FEED_BYTES):
                    self._reader.feed(data, start, min(FEED_BYTES, stop - start))
                    if self._take_replies() and self._reader.gets() is not False:
                        raise hiredis.ProtocolError("a reply that nobody asked for")
                data = self._take_wholes(data[stop:])
        except hiredis.ProtocolError as exc:
            self.give_up(StoreUnavailable(f"the store does not speak RESP: {exc}"))

    def _border(self, data: bytes) -> int:
        """Up to where `data` is for calls that do not read their replies themselves: the usual reader gives
        nothing back of what it was fed.
        """
        replies = 0
        for call in self._waiting:
            if call.reader is not None:
                return end_of_replies(data, replies) if not self._reader.has_data() else len(data)
            replies += call.replies
        return len(data)

    def _take_wholes(self, data: bytes) -> bytes:
        """Give `data` to those calls at the front that read it themselves; what is left."""
        while data and self._waiting and (own := self._waiting[0].reader) is not None:
            room = own.room()
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = self._took(own, size) + data[size:]
        return data

    def _took(self, reader: RepliesReader, size: int) -> bytes:
        """`size` bytes have come to the `reader` of the call at the front: what is left of them for others,
        or for the usual reader.
        """
        try:
            rest = reader.took(size)
        except UnusualReplies as exc:
            self._waiting[0] = self._waiting[0]._replace(reader=None)
            return exc.data
        if rest is None:
            return b""
        self._hand_out([])
        return rest

    def _hand_out(self, replies: list[Any]) -> None:
        call = self._waiting.popleft()
        self._bytes -= call.payload_bytes
        if call.future.done():
            return
        try:
            call.future.set_result(replies if call.decode is None else call.decode(replies))
        except Exception as exc:  # noqa: BLE001 -- the caller gets it; the calls behind this one go on
            call.future.set_exception(exc)

    def _take_replies(self) -> bool:
        """Hand out what the reader has whole; whether nobody waits any more."""
        waiting, got, gets = self._waiting, self._got, self._reader.gets
        while waiting:
            replies = waiting[0].replies
            if waiting[0].reader is not None:
                if not self._reader.has_data():
                    return False
                # The reader gives nothing back, so it has to go on with what it has.
                waiting[0] = waiting[0]._replace(reader=None)
            while len(got) < replies:
                reply = gets()
                if reply is False:
                    return False
                got.append(reply)
            self._hand_out(got)
            got = self._got = []
        return True

    def _arm(self, delay_s: float) -> None:
        self._watch = self._loop.call_later(delay_s, self._check, self._loop.time() + delay_s)

    def _check(self, due: float) -> None:
        self._watch = None
        if not self._waiting:
            return
        now = self._loop.time()
        asked_at, wait_s = self._waiting[0].asked_at, self._waiting[0].wait_s
        silence = max(asked_at, self._heard_at) + self._timeout_s + wait_s - now
        left = min(silence, asked_at + PATIENCE * self._timeout_s + wait_s - now)
        if now - due > 0.25 * self._timeout_s:
            # This process was held up, not the store: the reply may be in the socket.
            self._arm(0.25 * self._timeout_s)
        elif left <= 0:
            self.give_up(StoreUnavailable(f"the store did not answer within {self._timeout_s:g} s"))
        else:
            self._arm(min(left, self._timeout_s))

    def give_up(self, why: StoreUnavailable) -> None:
        """Fail all that is in flight and close the socket; nothing that comes later is read."""
        if self.why is not None:
            return
        self.why = why
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.future.done():
                call.future.set_exception(StoreUnavailable(str(why), why.retry_after_s))
        if self._transport is not None:
            self._transport.abort()
        self._lost(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up(
            StoreUnavailable(f"the connection to the store was lost ({exc or 'closed by the store'})")
        )


class Connection:
    """A connection that lasts as long as its owner, over as many sockets as that takes. See the module.

    `reconnects_total` counts sockets after the first.
    """

    def __init__(self, url: str, timeout_s: float, name: str, prepare: Prepare | None = None) -> None:
        self._address: Mapping[str, Any] = parse_url(url)
        self._shown = redacted(url)
        self._timeout_s = timeout_s
        self._name = name
        self._prepare = prepare
        self._wire: _Wire | None = None
        self._away = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._why = f"not connected to the store at {self._shown}"
        self.reconnects_total = 0

    @property
    def connected(self) -> bool:
        """Whether calls are taken now."""
        return self._wire is not None

    def require(self) -> None:
        """Raise `StoreUnavailable` while the store is away."""
        if self._wire is None:
            raise StoreUnavailable(self._why, BACKOFF_S[1])

    async def open(self) -> None:
        """Connect for the first time.

        Raises `StoreUnavailable` or `StoreRefused`; from then on it reconnects itself.
        """
        await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name=f"store-{self._name}")

    async def close(self) -> None:
        """Drop the socket; calls in flight fail."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._wire is not None:
            wire, self._wire = self._wire, None
            wire.give_up(StoreUnavailable("this process has closed its connection to the store"))
            # The transport closes its socket in the next turn.
            await asyncio.sleep(0)

    def execute(
        self,
        payload: bytes,
        replies: int,
        *,
        wait_s: float = 0.0,
        at_once: bool = False,
        reader: RepliesReader | None = None,
        decode: Callable[[list[Any]], Any] | None = None,
    ) -> "asyncio.Future[Any]":
        """Send commands, encoded by `encode`; the future gets their `replies` in order, error replies as
        values.

        `wait_s`: how long the store itself may block on them (`BLOCK`, `WAITAOF`). `at_once`: nothing else is
        about to be asked that could go with them, so that nothing is won by waiting for it. `reader`: may
        take the replies instead, then the list is empty. `decode`: makes the result out of the replies,
        without another turn of the event loop. Fails with `StoreUnavailable`, at once when not connected;
        whether the commands were carried out is then unknown. Never raises by itself.
        """
        wire = self._wire
        if wire is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable(self._why, BACKOFF_S[1]))
            return future
        return wire.execute(payload, replies, wait_s, at_once=at_once, reader=reader, decode=decode)

    def execute_unwatched(self, payload: bytes, replies: int) -> None:
        """The same where nobody waits and failing does no harm."""
        self.execute(payload, replies).add_done_callback(swallow)

    def failure(self, reply: Exception) -> StoreError:
        """What an error reply means; leaves a server that has become a replica."""
        error = store_error(reply)
        if error_code(reply) in ELSEWHERE and self._wire is not None:
            self._wire.give_up(StoreUnavailable(str(error)))
        return error

    def _wire_lost(self, wire: _Wire) -> None:
        if wire is self._wire:
            self._wire = None
            self._why = str(wire.why)
            self._away.set()

    async def _keep(self) -> None:
        while True:
            await self._away.wait()
            log.warning("store connection lost", extra={"connection": self._name, "why": self._why})
            delay_s, longest_s = BACKOFF_S
            while True:
                try:
                    await self._connect()
                except StoreError as exc:
                    self._why = str(exc)
                    await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                    delay_s = min(2 * delay_s, longest_s)
                else:
                    self.reconnects_total += 1
                    log.info("store connection restored", extra={"connection": self._name})
                    break

    async def _connect(self) -> None:
        self._away.clear()
        wire: _Wire | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                wire = await self._dial()
                await self._greet(wire)
                if self._prepare is not None:
                    await self._prepare(wire.execute)
        except TimeoutError as exc:
            raise StoreUnavailable(f"the store at {self._shown} did not answer in time") from exc
        except OSError as exc:
            raise StoreUnavailable(f"cannot reach the store at {self._shown}: {exc}") from exc
        else:
            if wire.why is not None:
                raise wire.why
            self._wire, wire = wire, None
        finally:
            if wire is not None:
                wire.give_up(StoreUnavailable("the store did not get ready"))

    async def _dial(self) -> _Wire:
        loop = asyncio.get_running_loop()
        address = self._address
        if "path" in address:
            _, wire = await loop.create_unix_connection(self._new_wire, address["path"])
        else:
            _, wire = await loop.create_connection(
                self._new_wire,
                address.get("host", "127.0.0.1"),
                address.get("port", 6379),
                ssl=_ssl_context(address),
            )
        return wire

    def _new_wire(self) -> _Wire:
        return _Wire(self._timeout_s, self._wire_lost)

    async def _greet(self, wire: _Wire) -> None:
        address = self._address
        commands = []
        if address.get("password"):
            user = [address["username"].encode()] if address.get("username") else []
            commands.append(encode(b"AUTH", *user, address["password"].encode()))
        if address.get("db"):
            commands.append(encode(b"SELECT", b"%d" % address["db"]))
        commands.append(encode(b"PING"))
        count = len(commands)
        # Naming the connection and asking for the role may be forbidden to this user; both are a help, not a
        # need.
        commands += [encode(b"CLIENT", b"SETNAME", b"foldin-" + self._name.encode()), encode(b"ROLE")]
        replies = await wire.execute(b"".join(commands), len(commands))
        for reply in replies[:count]:
            if isinstance(reply, ReplyError):
                raise store_error(reply)
        role = replies[-1]
        if isinstance(role, list) and role and role[0] in {b"slave", b"replica"}:
            raise StoreUnavailable(f"the store at {self._shown} is a read-only replica")


def _ssl_context(address: Mapping[str, Any]) -> ssl.SSLContext | None:
    if not str(getattr(address.get("connection_class"), "__name__", "")).startswith("SSL"):
        return None
    context = ssl.create_default_context(cafile=address.get("ssl_ca_certs"))
    if address.get("ssl_certfile"):
        context.load_cert_chain(address["ssl_certfile"], address.get("ssl_keyfile"))
    if str(address.get("ssl_cert_reqs", "required")).lower() in {"none", "cert_none"}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
