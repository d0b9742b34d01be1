"""The nginx file of the compose file, run by an nginx of this machine in front of a real service."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from featurestore.store import Store
from processes.blocking import BlockingChild
from processes.probes import http_ok, unused_port
from tests.support.factories import publish_for_ann
from tests.support.servers import missing
from tests.support.serving import Service, processes, send_raw

pytestmark = [pytest.mark.slow]
FILES = Path(__file__).resolve().parents[2] / "deploy" / "nginx"


@pytest.fixture(autouse=True)
def _open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDIN_ACCESS", "open")


@contextlib.contextmanager
def nginx(
    folder: Path, service_port: int, changes: Mapping[str, str] | None = None, *, proxies: str = ""
) -> Iterator[int]:
    """Run nginx by its script before that service, with `changes` of the file's text and `proxies` in front;
    its port. Skips where it is not installed.
    """
    path = f"{os.environ['PATH']}:/usr/sbin"
    if shutil.which("nginx", path=path) is None:
        missing("nginx")
    port = unused_port()
    for name in ("nginx.conf", "start.sh"):
        text = (FILES / name).read_text("utf-8").replace("/tmp/", f"{folder}/")
        text = text.replace("/etc/foldin", str(folder)).replace("listen 8080;", f"listen 127.0.0.1:{port};")
        for was, now in (changes or {}).items() if name == "nginx.conf" else ():
            assert was in text
            text = text.replace(was, now)
        (folder / name).write_text(text)
    told = {"FOLDIN_SERVICE": f"127.0.0.1:{service_port}", "FOLDIN_NGINX_PROXIES": proxies}
    command = ["/bin/sh", str(folder / "start.sh")]
    with BlockingChild(
        command, folder / "nginx.log", environment={**os.environ, **told, "PATH": path}
    ) as child:
        child.wait_ready(lambda: http_ok("127.0.0.1", port, "/livez"), 20.0)
        yield port


async def test_a_flood_of_one_address_does_not_reach_the_service(store: Store, tmp_path: Path) -> None:
    await publish_for_ann(store, {"item-0": 5.0})
    few = {"rate=2000r/s": "rate=1r/s", "burst=2000 nodelay": "burst=5 nodelay"}
    head = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\n"
    with processes(store.settings, tmp_path) as service, nginx(tmp_path, service.port, few) as port:
        service.wait_for()
        answers = [send_raw(port, head + b"Connection: close\r\n\r\n") for _ in range(12)]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
        assert 4 <= len(refused) <= 8
        for answer in refused:
            fields, _, body = answer.partition(b"\r\n\r\n")
            assert b"Retry-After: 1" in fields
            document = json.loads(body)
            assert document["code"] == "quota_exceeded"
        # A head is refused before it reaches the service.
        large = send_raw(
            port, head + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 6_000) for n in range(4)) + b"\r\n"
        )
        assert large.startswith(b"HTTP/1.1 400")
        assert b'"code":"malformed_request"' in large


async def test_clients_behind_a_proxy_that_is_believed_have_limits_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    """As behind an Ingress: its address is that of every request, its word says whose each is."""
    await publish_for_ann(store, {"item-0": 5.0})
    few = {"rate=2000r/s": "rate=1r/m", "burst=2000 nodelay": "burst=1 nodelay"}
    service = Service(store.settings, tmp_path)
    head = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"

    def asked(port: int, forwarded: str) -> list[bytes]:
        line = f"X-Forwarded-For: {forwarded}\r\n\r\n".encode()
        return [send_raw(port, head + line) for _ in range(3)]

    try:
        service.wait_for()
        with nginx(tmp_path, service.port, few, proxies="127.0.0.2, 127.0.0.1/32") as port:
            # Two at once, then the limit; a claim in front of what the proxy says changes nothing.
            for forwarded in ("192.0.2.1", "192.0.2.2", "10.0.0.1, 192.0.2.3"):
                answers = asked(port, forwarded)
                assert [answer.split()[1] for answer in answers] == [b"200", b"200", b"429"], forwarded
                assert b"quota_exceeded" in answers[-1]
            assert [answer.split()[1] for answer in asked(port, "10.9.9.9, 192.0.2.3")] == [b"429"] * 3
    finally:
        service.end()
