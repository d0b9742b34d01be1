"""A receipt says `erased` when no file has a byte of the user, and until then what it waits for."""

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from featurestore.ratings.context_schema import ContextField
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.integration.conftest import settings_in
from tests.support.recovering import GIVEN, opened
from tests.support.servers import ServerKind, StoreServer, running_server
from tests.support.serving import Client, Reply, serving, until_receipt
from tests.support.traces import traces
from tests.support.trainers import archived, crashed_at, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.epoch_archive import EpochArchive, Until
from trainer.commands import CommandHandler
from trainer.settings import TrainerSettings
from trainer.upkeep import Upkeep

pytestmark = pytest.mark.usefixtures("quick_rounds")
USER = "erase me, Ünïcode Ω, " + "0f8a71c3" * 12
ID = USER.encode()
# Doubles that no other number here is.
RATED = [NewRating(ID, b"i%d" % k, 1.0 + math.pi / (k + 2), 1_234_567_890.123 + math.e * k) for k in range(6)]
PATH = f"/users/{quote(USER, safe='')}"
PLACE = "Sietch Tabr, 4711"
# The files of the store have their bytes as they are: what is compressed cannot be searched.
OPTIONS = ("--rdbcompression", "no")


@pytest.fixture
def server(store_kind: ServerKind, tmp_path: Path) -> Iterator[StoreServer]:
    with running_server(store_kind, tmp_path, *OPTIONS) as server:
        yield server


@pytest.fixture
def settings(server: StoreServer, tmp_path: Path) -> TrainerSettings:
    return settings_in(tmp_path, server)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path) -> Iterator[None]:
    """All that is logged goes to a file that is searched, too."""
    handler = logging.FileHandler(tmp_path / "all.log")
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(handler)
    root.setLevel(level)
    handler.close()


@contextlib.asynccontextmanager
async def others_rate(store: Store) -> AsyncIterator[None]:
    async def rate() -> None:
        number = 0
        while True:
            number += 1
            given = [NewRating(b"w%d" % (number % 50), b"i%d" % k, 2.0, float(number)) for k in range(3)]
            await store.ratings.append(given)
            await asyncio.sleep(0.005)

    rating = asyncio.create_task(rate())
    try:
        yield
    finally:
        rating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rating


@contextlib.asynccontextmanager
async def stack(settings: TrainerSettings) -> AsyncIterator[tuple[Store, Client]]:
    # No answer waits for a trainer that may not be there.
    async with opened(settings.store) as store, serving(settings.store, erase_wait_s=0.0) as (client, _):
        yield store, client


async def forgotten(client: Client, path: str = PATH) -> str:
    return str((await client.ask("DELETE", path)).ok.json["receipt"])


async def until_it_waits(client: Client, receipt: str, for_what: str) -> None:
    def says(reply: Reply) -> bool:
        assert reply.json["archive"] == "pending"
        assert USER not in reply.json["detail"]
        assert "/" not in reply.json["detail"]
        return for_what in reply.json["detail"]

    await wait_until_async(lambda: client.get(f"/receipts/{receipt}"), for_what, says)


async def keys_with_user(store: Store) -> list[bytes]:
    return [key async for key in store.redis.scan_iter(b"*") if ID in key]


@pytest.mark.slow
async def test_no_byte_is_left(server: StoreServer, settings: TrainerSettings, tmp_path: Path) -> None:
    async with running_trainer(settings), stack(settings) as (store, client):
        # The user is in two fits, a record, and an epoch in the trash, and has taken a rating back.
        await store.ratings.append([*GIVEN, *RATED[:3]])
        await fitted(store)
        epoch = await store.epochs.begin()
        await store.ratings.append([*GIVEN, *RATED[2:]], epoch=epoch)
        await fitted(store, "epoch", epoch)
        await store.ratings.append([*RATED[1:4], replace(RATED[4], rating=math.nan)])
        await store.contexts.tell([ContextField("depth", "number"), ContextField("place", "category")])
        await store.attributes.change(ID, lambda _: {"born": "in Arrakeen", "worms": 8191.53125})
        told = np.array([77123.25], dtype=np.float32)
        await store.ratings.append([NewRating(ID, b"told", 4.0, RATED[0].time, context=told)])
        seen = {"type": "view", "value": 55123.8125, "timestamp": 1_111_222_333.625}
        assert (await client.post("/events", {"user_id": USER, "item_id": "i3", **seen})).status == 200
        there = {"rating": 4.0, "timestamp": RATED[1].time, "context": {"place": PLACE}}
        assert (await client.post("/ratings", {"user_id": USER, "item_id": "i4", **there})).status == 200
        assert (await client.get(f"/predict?user_id={quote(USER, safe='')}&item_id=i7")).status == 200
        await until_drained(store, 2)
        await fitted(store, epoch=2)
        values: list[float | str] = ["in Arrakeen", 8191.53125, 77123.25, 55123.8125, 1_111_222_333.625]
        # Among those who may be neighbours.
        assert ID in await store.active.ids(2)
        await store.redis.bgsave()
        await wait_until_async(
            lambda: (
                {"dump.rdb", "trash"}
                <= {part for name in traces(tmp_path, ID, []) for part in Path(name).parts}
            ),
            "a dump and the trash with the user",
        )
        # The search finds what is there, each of it in the store's files and in those of the trainer.
        for value in values:
            names = traces(tmp_path, ID, [], [value])
            suffixes = {Path(name).suffix for name, kinds in names.items() if "value" in kinds}
            assert suffixes & {".aof"}, value
            assert value in values[:2] or suffixes & {".parquet", ".npy"}, (value, suffixes)
        found = traces(tmp_path, ID, RATED, values)
        assert any(found[aof] == {"id", "rating", "time", "value"} for aof in found if aof.endswith(".aof"))
        assert {"id_bytes.npy", "item_values.npy", "item_times.npy"} <= {Path(name).name for name in found}
        async with others_rate(store):
            fit = asyncio.create_task(fitted(store, epoch=2))
            await until_receipt(client, await forgotten(client))
            assert traces(tmp_path, ID, RATED, values) == {}
            await fit
            assert traces(tmp_path, ID, RATED, values) == {}
            # Names of categories and fields are those of the schema, as ids of items are of the catalogue.
            of_schema = {Path(name).name for name in traces(tmp_path, ID, [], [PLACE])}
            of_files = {name for name in of_schema if name.startswith("appendonly.")}
            assert of_schema - of_files <= {"dump.rdb", "contexts.json"}
        assert await keys_with_user(store) == []
        assert ID not in await store.active.ids(2)
        assert (await client.get(PATH)).status == 404


@pytest.mark.parametrize(
    "step",
    [
        *("command:running", "erase:archive", "erase:attributes", "erase:active", "erase:dropped"),
        *("erase:rewritten", "command:done", "command:reported"),
    ],
)
async def test_a_trainer_that_ends_at_a_step(settings: TrainerSettings, tmp_path: Path, step: str) -> None:
    async with stack(settings) as (store, client):
        await store.ratings.append([*GIVEN, *RATED])
        await store.attributes.change(ID, lambda _: {"born": "in Arrakeen"})
        await store.active.replace(1, [ID])
        receipt = await forgotten(client)
        await crashed_at(settings, step)
        if step == "erase:dropped":
            # Nothing names the user any more. However long it takes: outcomes expire, and it is no outcome.
            await store.redis.delete(store.keys.command(receipt.partition("-")[0]))
            await until_it_waits(client, receipt, "until they are written anew")
        async with running_trainer(settings):
            await until_receipt(client, receipt)
            assert traces(tmp_path, ID, RATED) == {}
        assert await keys_with_user(store) == []


async def test_erasures_share_one_pass(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, may_go = list[int](), threading.Event()
    erase = EpochArchive.erase

    def slow(archive: EpochArchive, before_ms: Mapping[bytes, int], until: Until = None) -> int:
        passes.append(len(before_ms))
        may_go.wait()
        return erase(archive, before_ms, until)

    monkeypatch.setattr(EpochArchive, "erase", slow)
    users = [b"many-%d" % k for k in range(30)]
    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([NewRating(user, b"i1", 3.0, 1.0) for user in [*users, b"stays"]])
        await until_drained(store, 1)
        receipts = [await forgotten(client, f"/users/{user.decode()}") for user in users]
        await wait_until_async(lambda: bool(passes), "a pass")
        # What comes in meanwhile is archived, of users who come back, too.
        await store.ratings.append([NewRating(user, b"i2", 4.0, 2.0) for user in [*users, b"new"]])
        await until_drained(store, 1)
        may_go.set()
        for receipt in receipts:
            await until_receipt(client, receipt)
    assert len(passes) <= 3, "each pass reads all of the archive"
    left = {(user, item): rating for user, _, item, rating in archived(settings)}
    came_back = {(user.decode(), "i2"): 4.0 for user in [*users, b"new"]}
    assert left == came_back | {("stays", "i1"): 3.0}


async def test_a_history_that_was_replaced_meanwhile_leaves_the_store_first(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived_to_its_end, replaced, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
    erase, remove = CommandHandler._erase, Upkeep._remove

    async def erase_before(*given: Any) -> None:
        await erase(*given)
        archived_to_its_end.set()
        await replaced.wait()

    async def remove_later(*given: Any, **more: Any) -> None:
        await left.wait()
        await remove(*given, **more)

    monkeypatch.setattr(CommandHandler, "_erase", erase_before)
    monkeypatch.setattr(Upkeep, "_remove", remove_later)
    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([*GIVEN, *RATED])
        await fitted(store)
        epoch = await store.epochs.begin()
        await store.ratings.append([*GIVEN], epoch=epoch)
        receipt = await forgotten(client)
        await archived_to_its_end.wait()
        await fitted(store, "epoch", epoch)
        replaced.set()
        await until_it_waits(client, receipt, "a history that was replaced")
        left.set()
        await until_receipt(client, receipt)
        assert traces(tmp_path, ID, RATED) == {}


async def test_any_number_of_erasures_end(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.commands._AT_ONCE", 5)
    # Files are written anew only once so few commands are left.
    monkeypatch.setattr("featurestore.ratings.files._MOST_ENTRIES", 10)
    async with stack(settings) as (store, client):
        users = [b"u%d" % number for number in range(18)]
        await store.ratings.append([NewRating(user, b"i", 3.0, 0.0) for user in users])
        receipts = [await forgotten(client, f"/users/{user.decode()}") for user in users]
        async with running_trainer(settings):
            for receipt in receipts:
                await until_receipt(client, receipt)
