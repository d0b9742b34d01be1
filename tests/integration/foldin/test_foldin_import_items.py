"""`foldin import --items` into a running service."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.__main__ import main
from foldin.files import item_import
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
    monkeypatch.setattr(item_import, "_AT_ONCE", 3)
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
