"""One socket to the store and the calls in flight on it. Invariant: a reply reaches the call that asked for
it, or the call fails.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import hiredis

from featurestore.errors import StoreUnavailable
from featurestore.wire.resp import RepliesReader, ReplyError, UnusualReplies, end_of_replies

# A store that answers, but slowly, has so many timeouts for one call: many large writes may be before it.
PATIENCE = 5
# The reader moves what is left of its buffer after every thousand bytes that it has read: with a quarter of a
# megabyte in it a reply costs three times as much.
FEED_BYTES = 16_384
# Taken from the socket at once, as much as the event loop takes by itself.
READ_BYTES = 262_144
# Calls that would not fit are refused at once: what waits here would only be answered late.
IN_FLIGHT_BYTES = 64 * 1024 * 1024


class _Call(NamedTuple):
    """A call in flight. `asked_at`: by the clock of the loop."""

    future: "asyncio.Future[list[Any]]"
    replies: int
    payload: bytes
    asked_at: float
    reader: RepliesReader | None


# Whether replies are not those that were asked for: what is told then is up to who says so. Given the future,
# the commands and the replies.
Astray = Callable[["asyncio.Future[list[Any]]", bytes, list[Any]], bool]


class StoreSocket(asyncio.BufferedProtocol):
    """One socket and the calls in flight on it. `lost` is called once, when it is given up; `astray` looks at
    all replies, where there is any.
    """

    def __init__(
        self, timeout_s: float, lost: Callable[["StoreSocket"], None], astray: Astray | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._lost = lost
        self._astray = astray
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=ReplyError)
        # Oldest first: the store answers in the order of the questions.
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
        *,
        at_once: bool = False,
        reader: RepliesReader | None = None,
    ) -> "asyncio.Future[list[Any]]":
        """Send commands, encoded by `encode`; the future gets their `replies` in order, error replies as
        values.

        `at_once`: nothing else is about to be asked that could go with them, so that nothing is won by
        waiting for it. `reader`: may take the replies instead, then the list is empty. Fails with
        `StoreUnavailable`, at once when not connected; whether the commands were carried out is then unknown.
        Never raises by itself.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.why is not None:
            # An error for each, because raising one writes into it.
            future.set_exception(StoreUnavailable(str(self.why), self.why.retry_after_s))
            return future
        if replies == 0:
            future.set_result([])
            return future
        size = len(payload)
        if self._bytes and self._bytes + size > IN_FLIGHT_BYTES:
            future.set_exception(StoreUnavailable("too much is waiting for the store already", 0.1))
            return future
        # All that is asked for in one turn of the event loop leaves in one write:
        # 64 lookups are one system call, not 64.
        if not (self._out or at_once):
            self._loop.call_soon(self._flush)
        self._out.append(payload)
        self._bytes += size
        self._waiting.append(_Call(future, replies, payload, self._loop.time(), reader))
        # One timer for all: it watches the oldest call, and when that is late all behind it are late too.
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
        return self._common if self._reading is None else self._reading.room

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._loop.time()
        waiting, reader, data = self._waiting, self._reading, b""
        if reader is None:
            data = bytes(self._common[:nbytes])
        elif not waiting or waiting[0].reader is not reader:
            return
        try:
            while (data or reader is not None) and self.why is None:
                if reader is None:
                    reader = waiting[0].reader if waiting else None
                    if reader is None:
                        data = self._read(data)
                        continue
                    # These bytes came together with the replies to a call before it.
                    nbytes = min(len(reader.room), len(data))
                    reader.room[:nbytes], data = data[:nbytes], data[nbytes:]
                try:
                    rest = reader.took(nbytes)
                except UnusualReplies as exc:
                    waiting[0] = waiting[0]._replace(reader=None)
                    rest = exc.data
                else:
                    if rest is not None:
                        self._hand_out([])
                reader, data = None, (rest or b"") + data
        except hiredis.ProtocolError as exc:
            self.give_up(StoreUnavailable(f"the store does not speak RESP: {exc}"))

    def _read(self, data: bytes) -> bytes:
        """Read the replies of calls at the front that do not read theirs; what is left of `data`."""
        waiting, reader, got = self._waiting, self._reader, self._got
        stop, replies = len(data), 0
        for call in waiting:
            if call.reader is not None:
                # The usual reader gives nothing back of what it was fed.
                stop = len(data) if reader.has_data() else end_of_replies(data, replies)
                break
            replies += call.replies
        for start in range(0, stop, FEED_BYTES):
            reader.feed(data, start, min(FEED_BYTES, stop - start))
            while waiting:
                if waiting[0].reader is not None:
                    if not reader.has_data():
                        break
                    # The reader gives nothing back, so it has to go on with what it has.
                    waiting[0] = waiting[0]._replace(reader=None)
                replies = waiting[0].replies
                while len(got) < replies and (reply := reader.gets()) is not False:
                    got.append(reply)
                if len(got) < replies:
                    break
                self._hand_out(got)
                got = self._got = []
            if not waiting and reader.gets() is not False:
                raise hiredis.ProtocolError("a reply to no question")
        return data[stop:]

    def _hand_out(self, replies: list[Any]) -> None:
        call = self._waiting.popleft()
        self._bytes -= len(call.payload)
        if call.future.done() or (
            self._astray is not None and self._astray(call.future, call.payload, replies)
        ):
            return
        call.future.set_result(replies)

    def _arm(self, delay_s: float) -> None:
        self._watch = self._loop.call_later(delay_s, self._check, self._loop.time() + delay_s)

    def _check(self, due: float) -> None:
        self._watch = None
        if not self._waiting:
            return
        now = self._loop.time()
        asked_at = self._waiting[0].asked_at
        # Given up when the store has been silent for the timeout, or has not come to the oldest call in five.
        silence = max(asked_at, self._heard_at) + self._timeout_s - now
        left = min(silence, asked_at + PATIENCE * self._timeout_s - now)
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
