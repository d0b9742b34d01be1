"""`foldin export` from a running service and `foldin import` into one; a file is whole or not there."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.event_types import with_retired
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.__main__ import main
from foldin.files import item_import  # noqa: F401 - it takes its number of rows before a test patches that
from foldin.sinks import ApiSink, Row, RowRefusedError, Sink, StoreSink
from tests.support.serving import Client, QuietHandler, answering, serving

Rows = list[dict[str, Any]]
RATINGS: Rows = [
    {"user_id": "ann", "item_id": 'e,m"ma', "rating": 5.0, "timestamp": 1.7e9, "context": {"hour": 21.0}},
    {"user_id": "ann", "item_id": "dune\n2", "rating": 1.0, "timestamp": 1_700_000_001.5},
    {"user_id": "böb", "item_id": "dune\n2", "rating": 3.0, "timestamp": 1.7e9, "context": {"on": "tv"}},
]
YEAR = {"year": 1965.5}
OUT = {"out": "2001-01-01T00:00:00Z", "tags": ["x", "y"], "new": True}
ITEMS: Rows = [
    {"item_id": "a", "title": 'A "title", long', "categories": ["sf", "epic"], "attributes": YEAR},
    {"item_id": "b", "attributes": OUT, "hidden": True},
    {"item_id": "c", "title": "C", "available_from": "2020-01-01T00:00:00Z", "image": "http://x/c.png"},
]
USERS: Rows = [
    {"user_id": "ann", "attributes": {"age": 30.0, "likes": ["tea", "go"]}},
    {"user_id": "böb", "attributes": {"vip": False, "since": "2020-01-31T00:00:00Z"}},
]
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
    return by_id([json.loads(row) for row in (await client.get(f"/export/{what}")).text.split("\n") if row])


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
            flags = () if what == "ratings" else (f"--{what}",)
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


def saying(reply: bytes) -> type[QuietHandler]:
    class Handler(QuietHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(reply)

    return Handler


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
    with answering(saying(reply)) as url:
        assert main(["export", "ratings", "--url", url, "--output", str(tmp_path / "r.ndjson")]) == code
    assert words in capsys.readouterr().err
    assert names(tmp_path) == []


async def test_items_of_a_file_are_in_the_catalogue(
    client: Client,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("foldin_client.rows.MAX_ROWS", 3)
    path = tmp_path / "movies.csv"
    rows = "".join(f"m{n},T{n},a|b,2020-01-0{n + 1}\n" for n in range(7))
    path.write_text(f"movieId,title,genres,out\n{rows}")
    told = str(path), "--items", "--url", client.url
    assert await run("import", *told) == 0, capsys.readouterr()
    page = (await client.get("/items")).json
    assert page["total"] == 7
    last = {"item_id": "m6", "title": "T6", "categories": ["a", "b"]}
    assert page["items"][6] == last | {"attributes": {"out": "2020-01-07T00:00:00Z"}}
    assert (await client.get("/schema")).json["items"] == {"out": "time"}
    # Of another type than is held: nothing is written.
    version = await store.catalogue.version()
    path.write_text("movieId,out\nm1,soon\n")
    assert await run("import", *told) == 2
    assert "out is 'soon', which is no time" in capsys.readouterr().err
    path.write_text(f"movieId,title\nm1,{'x' * 2000}\n")
    assert await run("import", *told) != 0
    assert "row 1" in capsys.readouterr().err
    assert await store.catalogue.version() == version


async def test_users_of_a_file_have_their_attributes(
    client: Client, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ml-100k.user"
    header = "user_id:token\tage:token\tgender:token\tzip_code:token\n"
    path.write_text(header + "1\t24\tM\t85711\n2\t53\tF\tT8H1N\n3\t\tM\t32067\n")
    told = str(path), "--users", "--columns", "zip_code=text", "--url", client.url
    assert await run("import", *told, "--dry-run") == 0
    assert "3 users" in capsys.readouterr().out
    assert (await client.get("/users/1/attributes")).status == 404
    assert await run("import", *told) == 0, capsys.readouterr()
    assert "3 users written" in capsys.readouterr().out
    found = (await client.get("/users/2/attributes")).json["attributes"]
    assert found == {"age": 53, "gender": "F", "zip_code": "T8H1N"}
    found = (await client.get("/users/3/attributes")).json["attributes"]
    assert found == {"gender": "M", "zip_code": "32067"}
    types = {"age": "number", "gender": "text", "zip_code": "text"}
    assert (await client.get("/schema")).json == {"items": {}, "users": types, "context": {}}
    rows = '{"user_id": "4", "attributes": {"age": 9}}', '{"user_id": "5", "attributes": {"age": "x"}}'
    path.write_text("\n".join(rows))
    assert await run("import", *told) != 0
    assert "row 2" in capsys.readouterr().err
    assert (await client.get("/users/4/attributes")).status == 404


ROWS: list[Row] = [
    (b"ann", b"x", 1.0, 5.0, b"view", None),
    (b"ann", b"y", 4.0, 6.0, b"rating", None),
    (b"ann", b"x", 30.0, 7.0, b"purchase", None),
    # Of what was shown the value is a generation: the store takes none of a file, the API what it is told.
    (b"ann", b"y", 9.0, 8.0, b"impression", None),
]


@pytest.fixture(params=["store", "api"])
async def sink(request: pytest.FixtureRequest, client: Client, store: Store) -> AsyncIterator[Sink]:
    if request.param == "store":
        yield StoreSink(store, "the store", 1)
        return
    opened = await ApiSink.open(client.url, None)
    yield opened
    await opened.close()


async def test_events_arrive_as_they_are(store: Store, sink: Sink) -> None:
    await store.event_types.change(lambda before: with_retired(before, "click"))
    await sink.write(ROWS)
    # One that there never was, and a retired one.
    for name in ("sneeze", "click"):
        with pytest.raises(RowRefusedError) as refused:
            await sink.write([*ROWS, (b"ann", b"z", 1.0, 8.0, name.encode(), None)])
        assert refused.value.position == 4
        assert f"no event type '{name}'" in str(refused.value)
        assert "impression" in str(refused.value)
    _, history = await store.users.history(1, b"ann")
    assert (history.rating.tolist(), history.time.tolist()) == ([4.0], [6.0])
    feedback = history.feedback
    shown = 0.0 if isinstance(sink, StoreSink) else 9.0
    found = list(zip(feedback.type_code.tolist(), feedback.value.tolist(), strict=True))
    assert found == [(1, 1.0), (4, 30.0), (7, shown)]


async def test_contexts_arrive_with_their_ratings(client: Client, store: Store, sink: Sink) -> None:
    assert await sink.context_schema() == ContextSchema()
    with pytest.raises(RowRefusedError, match="'hour' is no field of a context; there are none yet"):
        await sink.write([(b"ann", b"x", 4.0, 5.0, None, {"hour": 9})])
    await sink.name_fields([ContextField("hour", "number"), ContextField("device", "category")])
    given: dict[str, float | str] = {"hour": 14.5, "device": "phone"}
    await sink.write([(b"ann", b"x", 4.0, 5.0, None, given), (b"ann", b"y", 2.0, 6.0, None, None)])
    events: list[Row] = [(b"ann", b"z", 3.0, 7.0, b"rating", {"hour": 9}), ROWS[0]]
    await sink.write(events)
    known = {each.name: (each.kind, each.categories) for each in (await sink.context_schema()).fields}
    assert known == {"hour": ("number", ()), "device": ("category", ("phone",))}
    with pytest.raises(RowRefusedError, match="'device' must be a text") as refused:
        await sink.write([events[1], (b"bob", b"z", 3.0, 7.0, b"rating", {"device": 9})])
    assert (refused.value.position, refused.value.field) == (1, "context.device")
    page = (await client.get("/users/ann/ratings")).json["ratings"]
    assert [each.get("context") for each in page] == [{"hour": 9}, None, given]
    assert (await store.users.history(1, b"bob"))[0] == 0
