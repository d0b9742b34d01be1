"""What a stack tells: no secret in logs at DEBUG, metrics, traces, command lines or data, whatever is asked
and breaks; and one call is one trace over service, store and trainer.
"""

import contextlib
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from redis import Redis

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, python_command
from tests.support.certificates import certificate
from tests.support.secrets import make_secrets
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import QuietHandler, Service, answering
from tests.support.trainers import trainer_environment, trainer_settings
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.slow


NAMESPACE = "secrets-test"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER_TRACE = TRACE.replace("0", "1")
USER, ITEM = "user-with-a-name", "item-with-a-name"
WRONG_KEY, WRONG_PASSWORD = new_secret(), "wrong-password-7f3a9c"
BAD_REQUESTS = (
    ("GET", "/predict?user_id=ann", None),
    ("GET", "/predict?user_id=ann&item_id=i1&api_key={key}", None),
    ("POST", "/ratings", b"{"),
    ("POST", "/ratings", b'{"user_id": "ann", "item_id": "i1", "rating": 99}'),
    ("GET", "/nothing/{key}", None),
)


class Collector:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(QuietHandler):
            def do_POST(self) -> None:  # noqa: N802 - name of the base class
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

        self._ends = contextlib.ExitStack()
        self.url = self._ends.enter_context(answering(Handler))

    def spans(self, trace: str = TRACE) -> list[tuple[str, Span]]:
        return [
            (attributes(resource.resource)["service.name"], span)
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace
        ]

    def close(self) -> None:
        self._ends.close()


def attributes(of: object) -> dict[str, str]:
    return {
        each.key: str(getattr(each.value, each.value.WhichOneof("value")))
        for each in of.attributes  # type: ignore[attr-defined]
    }


def commands_of(pid: int) -> Iterator[bytes]:
    yield Path(f"/proc/{pid}/cmdline").read_bytes()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
        yield from commands_of(int(child))


class Stack:
    def __init__(self, server: StoreServer, folder: Path, acl: Path, password: Path) -> None:
        self.server, self.folder, self.collector = server, folder, Collector()
        url = server.url.replace("//", "//foldin@")
        settings = StoreSettings(url=url, namespace=NAMESPACE, partitions=4, timeout_s=10.0)
        self.certificate = certificate(folder, "known")
        private = self.certificate.with_suffix(".key")
        said = {"FOLDIN_REDIS_PASSWORD_FILE": str(password / "redis"), "FOLDIN_LOG_LEVEL": "DEBUG"}
        said |= {
            "FOLDIN_TRACES_URL": self.collector.url,
            "FOLDIN_LOG_FORMAT": "json",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        tls = {"FOLDIN_TLS_CERT": str(self.certificate), "FOLDIN_TLS_KEY": str(private)}
        trainer = trainer_settings(settings, folder / "archive")
        self.environment = {**os.environ, **trainer_environment(trainer), **said}
        self.said: list[bytes] = []
        self.key = self.made_key("operator", "operate")
        self.other = self.made_key("shop", "rate")
        self.service = Service(settings, folder, environment={**said, **tls}, workers=2)
        self.trainer = BlockingChild(
            python_command("trainer"), folder / "trainer.log", environment=self.environment
        )
        self.secrets = {
            "the store's password": (password / "redis").read_bytes().strip(),
            "the administrator's password": (acl / "admin").read_bytes().strip(),
            "the operator's key": self.key.encode(),
            "another key": self.other.encode(),
            "a key that is not known": WRONG_KEY.encode(),
            "a wrong password": WRONG_PASSWORD.encode(),
            "the TLS key": private.read_bytes().splitlines()[2],
        }

    def made_key(self, name: str, role: str) -> str:
        file = self.folder / f"{name}.key"
        self.command("keys", "add", name, "--role", role, "--file", str(file))
        return file.read_text().strip()

    def command(self, *arguments: str, **changes: str) -> None:
        command, environment = python_command("foldin", *arguments), {**self.environment, **changes}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
        self.said += [done.stdout, done.stderr]

    def end(self) -> None:
        for process in (self.service.process, self.trainer):
            process.end(signal.SIGTERM, 30.0)


async def ask_all(stack: Stack) -> None:
    url = f"https://127.0.0.1:{stack.service.port}"
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=stack.certificate))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(method: str, path: str, key: str, body: bytes | None = None, trace: str = "") -> int:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            if trace:
                headers |= {"traceparent": f"00-{trace}-{PARENT}-01", "X-Request-ID": "r-1"}
            target = url + path.replace("{key}", stack.other)
            async with session.request(method, target, data=body, headers=headers) as answer:
                stack.said.append(await answer.read())
                return answer.status

        async def until_ready(what: str) -> None:
            await wait_until_async(
                lambda: ask("GET", "/readyz", stack.key),
                what,
                lambda status: status == 200 and b"degraded" not in stack.said[-1],
                unless=(aiohttp.ClientConnectionError,),
            )

        await until_ready("the service has a generation")
        row = b'{"user_id": "ann", "item_id": "i1", "rating": 4}'
        assert await ask("POST", "/ratings", stack.other, row) == 200
        named = json.dumps({"user_id": USER, "item_id": ITEM, "rating": 4}).encode()
        assert await ask("POST", "/ratings", stack.other, named, TRACE) == 200
        spans = stack.collector.spans
        both = {"foldin-service", "foldin-trainer"}
        await wait_until_async(lambda: {name for name, _ in spans()} == both, "both have sent their spans")
        # A batch of predictions is of many calls; a call that is refused, and one with no route.
        pair = f"/predict?user_id={USER}&item_id={ITEM}"
        for path, status in ((pair, 200), ("/predict", 400), (f"/no/{USER}", 404)):
            assert await ask("GET", path, stack.key, None, OTHER_TRACE) == status
        assert await ask("POST", "/train", stack.key) == 200
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", stack.other) == 200
        assert await ask("POST", "/train", stack.other) == 403
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", WRONG_KEY) == 401
        for method, path, body in BAD_REQUESTS:
            assert await ask(method, path, stack.key, body) in {200, 400, 404, 422}
        password = stack.secrets["the administrator's password"].decode()
        admin = Redis(port=stack.server.port, username="admin", password=password)
        # What cannot be read, and connections that are cut.
        for partition in range(4):
            admin.set(f"{NAMESPACE}.1:{{{partition}}}:user:bob", "a text")
        assert await ask("GET", "/users/bob", stack.key) == 503
        admin.client_kill_filter(_type="normal", skipme=True)
        await ask("GET", "/predict?user_id=ann&item_id=i1", stack.key)
        admin.close()
        for path in ("/metrics", "/openapi.json", "/generations"):
            assert await ask("GET", path, stack.key) in {200, 503}
        stack.server.kill()
        assert await ask("GET", "/predict?user_id=ann&item_id=i1", stack.key) == 200
        assert b"degraded" in stack.said[-1]
        assert await ask("POST", "/ratings", stack.key, row) == 503
        stack.server.start()
        await until_ready("the store is back")


@pytest.mark.timeout(240)
async def test_no_secret_is_logged_shown_or_stored_and_a_call_is_one_trace(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "store").mkdir(parents=True)
    acl, password = make_secrets(tmp_path, NAMESPACE)
    with running_server(KIND, data / "store", "--aclfile", str(acl / "users.acl")) as server:
        stack = Stack(server, data, acl, password)
        try:
            await ask_all(stack)
            shown = b"\0".join([*commands_of(stack.service.process.pid), *commands_of(stack.trainer.pid)])
        finally:
            stack.end()
            stack.collector.close()
        # A wrong password, in the address of all places.
        wrong = server.url.replace("//", f"//foldin:{WRONG_PASSWORD}@")
        stack.command("keys", "list", FOLDIN_REDIS_URL=wrong)
        stack.command("verify", FOLDIN_REDIS_URL=wrong)
        stack.command("keys", "list")
        assert any(b"operator" in text for text in stack.said)
    places = {"a command line": shown, "what was answered or printed": b"\0".join(stack.said)}
    places["a trace"] = b"\0".join(stack.collector.bodies)
    own = {data / "operator.key", data / "shop.key", stack.certificate.with_suffix(".key")}
    for path in data.rglob("*"):
        if path.is_file() and path not in own:
            places[str(path.relative_to(data))] = path.read_bytes()
    assert b"DEBUG" in places[stack.service.log.name]
    found = [
        f"{secret} is in {place}"
        for secret, text in stack.secrets.items()
        for place, content in places.items()
        if text in content
    ]
    assert found == []
    # What is looked for can be found: the digest of a key, and the name of its owner, are where they belong.
    assert any(b"operator" in content for place, content in places.items() if place.startswith("store/"))
    # Lines of the log are objects; on its standard output the service says where it listens.
    for text in (stack.service.log.read_text(), stack.trainer.text):
        lines = [line for line in text.splitlines() if not line.startswith("service listens on ")]
        assert all(json.loads(line)["level"] for line in lines)
    check_spans(stack.collector)


def check_spans(collector: Collector) -> None:
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
    others = [span for _, span in collector.spans(OTHER_TRACE) if span.kind == Span.SPAN_KIND_SERVER]
    assert {(span.name, attributes(span)["http.response.status_code"]) for span in others} == {
        ("GET /predict", "200"),
        ("GET /predict", "400"),
        ("GET unmatched", "404"),
    }
    assert all(span.status.code == Status.STATUS_CODE_UNSET for span in others)
    # No user, no item, and no address, which has both.
    assert not [body for body in collector.bodies if USER.encode() in body or ITEM.encode() in body]
