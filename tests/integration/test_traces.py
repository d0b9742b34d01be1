"""Traces: one call is one trace over service, store and trainer, in a collector of this test.

Nothing of it is there where no collector is named.
"""

import asyncio
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, python_command
from tests.support.servers import StoreServer
from tests.support.serving import Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
USER, ITEM = "user-with-a-name", "item-with-a-name"


class Collector:
    """What understands OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self, trace: str = TRACE) -> list[tuple[str, Span]]:
        """The spans of a trace, each with the process that it is of."""
        return [
            (attributes(resource.resource)["service.name"], span)
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(of: object) -> dict[str, str]:
    """The attributes of a span or a resource, as text."""
    return {
        each.key: str(getattr(each.value, each.value.WhichOneof("value")))
        for each in of.attributes  # type: ignore[attr-defined]
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def call(url: str, body: object = None, trace: str = TRACE) -> int:
    """The status of a GET, or of a POST of `body`, as a part of a trace."""
    data = None if body is None else json.dumps(body).encode()
    headers = {
        "Content-Type": "application/json",
        "traceparent": f"00-{trace}-{PARENT}-01",
        "X-Request-ID": "r-1",
    }
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
async def test_a_rating_is_one_trace_over_service_store_and_trainer(
    store_server: StoreServer, store_settings: StoreSettings, collector: Collector, tmp_path: Path
) -> None:
    told = {"FOLDIN_TRACES_URL": collector.url, "FOLDIN_LOG_FORMAT": "json", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    service = Service(store_settings, tmp_path, environment=told)
    trainer = BlockingChild(
        python_command("trainer"),
        tmp_path / "trainer.log",
        environment={
            **os.environ,
            **told,
            "FOLDIN_REDIS_URL": store_settings.url,
            "FOLDIN_NAMESPACE": store_settings.namespace,
            "FOLDIN_PARTITIONS": str(store_settings.partitions),
            "FOLDIN_ARCHIVE_DIR": str(tmp_path / "archive"),
        },
    )
    with trainer:
        try:
            await asyncio.to_thread(service.wait_for)
            rated = {"user_id": USER, "item_id": ITEM, "rating": 4}
            assert await asyncio.to_thread(call, f"{service.url}/ratings", rated) == 200
            await asyncio.to_thread(
                wait_until,
                lambda: {name for name, _ in collector.spans()} == {"foldin-service", "foldin-trainer"},
                "service and trainer have sent their spans",
            )
            # A batch of predictions is of many calls; a call that is refused, and one with no route.
            other = TRACE.replace("0", "1")
            assert (
                await asyncio.to_thread(
                    call, f"{service.url}/predict?user_id={USER}&item_id={ITEM}", None, other
                )
                == 200
            )
            assert await asyncio.to_thread(call, f"{service.url}/predict?user_id={USER}", None, other) == 400
            assert await asyncio.to_thread(call, f"{service.url}/no/{USER}", None, other) == 404
        finally:
            code = service.end()
    assert code == 0, service.log.read_text()
    # Lines of the log are objects; on its standard output the service says where it listens.
    for text in (service.log.read_text(), trainer.text):
        found = [line for line in text.splitlines() if not line.startswith("service listens on ")]
        assert all(json.loads(line)["level"] for line in found)
    spans = collector.spans()
    (request,) = [span for _, span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert request.name == "POST /ratings"
    assert request.parent_span_id.hex() == PARENT
    told_of = attributes(request)
    assert (told_of["http.route"], told_of["http.response.status_code"]) == ("/ratings", "200")
    assert told_of["foldin.request_id"] == "r-1"
    asked = [(name, span) for name, span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert {name for name, _ in asked} == {"foldin-service"}
    assert {span.parent_span_id for _, span in asked} == {request.span_id}
    assert "FCALL rate" in {span.name for _, span in asked}
    ((name, archived),) = [(name, span) for name, span in spans if span.kind == Span.SPAN_KIND_CONSUMER]
    assert (name, archived.name) == ("foldin-trainer", "archive ratings")
    assert archived.parent_span_id == request.span_id
    assert attributes(archived) == {"foldin.epoch": "1", "foldin.events": "1"}
    assert request.start_time_unix_nano < archived.end_time_unix_nano
    others = [span for _, span in collector.spans(other) if span.kind == Span.SPAN_KIND_SERVER]
    assert {(span.name, attributes(span)["http.response.status_code"]) for span in others} == {
        ("GET /predict", "200"),
        ("GET /predict", "400"),
        ("GET unmatched", "404"),
    }
    assert all(span.status.code == Status.STATUS_CODE_UNSET for span in others)
    # No user, no item, and no address, which has both.
    assert not [body for body in collector.bodies if USER.encode() in body or ITEM.encode() in body]
