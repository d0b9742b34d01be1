"""Traces by OpenTelemetry, with the extra `telemetry`: the spans of one process.

Invariant: where no collector is named this is not imported, and no call takes a step more. A span has no
address of a call, no id of a user or an item, and no text of an error.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from featurestore.wire.connection import Execute

# A collector that is away holds up the end of a process for so long at most.
_EXPORT_S = 3.0
# A command, and the function where it is a call of one of ours; what follows other commands is a key.
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n(?:\$\d+\r\nfoldin_[0-9a-f]+_(\w+)\r\n)?")
_CARRIER = TraceContextTextMapPropagator()


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

    async def close(self) -> None:
        """Send what there is; at most for a few seconds."""
        await asyncio.to_thread(self._provider.shutdown)


def _end(span: Span, done: "asyncio.Future[list[Any]]") -> None:
    if done.cancelled() or done.exception() is not None:
        span.set_status(StatusCode.ERROR)
    span.end()
