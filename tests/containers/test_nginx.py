"""The nginx file of the compose file, run by an nginx of this machine in front of a real service."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild
from processes.probes import http_ok, unused_port
from tests.support.factories import publish_for_ann
from tests.support.servers import missing
from tests.support.serving import processes, send_raw

pytestmark = pytest.mark.parametrize("store_server", ["redis"], indirect=True)
FILES = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
# What start.sh finds out about the network of the containers.
UPSTREAM = 'map "" $replicas {{ default http://{0}; }}\nmap "" $replicas_by_name {{ default http://{0}; }}\n'


@contextlib.contextmanager
def nginx(folder: Path, service_port: int) -> Iterator[int]:
    """Run nginx before that service; its port. Skips where it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("nginx")
    port = unused_port()
    text = (FILES / "nginx.conf").read_text("utf-8")
    text = text.replace("/tmp/", f"{folder}/").replace("listen 8080;", f"listen 127.0.0.1:{port};")
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
