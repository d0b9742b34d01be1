"""`foldin import --items` into a running service."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.__main__ import main
from foldin.files import item_import  # noqa: F401 - it takes its number of rows before a test patches that
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


async def test_an_import_that_is_repeated_brings_nothing_back_unasked(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Several calls of the client: it counts over all of them.
    monkeypatch.setattr("foldin_client.rows.MAX_ROWS", 1)
    path = tmp_path / "movies.csv"
    path.write_text("movieId,title\nm0,A\nm1,B\nm2,C\n")
    told = str(path), "--items", "--url", client.url
    assert await run(*told) == 0
    assert (await client.ask("PATCH", "/items/m0", json={"hidden": True})).status == 200
    for item in ("m1", "m2"):
        assert (await client.ask("DELETE", f"/items/{item}")).status == 200
    capsys.readouterr()
    assert await run(*told) == 0
    assert "2 of them were deleted, and stay so without --undelete" in capsys.readouterr().out
    assert [(item["item_id"], item["hidden"]) for item in (await client.get("/items")).json["items"]] == [
        ("m0", True)
    ]
    assert await run(*told, "--undelete") == 0
    assert "were deleted" not in capsys.readouterr().out
    assert (await client.get("/items")).json["total"] == 3
    assert await run(str(path), "--undelete", "--url", client.url) == 2


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


async def test_what_is_not_told_where_goes_to_the_port_of_the_settings(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The port of a variable or of foldin.toml, as export, doctor and client-example take it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOLDIN_REDIS_URL", raising=False)
    (tmp_path / "foldin.toml").write_text(f"[service]\nport = {client.url.rpartition(':')[2]}\n")
    (tmp_path / "items.csv").write_text("item_id,title\ndune,Dune\n")
    (tmp_path / "ratings.csv").write_text("user_id,item_id,rating\nann,dune,5\n")
    assert await run("items.csv", "--items") == 0, capsys.readouterr()
    assert await run("ratings.csv") == 0, capsys.readouterr()
    assert capsys.readouterr().out.count(f" written to the API at {client.url} ") == 1
    assert [each["title"] for each in (await client.get("/items")).json["items"]] == ["Dune"]
