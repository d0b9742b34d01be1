"""`foldin export` from a running service: what it writes is taken again, and a file is whole or not there."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from featurestore.settings import StoreSettings
from foldin.__main__ import main
from processes.probes import unused_port
from service.context import CONTEXT
from tests.support.serving import Client, serving
from tests.support.waiting import wait_until_async

RATINGS: list[dict[str, Any]] = [
    {
        "user_id": "ann",
        "item_id": 'e,m"ma',
        "rating": 5.0,
        "timestamp": 1_700_000_000.0,
        "context": {"hour": 21.0},
    },
    {"user_id": "ann", "item_id": "dune\n2", "rating": 1.0, "timestamp": 1_700_000_001.5},
    {
        "user_id": "böb",
        "item_id": "dune\n2",
        "rating": 3.0,
        "timestamp": 1_700_000_002.0,
        "context": {"on": "tv"},
    },
]
ITEMS: list[dict[str, Any]] = [
    {
        "item_id": "a",
        "title": 'A "title", long',
        "categories": ["sf", "epic"],
        "attributes": {"year": 1965.5},
    },
    {
        "item_id": "b",
        "attributes": {"out": "2001-01-01T00:00:00Z", "tags": ["x", "y"], "new": True},
        "hidden": True,
    },
    {"item_id": "c", "title": "C", "available_from": "2020-01-01T00:00:00Z", "image": "http://x/c.png"},
]
USERS: list[dict[str, Any]] = [
    {"user_id": "ann", "attributes": {"age": 30.0, "likes": ["tea", "go"]}},
    {"user_id": "böb", "attributes": {"vip": False, "since": "2020-01-31T00:00:00Z"}},
]
COLUMNS = (
    "user=user_id,item=item_id,rating=rating,timestamp=timestamp,"
    "context.hour=context.hour,context.on=context.on"
)
ALL = {"ratings": RATINGS, "items": ITEMS, "users": USERS}


# One server: what is asked is HTTP.


@pytest.fixture
async def client(store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        yield client


async def run(*arguments: object) -> int:
    return await asyncio.to_thread(main, list(map(str, arguments)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def fill(client: Client) -> None:
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
async def test_what_is_exported_is_imported_again(
    client: Client, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    for what in ALL:
        path = tmp_path / f"{what}.{ending}"
        if ending == "ndjson":
            headers = {"Content-Type": "application/x-ndjson"}
            assert (await client.post(f"/{what}", path.read_bytes(), headers=headers)).status < 300
            continue
        flags = ("--columns", COLUMNS) if what == "ratings" else (f"--{what}",)
        assert await run("import", path, "--url", client.url, *flags) == 0, capsys.readouterr()
    assert {what: await exported(client, what) for what in ALL} == before


HOSTILE = (
    *(
        "a\rb",
        "\r",
        "a\r\nb",
        "\n",
        '"',
        '""',
        'a"b',
        ",",
        ";;;;;",
        "\t",
        "|",
        "::",
        "\x1f",
        "\x00",
        "\ufeff",
    ),
    *(
        " a",
        "a ",
        " ",
        "NULL",
        "nan",
        "1e5",
        "007",
        "=1+1",
        "\u2028",
        "\x85",
        "'",
        "\\",
        '\\"',
        "#",
        "true",
        "[",
    ),
)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
async def test_hostile_texts_come_back_as_they_were(
    client: Client, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "ratings": [
            {"user_id": user, "item_id": item, "rating": 3.0, "timestamp": 1_700_000_000.0}
            for user, item in zip(HOSTILE, HOSTILE[1:] + HOSTILE[:1], strict=True)
        ],
        "items": [{"item_id": each, "title": each, "attributes": {"note": each}} for each in HOSTILE],
        "users": [{"user_id": each, "attributes": {'a,"b': each, "c": each}} for each in HOSTILE],
    }
    for what, each in rows.items():
        reply = await client.post(f"/{what}", each)
        assert reply.status < 300, reply
    before = {what: await exported(client, what) for what in rows}
    for what in rows:
        path = tmp_path / f"{what}.{ending}"
        assert await run("export", what, "--url", client.url, "--output", path) == 0, capsys.readouterr()
        # To the same store: what was read otherwise is there besides.
        flags = ("--columns", COLUMNS.partition(",context")[0]) if what == "ratings" else (f"--{what}",)
        assert await run("import", path, "--url", client.url, *flags) == 0, capsys.readouterr()
    assert {what: await exported(client, what) for what in rows} == before


@pytest.mark.parametrize(
    "case",
    [
        ("items", {"attributes": {"note": ""}}, "note of 'x' has a text of no letters", False),
        ("items", {"attributes": {"tags": []}}, "tags of 'x' has a list of no texts", True),
        ("items", {"attributes": {"tags": ["a", ""]}}, "tags of 'x' has the text '' in a list", False),
        ("users", {"attributes": {"tags": [" a"]}}, "tags of 'x' has the text ' a' in a list", True),
        ("users", {"attributes": {"a\rb": 1.0}}, "a column is called 'a\\rb'", True),
        ("users", {"attributes": {" a": 1.0}}, "a column is called ' a'", True),
        ("users", {"attributes": {"a;b;c": 1.0}}, "a column is called 'a;b;c'", True),
        ("users", {"attributes": {"a:token": 1.0}}, "a column is called 'a:token'", True),
    ],
)
async def test_what_csv_cannot_say_is_told_with_what_can(
    client: Client,
    case: tuple[str, dict[str, Any], str, bool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    what, row, words, parquet = case
    assert (await client.post(f"/{what}", [{f"{what[:-1]}_id": "x", **row}])).status < 300
    before = await exported(client, what)
    assert await run("export", what, "--url", client.url, "--output", tmp_path / "x.csv") == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.rstrip().endswith("ndjson or parquet" if parquet else "ndjson")
    assert names(tmp_path) == []
    if parquet:
        path = tmp_path / "x.parquet"
        assert await run("export", what, "--url", client.url, "--output", path) == 0
        gone = await client.ask("DELETE", f"/{what}/x{'/attributes' * (what == 'users')}")
        assert gone.status < 300
        # A row alone does not bring back an item that was deleted.
        flags = ["--items", "--undelete"] if what == "items" else ["--users"]
        assert await run("import", path, "--url", client.url, *flags) == 0, capsys.readouterr()
        assert await exported(client, what) == before


async def test_columns_have_their_types(client: Client, tmp_path: Path) -> None:
    await fill(client)
    path = tmp_path / "items.parquet"
    assert await run("export", "items", "--url", client.url, "--output", path) == 0
    table = pq.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["year"], types["hidden"], types["new"]) == ("double", "bool", "bool")
    assert types["tags"] == types["categories"] == "list<element: string>"
    assert table.num_rows == 3


async def test_standard_output_has_the_rows_alone(
    client: Client, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    await fill(client)
    for more in ((), ("--json",), ("--output", "-")):
        assert await run("export", "ratings", "--url", client.url, *more) == 0
        found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
        assert by_id(found) == by_id(RATINGS)
    assert await run("export", "ratings", "--url", client.url, "--format", "csv") == 0
    out = capfdbinary.readouterr().out
    assert out.startswith(b"user_id,item_id,rating,timestamp,context.")
    assert await run("export", "ratings", "--url", client.url, "--format", "csv", "--json") == 2
    assert await run("export", "ratings", "--url", client.url, "--format", "parquet") == 2


@pytest.mark.parametrize("key", ["bad\nkey", "clé", "ключ", "two words", "fk_\x00"])
@pytest.mark.parametrize("command", ["export ratings", "import {file}", "import --items {file}", "doctor"])
async def test_a_key_that_cannot_be_sent_is_named_as_what_is_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, key: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("user_id,item_id,rating\nann,dune,3\n")
    words = command.format(file=file).split()
    url = f"http://127.0.0.1:{unused_port()}"
    (tmp_path / "key").write_text(key)
    for given in (("--key", key), ("--key-file", str(tmp_path / "key"))):
        assert await run(*words, "--url", url, *given) in {1, 2}
        said = "".join(capfd.readouterr())
        assert "cannot be sent: it must be printable ASCII" in said
        assert "answers" not in said
        assert key not in said.replace(str(tmp_path / "key"), "")


async def test_a_reader_that_has_enough_is_no_failure(client: Client) -> None:
    for start in range(0, 2_000, 500):
        rows = [{"item_id": f"i{n:05}", "title": "x" * 900} for n in range(start, start + 500)]
        assert (await client.post("/items", rows)).status < 300
    command = [sys.executable, "-m", "foldin", "export", "items", "--url", client.url]

    def first_line() -> tuple[bytes, int, bytes]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            process.stdout.close()
            return line, process.wait(60), process.stderr.read()

    line, code, said = await asyncio.to_thread(first_line)
    assert json.loads(line)["item_id"] == "i00000"
    assert (code, said) == (0, b"")


async def test_a_file_that_is_there_is_kept_unless_told(client: Client, tmp_path: Path) -> None:
    await fill(client)
    path = tmp_path / "users.csv"
    path.write_text("mine")
    told = ("export", "users", "--url", client.url, "--output", path)
    assert await run(*told) == 2
    assert path.read_text() == "mine"
    assert await run(*told, "--overwrite") == 0
    assert path.read_text().startswith("user_id,")
    assert await run("export", "users", "--url", client.url, "--output", tmp_path, "--overwrite") == 2
    assert await run("export", "users", "--url", client.url, "--output", tmp_path / "no" / "x.csv") == 2


async def test_what_a_table_has_no_place_for_is_told_and_not_written(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.post("/items", [{"item_id": "a", "categories": ["one|two"]}])
    path = tmp_path / "items.csv"
    assert await run("export", "items", "--url", client.url, "--output", path) == 1
    assert "'one|two'" in capsys.readouterr().err
    await client.post("/items", [{"item_id": "a", "attributes": {"title": "x"}}])
    assert await run("export", "items", "--url", client.url, "--output", path) == 1
    assert "an attribute is called title" in capsys.readouterr().err
    assert names(tmp_path) == []


async def test_an_export_waits_until_the_service_takes_it(
    store_settings: StoreSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(store_settings) as (client, app):
        await fill(client)
        running, path = app[CONTEXT].exports, tmp_path / "items.csv"
        # As two others that run.
        for _ in range(2):
            await running.acquire()
        refused = app[CONTEXT].counts.overloads
        export = asyncio.create_task(run("export", "items", "--url", client.url, "--output", path))
        await wait_until_async(lambda: app[CONTEXT].counts.overloads > refused, "it is refused once")
        assert not export.done()
        running.release()
        assert await asyncio.wait_for(export, 30.0) == 0
        assert len(path.read_text().splitlines()) == 1 + len(ITEMS)
        assert "waiting, as " in capsys.readouterr().err


@pytest.mark.parametrize(("status", "wait_s"), [("429 No", 3600), ("503 No", 1)])
def test_an_export_waits_for_no_longer_than_a_minute(
    status: str,
    wait_s: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("foldin.commands.export.run.BUSY_S", 2.5)
    reply = f'HTTP/1.1 {status}\r\nRetry-After: {wait_s}\r\nContent-Length: 17\r\n\r\n{{"detail":"busy"}}'
    with answering(reply.encode()) as url:
        assert main(["export", "ratings", "--url", url, "--output", str(tmp_path / "r.ndjson")]) == 2
    said = capsys.readouterr().err
    assert said.count("busy") == (1 if wait_s > 60 else 2)
    assert names(tmp_path) == []


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that answers every call with these bytes, and ends the connection."""
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
        thread.join(5)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"user_id":"a","item_id":"b","rating":1.0}'


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (HEAD + b"%x\r\n%s\n\r\n" % (len(LINE) + 1, LINE), 1, "broke off"),
        (HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(LINE), LINE), 1, "within a line"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", 2, "404: nope"),
        (
            b'HTTP/1.1 401 No\r\nContent-Length: 16\r\n\r\n{"detail":"key"}',
            2,
            "401: key; give a key in FOLDIN_API_KEY, or by --key-file",
        ),
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
