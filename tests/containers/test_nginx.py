"""The nginx file of the compose file, run by an nginx of this machine in front of a real service."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild
from processes.probes import http_ok, unused_port
from tests.support.factories import publish_for_ann
from tests.support.servers import missing
from tests.support.serving import Service, processes, send_raw

pytestmark = pytest.mark.parametrize("store_server", ["redis"], indirect=True)
FILES = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
# What start.sh finds out about the network of the containers.
UPSTREAM = 'map "" $replicas {{ default http://{0}; }}\nmap "" $replicas_by_name {{ default http://{0}; }}\n'


@contextlib.contextmanager
def nginx(folder: Path, service_port: int, changes: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run nginx before that service, with `changes` of the file's text; its port. Skips where it is not
    installed.
    """
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("nginx")
    port = unused_port()
    text = (FILES / "nginx.conf").read_text("utf-8")
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080;", f"listen 127.0.0.1:{port};")
    for was, now in (changes or {}).items():
        assert was in text
        text = text.replace(was, now)
    (folder / "upstream.conf").write_text(UPSTREAM.format(f"127.0.0.1:{service_port}"))
    (folder / "tls.conf").write_text("")
    (folder / "nginx.conf").write_text(text)
    command = [str(program), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with BlockingChild(command, folder / "nginx.log") as child:
        child.wait_ready(lambda: http_ok("127.0.0.1", port, "/livez"), 20.0)
        yield port


async def test_a_request_that_names_no_host_is_answered(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    await publish_for_ann(store, {"item-0": 5.0})
    with processes(store_settings, tmp_path) as service, nginx(tmp_path, service.port) as port:
        service.wait_for()
        path = b"/predict?user_id=ann&item_id=item-1"
        for head in (b"GET %b HTTP/1.0\r\n\r\n", b"GET %b HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            assert send_raw(port, head % path).startswith(b"HTTP/1.1 200 OK")


async def test_a_flood_of_one_address_does_not_reach_the_service(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    await publish_for_ann(store, {"item-0": 5.0})
    few = {"rate=2000r/s": "rate=1r/s", "burst=2000 nodelay": "burst=5 nodelay"}
    head = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\n"
    with processes(store_settings, tmp_path) as service, nginx(tmp_path, service.port, few) as port:
        service.wait_for()
        answers = [send_raw(port, head + b"Connection: close\r\n\r\n") for _ in range(12)]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
        assert 4 <= len(refused) <= 8
        for answer in refused:
            fields, _, body = answer.partition(b"\r\n\r\n")
            assert b"Retry-After: 1" in fields
            document = json.loads(body)
            assert (document["code"], document["caller"]) == ("quota_exceeded", "address 127.0.0.1")


async def test_quotas_are_those_of_the_clients_behind_it(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    await publish_for_ann(store, {"item-0": 5.0})
    environment = {"FOLDIN_QUOTAS": "off,requests=3/h,connections=1", "FOLDIN_PROXIES": "127.0.0.1"}
    service = Service(store_settings, tmp_path, environment=environment)
    head = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    try:
        service.wait_for()
        with nginx(tmp_path, service.port) as port:
            # What a client claims makes no other client of it.
            claims = [b"X-Forwarded-For: 192.0.2.%d\r\n\r\n" % each for each in range(6)]
            answers = [send_raw(port, head + claim) for claim in claims]
            assert [answer.split()[1] for answer in answers] == [b"200"] * 3 + [b"429"] * 3
            assert b'"caller":"address 127.0.0.1"' in answers[-1]
            with socket.create_connection(("127.0.0.1", port), 5.0, ("127.0.0.3", 0)) as elsewhere:
                elsewhere.sendall(head + b"\r\n")
                assert elsewhere.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        service.end()
