"""`foldin export` from a running service: what it writes is taken again, and a file is whole or not there."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.settings import StoreSettings
from foldin.__main__ import main
from tests.support.serving import LINES, Client, serving

Rows = list[dict[str, Any]]
RATINGS: Rows = [
    {"user_id": "ann", "item_id": 'e,m"ma', "rating": 5.0, "timestamp": 1.7e9, "context": {"hour": 21.0}},
    {"user_id": "ann", "item_id": "dune\n2", "rating": 1.0, "timestamp": 1_700_000_001.5},
    {"user_id": "böb", "item_id": "dune\n2", "rating": 3.0, "timestamp": 1.7e9, "context": {"on": "tv"}},
]
OUT = {"out": "2001-01-01T00:00:00Z", "tags": ["x", "y"], "new": True}
ITEMS: Rows = [
    {
        "item_id": "a",
        "title": 'A "title", long',
        "categories": ["sf", "epic"],
        "attributes": {"year": 1965.5},
    },
    {"item_id": "b", "attributes": OUT, "hidden": True},
    {"item_id": "c", "title": "C", "available_from": "2020-01-01T00:00:00Z", "image": "http://x/c.png"},
]
USERS: Rows = [
    {"user_id": "ann", "attributes": {"age": 30.0, "likes": ["tea", "go"]}},
    {"user_id": "böb", "attributes": {"vip": False, "since": "2020-01-31T00:00:00Z"}},
]
COLUMNS = (
    "user=user_id,item=item_id,rating=rating,timestamp=timestamp,"
    "context.hour=context.hour,context.on=context.on"
)
ALL = {"ratings": RATINGS, "items": ITEMS, "users": USERS}


@pytest.fixture
async def client(store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        yield client


async def run(*arguments: object) -> int:
    return await asyncio.to_thread(main, list(map(str, arguments)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def fill(client: Client) -> None:
    fields = {"hour": {"kind": "number"}, "on": {"kind": "category"}}
    assert (await client.ask("PUT", "/schema", json={"context": fields})).status == 200
    for what, rows in ALL.items():
        reply = await client.post(f"/{what}", rows)
        assert reply.status < 300, reply


def by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row.get("user_id", ""), row.get("item_id", "")))


async def exported(client: Client, what: str) -> list[dict[str, Any]]:
    return by_id(
        [json.loads(line) for line in (await client.get(f"/export/{what}")).text.split("\n") if line]
    )


@pytest.mark.parametrize("ending", ["ndjson", "csv", "parquet"])
async def test_what_is_exported_makes_an_empty_store_the_same(
    client: Client,
    ending: str,
    store_settings: StoreSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await fill(client)
    before = {what: await exported(client, what) for what in ALL}
    assert before["ratings"] == by_id(RATINGS)
    for what, rows in ALL.items():
        path = tmp_path / f"{what}.{ending}"
        assert await run("export", what, "--url", client.url, "--output", path, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["rows"], told["format"], told["bytes"]) == (len(rows), ending, path.stat().st_size)
    assert names(tmp_path) == sorted(f"{what}.{ending}" for what in ALL)
    empty = replace(store_settings, namespace=f"{store_settings.namespace}-empty")
    async with serving(empty) as (other, _):
        schema = (await client.get("/schema")).json
        assert (await other.ask("PUT", "/schema", json=schema)).json == schema
        for what in ALL:
            path = tmp_path / f"{what}.{ending}"
            if ending == "ndjson":
                assert (await other.post(f"/{what}", path.read_bytes(), headers=LINES)).status < 300
                continue
            flags = ("--columns", COLUMNS) if what == "ratings" else (f"--{what}",)
            assert await run("import", path, "--url", other.url, *flags) == 0, capsys.readouterr()
        assert {what: await exported(other, what) for what in ALL} == before


async def test_standard_output_has_the_rows_alone_and_a_file_that_is_there_is_kept(
    client: Client, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    await fill(client)
    for more in ((), ("--json",), ("--output", "-")):
        assert await run("export", "ratings", "--url", client.url, *more) == 0
        found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
        assert by_id(found) == by_id(RATINGS)
    assert await run("export", "ratings", "--url", client.url, "--format", "csv") == 0
    assert capfdbinary.readouterr().out.startswith(b"user_id,item_id,rating,timestamp,context.")
    assert await run("export", "ratings", "--url", client.url, "--format", "csv", "--json") == 2
    assert await run("export", "ratings", "--url", client.url, "--format", "parquet") == 2
    path = tmp_path / "users.csv"
    path.write_text("mine")
    told = ("export", "users", "--url", client.url, "--output", path)
    assert await run(*told) == 2
    assert path.read_text() == "mine"
    assert await run(*told, "--overwrite") == 0
    assert path.read_text().startswith("user_id,")
    assert await run("export", "users", "--url", client.url, "--output", tmp_path, "--overwrite") == 2
    assert await run("export", "users", "--url", client.url, "--output", tmp_path / "no" / "x.csv") == 2


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"user_id":"a","item_id":"b","rating":1.0}'


def refusal(status: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (HEAD + b"%x\r\n%s\n\r\n" % (len(LINE) + 1, LINE), 1, "broke off"),
        (HEAD + b"%x\r\n%s\n%s\r\n0\r\n\r\n" % (2 * len(LINE) + 1, LINE, LINE), 1, "within a line"),
        (refusal("404 Not Found", b"nope"), 2, "404: nope"),
        (refusal("401 No", b'{"detail":"key"}'), 2, "401: key; give a key in FOLDIN_API_KEY, or by"),
        # For longer than an export waits.
        (refusal("429 No", b'{"detail":"busy"}', "Retry-After: 3600\r\n"), 2, "busy"),
        (b"SSH-2.0\r\n\r\n", 2, "no API answers"),
        (b"", 2, "no API answers"),
    ],
)
def test_an_export_that_breaks_off_leaves_no_file(
    reply: bytes, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(reply) as url:
        assert main(["export", "ratings", "--url", url, "--output", str(tmp_path / "r.ndjson")]) == code
    assert words in capsys.readouterr().err
    assert names(tmp_path) == []
