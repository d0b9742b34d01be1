"""Traces by OpenTelemetry, with the extra `telemetry`: the spans of one process, and what leads a trace from
the process that stored ratings to the one that archives them: a mark for each call that is traced, in a
stream of its own.

Invariant: where no collector is named this is not imported, and no call takes a step more. A span has no
address of a call, no id of a user or an item, and no text of an error. Entries of the ratings streams are as
they always were, so that every version reads them; a mark that is lost costs a span. Marks name a trace and
places in streams, no user.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from featurestore.client import Client
from featurestore.errors import StoreError
from featurestore.keys import Keys
from featurestore.ratings.stream import RatingsStream
from featurestore.wire.connection import Execute

log = logging.getLogger(__name__)

# A collector that is away holds up the end of a process for so long at most.
_EXPORT_S = 3.0
# A command, and the function where it is a call of one of ours; what follows other commands is a key.
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n(?:\$\d+\r\nfoldin_[0-9a-f]+_(\w+)\r\n)?")
_CARRIER = TraceContextTextMapPropagator()
# What a second of calls leaves where each is traced; a mark has some 100 bytes.
MOST_MARKS = 10_000
# Of which some 5 ms of the event loop are taken at once.
_READ_AT_ONCE = 1_000
# A person who looks at a trace has waited longer for it.
_LOOK_EVERY_S = 0.5
# Batches that are remembered: at most a few minutes, as a batch is read every tenth of a second.
_BATCHES = 2_000
# What was not archived until then is not followed further; the alerts tell of such a trainer.
_GIVEN_UP_AFTER_S = 300.0
_FIELD = b"m"


class Tracing:
    """Makes the spans of the process `name` and sends them to the collector at `url`, behind its back.

    The library reads OTEL_TRACES_SAMPLER and OTEL_RESOURCE_ATTRIBUTES by itself.
    """

    def __init__(self, url: str, name: str) -> None:
        about = Resource.create({"service.name": name, "service.version": version("foldin")})
        self._provider = TracerProvider(resource=about)
        exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", timeout=_EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("foldin", version("foldin"))

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Have a span for a request until the block ends; `headers` may say to which trace it belongs."""
        given = {"traceparent": headers.get("traceparent", ""), "tracestate": headers.get("tracestate", "")}
        with self._tracer.start_as_current_span(
            method,
            _CARRIER.extract(given),
            SpanKind.SERVER,
            {"http.request.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @staticmethod
    def fail(span: Span) -> None:
        """Say that what a span stands for has failed."""
        span.set_status(StatusCode.ERROR)

    def around(self, execute: Execute) -> Execute:
        """Return `execute` of a connection, with a span for what a traced request asks the store."""

        def traced(payload: bytes, replies: int, **how: Any) -> "asyncio.Future[list[Any]]":
            # What no request waits for, or one for several requests, belongs to no trace.
            if not get_current_span().is_recording():
                return execute(payload, replies, **how)
            found = _COMMAND.match(payload)
            words = [] if found is None else [word.decode() for word in found.groups() if word]
            span = self._tracer.start_span(
                " ".join(words) or "store",
                kind=SpanKind.CLIENT,
                attributes={
                    "db.system.name": "redis",
                    "foldin.replies": replies,
                    "foldin.payload_bytes": len(payload),
                },
            )
            future = execute(payload, replies, **how)
            future.add_done_callback(lambda done: _end(span, done))
            return future

        return traced

    def carried(self) -> str | None:
        """Return the trace of this task as `traceparent` has it; None where it is not recorded."""
        if not get_current_span().is_recording():
            return None
        carrier: dict[str, str] = {}
        _CARRIER.inject(carrier)
        return carrier["traceparent"]

    def consumed(self, carried: str, name: str, times_ns: tuple[int, int], **attributes: int) -> None:
        """Add a span, from and to `times_ns` since 1970, to a trace that another process carried here."""
        span = self._tracer.start_span(
            name,
            _CARRIER.extract({"traceparent": carried}),
            SpanKind.CONSUMER,
            {f"foldin.{key}": value for key, value in attributes.items()},
            start_time=times_ns[0],
        )
        span.end(times_ns[1])

    def traces(self, keys: Keys, client: Client, stream: RatingsStream) -> "Traces":
        """Return what leads traces of this process to the trainer, or of others to this one."""
        return Traces(keys, client, stream, self)

    async def close(self) -> None:
        """Send what there is; at most for a few seconds."""
        await asyncio.to_thread(self._provider.shutdown)


def _end(span: Span, done: "asyncio.Future[list[Any]]") -> None:
    if done.cancelled() or done.exception() is not None:
        span.set_status(StatusCode.ERROR)
    span.end()


class Mark(msgspec.Struct):
    """That the ratings of the trace `carried` stand in these streams of `epoch`, by partition at the latest
    where `ends` says (ms, number).
    """

    carried: str
    epoch: int
    ends: dict[int, tuple[int, int]]


class _Batch(NamedTuple):
    """A batch that was archived: where it ends, and from when to when it took, in ns since 1970."""

    epoch: int
    last: Mapping[int, tuple[int, int]]
    events: int
    times_ns: tuple[int, int]


class Traces:
    """Marks calls, where this process stores ratings, and follows marks, where it archives them."""

    def __init__(self, keys: Keys, client: Client, stream: RatingsStream, tracing: Tracing) -> None:
        self._key = keys.traces
        self._client = client
        self._stream = stream
        self._tracing = tracing
        self._batches: deque[_Batch] = deque(maxlen=_BATCHES)
        # By epoch and partition, where the last batch ended.
        self._reached: dict[tuple[int, int], tuple[int, int]] = {}
        # Marks, and by the clock of the loop until when each is followed.
        self._followed: deque[tuple[Mark, float]] = deque(maxlen=MOST_MARKS)

    async def mark(self, epoch: int, partitions: Iterable[int]) -> None:
        """Mark the call of this task, whose ratings were stored just now. Raises nothing."""
        carried = self._tracing.carried()
        if carried is None:
            return
        try:
            progress = await self._stream.progress(epoch)
            mark = Mark(carried, epoch, {p: progress[p].last for p in set(partitions)})
            packed = msgspec.msgpack.encode(mark)
            await self._client.xadd(self._key, {_FIELD: packed}, maxlen=MOST_MARKS, approximate=True)
        except (StoreError, KeyError) as exc:
            # The ratings are stored, be there a partition of which nothing is said.
            log.debug("a trace ends here reason=%s", exc)

    def archived(self, epoch: int, last: Mapping[int, tuple[int, int]], events: int, began_ns: int) -> None:
        """Note a batch that is archived and acknowledged now."""
        self._batches.append(_Batch(epoch, last, events, (began_ns, time.time_ns())))
        self._reached |= {(epoch, partition): end for partition, end in last.items()}

    async def follow(self) -> None:
        """Give each call that is marked from now on the spans of its batches; until cancelled."""
        place, loop = b"", asyncio.get_running_loop()
        while True:
            try:
                place = place or b"(%d" % (1000 * (await self._client.time())[0] - 1)
                entries: Any = await self._client.xrange(self._key, min=place, count=_READ_AT_ONCE)
            except StoreError as exc:
                log.debug("marks of traces wait reason=%s", exc)
                entries = []
            for entry, fields in entries:
                place = b"(" + entry
                try:
                    mark = msgspec.msgpack.decode(fields[_FIELD], type=Mark)
                except (KeyError, msgspec.MsgspecError):
                    # Of a later version, or damaged: no more than a span is lost.
                    continue
                self._followed.append((mark, loop.time() + _GIVEN_UP_AFTER_S))
            for _ in range(len(self._followed)):
                mark, until = self._followed.popleft()
                if not self._told(mark) and loop.time() < until:
                    self._followed.append((mark, until))
            await asyncio.sleep(_LOOK_EVERY_S)

    def _told(self, mark: Mark) -> bool:
        """Add the spans of the batches that have all of a call; say whether there are such."""
        reached, epoch = self._reached, mark.epoch
        if any(reached.get((epoch, partition), (0, 0)) < end for partition, end in mark.ends.items()):
            return False
        found: dict[int, _Batch] = {}
        for partition, end in mark.ends.items():
            first = None
            # From the newest: marks come within seconds of their ratings.
            for batch in reversed(self._batches):
                if batch.epoch == epoch and partition in batch.last:
                    if batch.last[partition] < end:
                        break
                    first = batch
            if first is not None:
                found[first.times_ns[0]] = first
        for batch in found.values():
            self._tracing.consumed(
                mark.carried, "archive ratings", batch.times_ns, epoch=batch.epoch, events=batch.events
            )
        return True
