"""`foldin import --items` into a running service."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.event_types import with_retired
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.__main__ import main
from foldin.files import item_import  # noqa: F401 - it takes its number of rows before a test patches that
from foldin.sinks import ApiSink, Row, RowRefusedError, Sink, StoreSink
from tests.support.serving import Client, serving


@pytest.fixture
async def client(store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        yield client


async def run(*args: str) -> int:
    return await asyncio.to_thread(main, ["import", *args])


async def test_items_of_a_file_are_in_the_catalogue(
    client: Client,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("foldin_client.rows.MAX_ROWS", 3)
    path = tmp_path / "movies.csv"
    path.write_text(
        "movieId,title,genres,out\n" + "".join(f"m{n},T{n},a|b,2020-01-0{n + 1}\n" for n in range(7))
    )
    told = str(path), "--items", "--url", client.url
    assert await run(*told) == 0, capsys.readouterr()
    page = (await client.get("/items")).json
    assert page["total"] == 7
    assert page["items"][6] == {
        "item_id": "m6",
        "title": "T6",
        "categories": ["a", "b"],
        "attributes": {"out": "2020-01-07T00:00:00Z"},
    }
    assert (await client.get("/schema")).json["items"] == {"out": "time"}
    # Of another type than is held: nothing is written.
    version = await store.catalogue.version()
    path.write_text("movieId,out\nm1,soon\n")
    assert await run(*told) == 2
    assert "out is 'soon', which is no time" in capsys.readouterr().err
    path.write_text(f"movieId,title\nm1,{'x' * 2000}\n")
    assert await run(*told) != 0
    assert "row 1" in capsys.readouterr().err
    assert await store.catalogue.version() == version


async def test_users_of_a_file_have_their_attributes(
    client: Client, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ml-100k.user"
    header = "user_id:token\tage:token\tgender:token\tzip_code:token\n"
    path.write_text(header + "1\t24\tM\t85711\n2\t53\tF\tT8H1N\n3\t\tM\t32067\n")
    told = str(path), "--users", "--columns", "zip_code=text", "--url", client.url
    assert await run(*told, "--dry-run") == 0
    assert "3 users" in capsys.readouterr().out
    assert (await client.get("/users/1/attributes")).status == 404
    assert await run(*told) == 0, capsys.readouterr()
    assert "3 users written" in capsys.readouterr().out
    found = (await client.get("/users/2/attributes")).json["attributes"]
    assert found == {"age": 53, "gender": "F", "zip_code": "T8H1N"}
    assert (await client.get("/users/3/attributes")).json["attributes"] == {
        "gender": "M",
        "zip_code": "32067",
    }
    types = {"age": "number", "gender": "text", "zip_code": "text"}
    assert (await client.get("/schema")).json == {"items": {}, "users": types, "context": {}}
    path.write_text(
        '{"user_id": "4", "attributes": {"age": 9}}\n{"user_id": "5", "attributes": {"age": "x"}}\n'
    )
    assert await run(*told) != 0
    assert "row 2" in capsys.readouterr().err
    assert (await client.get("/users/4/attributes")).status == 404


ROWS: list[Row] = [
    (b"ann", b"x", 1.0, 5.0, b"view"),
    (b"ann", b"y", 4.0, 6.0, b"rating"),
    (b"ann", b"x", 30.0, 7.0, b"purchase"),
    # Of what was shown the value is a generation: the store takes none of a file, the API what it is told.
    (b"ann", b"y", 9.0, 8.0, b"impression"),
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
            await sink.write([*ROWS, (b"ann", b"z", 1.0, 8.0, name.encode())])
        assert refused.value.position == 4
        assert f"no event type '{name}'" in str(refused.value)
        assert "impression" in str(refused.value)
    _, history = await store.users.history(1, b"ann")
    assert (history.rating.tolist(), history.time.tolist()) == ([4.0], [6.0])
    feedback = history.feedback
    assert list(zip(feedback.type_code.tolist(), feedback.value.tolist(), strict=True)) == [
        (1, 1.0),
        (4, 30.0),
        (7, 0.0 if isinstance(sink, StoreSink) else 9.0),
    ]


async def test_contexts_arrive_with_their_ratings(client: Client, store: Store, sink: Sink) -> None:
    assert await sink.context_schema() == ContextSchema()
    with pytest.raises(RowRefusedError, match="'hour' is no field of a context; there are none yet"):
        await sink.write([(b"ann", b"x", 4.0, 5.0, None, {"hour": 9})])
    await sink.name_fields([ContextField("hour", "number"), ContextField("device", "category")])
    given: dict[str, float | str] = {"hour": 14.5, "device": "phone"}
    await sink.write([(b"ann", b"x", 4.0, 5.0, None, given), (b"ann", b"y", 2.0, 6.0, None, None)])
    events: list[Row] = [(b"ann", b"z", 3.0, 7.0, b"rating", {"hour": 9}), (*ROWS[0], None)]
    await sink.write(events)
    known = {each.name: (each.kind, each.categories) for each in (await sink.context_schema()).fields}
    assert known == {"hour": ("number", ()), "device": ("category", ("phone",))}
    with pytest.raises(RowRefusedError, match="'device' must be a text") as refused:
        await sink.write([events[1], (b"bob", b"z", 3.0, 7.0, b"rating", {"device": 9})])
    assert (refused.value.position, refused.value.field) == (1, "context.device")
    page = (await client.get("/users/ann/ratings")).json["ratings"]
    assert [each.get("context") for each in page] == [{"hour": 9}, None, given]
    assert (await store.users.history(1, b"bob"))[0] == 0
