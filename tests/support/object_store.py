"""A real S3 server for tests, and one that stands before it and gets in its way."""

import http.client
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from processes.blocking import BlockingChild
from processes.probes import unused_port
from tests.support.serving import QuietHandler, answering
from tests.support.waiting import wait_until
from trainer.archive.storage.address import ObjectAddress, ObjectCredentials
from trainer.archive.storage.client import ObjectClient

CREDENTIALS = ObjectCredentials(file=Path(__file__).with_name("object_store.keys"))
BUCKET = "archives"
_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>secret-of-tests key-of-tests</Message></Error>'


@dataclass(frozen=True)
class ObjectServer:
    endpoint: str

    def address(self) -> ObjectAddress:
        """A place in its bucket that nothing else uses."""
        return ObjectAddress(BUCKET, f"a-{uuid.uuid4().hex[:8]}", self.endpoint)


def everything(address: ObjectAddress) -> dict[str, bytes]:
    """All objects below an address, by their names."""
    client, found = ObjectClient(address, CREDENTIALS), dict[str, bytes]()
    for each in client.listed(""):
        # A trainer removes some meanwhile.
        with suppress(FileNotFoundError):
            found[each.name] = client.read(each.name)
    return found


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    port = unused_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    child = BlockingChild(command, folder / "objects.log", environment=dict(os.environ))
    try:
        wait_until(lambda: _put(port, f"/{BUCKET}"), "the object store")
        yield ObjectServer(f"http://127.0.0.1:{port}")
    finally:
        child.end(signal.SIGKILL, 10)


def _put(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("PUT", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@dataclass
class Between:
    """A server in between. `lies`: it drops the condition of create-only writes; `refuse`: all it answers."""

    url: str = ""
    lies: bool = False
    refuse: str | None = None

    def before(self, address: ObjectAddress) -> ObjectAddress:
        """The same place, by this server."""
        return replace(address, endpoint=self.url)


@contextmanager
def standing_before(server: ObjectServer) -> Iterator[Between]:
    between, behind = Between(), urlsplit(server.endpoint)

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            if between.refuse is not None:
                self._answer(403, [], _ERROR.format(between.refuse).encode())
                return
            headers = dict(self.headers.items())
            if between.lies:
                headers = {name: it for name, it in headers.items() if name.lower() != "if-none-match"}
            connection = http.client.HTTPConnection(behind.hostname or "", behind.port, timeout=30)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, answer.getheaders(), answer.read())

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, text in headers:
                if re.fullmatch("etag|last-modified|content-type|x-amz.*|content-range", name.lower()):
                    self.send_header(name, text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815 - names of the base class

    with answering(Handler) as between.url:
        yield between
