"""A receipt says `erased` when no file has a byte of the user any more: of the store, the archive, the trash,
fits or logs; while others rate, whatever ends in between. Until then it says what it waits for.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from redis import Redis

from featurestore.commands import Commands
from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.log import NewRating, RatingsLog
from featurestore.store import Store
from tests.integration.conftest import settings_in
from tests.support.failing_reads import FAILURES, failing
from tests.support.recovering import GIVEN, opened
from tests.support.servers import ServerKind, StoreServer, running_server
from tests.support.serving import Client, serving
from tests.support.traces import traces
from tests.support.trainers import archived, crashed_at, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.consume.consumer import EpochConsumer
from trainer.erasure import waiting
from trainer.fit_job.folder import FitFolder
from trainer.settings import TrainerSettings

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


@asynccontextmanager
async def others_rate(store: Store) -> AsyncIterator[None]:
    """Others rate all along, some in the user's partition."""

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


@asynccontextmanager
async def stack(settings: TrainerSettings) -> AsyncIterator[tuple[Store, Client]]:
    # No answer waits for a trainer that may not be there.
    async with opened(settings.store) as store, serving(settings.store, erase_wait_s=0.0) as (client, _):
        yield store, client


async def forgotten(client: Client, path: str = PATH) -> str:
    reply = await client.ask("DELETE", path)
    assert reply.status == 200, reply.text
    return str(reply.json["receipt"])


async def until_erased(client: Client, receipt: str) -> None:
    async def erased() -> bool:
        return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

    await wait_until_async(erased, "the receipt says erased")


async def until_it_waits(client: Client, receipt: str, for_what: str) -> None:
    async def said() -> bool:
        answer = (await client.get(f"/receipts/{receipt}")).json
        assert answer["archive"] == "pending"
        assert USER not in answer["detail"]
        assert "/" not in answer["detail"]
        return for_what in answer["detail"]

    await wait_until_async(said, for_what)


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
        await store.contexts.change(lambda _: ContextSchema((ContextField("depth", "number"),)))
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
        assert any(
            found[name] == {"id", "rating", "time", "value"} for name in found if name.endswith(".aof")
        )
        assert {"id_bytes.npy", "item_values.npy", "item_times.npy"} <= {Path(name).name for name in found}
        async with others_rate(store):
            fit = asyncio.create_task(fitted(store, epoch=2))
            await until_erased(client, await forgotten(client))
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


@pytest.mark.parametrize("stops_at", ["forget", "ask"])
async def test_a_service_that_ends_between_its_steps(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: str
) -> None:
    """Before the first step nothing is gone, after it all goes, without another call."""
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([*GIVEN, *RATED])
        await store.attributes.change(ID, lambda _: {"born": "in Arrakeen"})
        reached = asyncio.Event()

        owner = RatingsLog if stops_at == "forget" else Commands
        step = getattr(owner, stops_at)

        async def stands(*args: Any, **options: Any) -> Any:
            # That of the service; a trainer may ask as soon as the mark is archived.
            if reached.is_set():
                return await step(*args, **options)
            reached.set()
            return await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(owner, stops_at, stands)
            async with serving(settings.store) as (client, _):
                asking = asyncio.create_task(client.ask("DELETE", PATH))
                await reached.wait()
                asking.cancel()
                await asyncio.wait({asking})
        if stops_at == "forget":
            n, history = await store.users.history(1, ID)
            assert (n, len(history)) == (6, 6)
            return

        async def nothing_left() -> bool:
            return not await asyncio.to_thread(traces, tmp_path, ID, RATED)

        await wait_until_async(nothing_left, "no byte is left")
        assert await keys_with_user(store) == []


async def test_many_erasures_share_a_rewrite(settings: TrainerSettings) -> None:
    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([NewRating(b"g%d" % k, b"i1", 2.0, 1e9) for k in range(40)])
        before = (await store.files.states())[0].rewrites
        # And one who is unknown.
        paths = [*(f"/users/g{k}" for k in range(40)), "/users/ghost"]
        for receipt in await asyncio.gather(*[forgotten(client, path) for path in paths]):
            await until_erased(client, receipt)
        assert (await store.files.states())[0].rewrites - before < len(paths)
        assert await store.redis.exists(store.keys.erasing, store.keys.commands) <= 1
        assert await store.redis.xlen(store.keys.commands) == 0


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
            await until_erased(client, receipt)
            assert traces(tmp_path, ID, RATED) == {}
        assert await keys_with_user(store) == []


async def test_a_store_that_may_not_be_asked(
    server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """As of a hosted Redis: the next rewrite ends it, by hand or of the store itself."""
    admin = Redis.from_url(server.url)
    admin.acl_setuser(
        "app", enabled=True, nopass=True, keys="*", channels="*", commands=["+@all", "-bgrewriteaof"]
    )
    theirs = replace(settings, store=replace(settings.store, url=server.url.replace("//", "//app:x@")))
    async with running_trainer(theirs), stack(theirs) as (store, client):
        await store.ratings.append([*GIVEN, *RATED])
        receipt = await forgotten(client)
        await until_it_waits(client, receipt, "which the store refuses: the operator has to start it")
        admin.bgrewriteaof()
        await until_erased(client, receipt)
        assert traces(tmp_path, ID, RATED) == {}
    admin.close()


async def test_a_receipt_says_that_it_waits_for_a_trainer_a_file_the_archive_or_a_fit(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(settings) as (store, client):
        async with running_trainer(settings):
            await store.ratings.append([*GIVEN, *RATED])
            await fitted(store)
            await until_drained(store)
        folder = settings.archive_folder / "epoch-000001"
        (victim,) = [path for path in folder.glob("*.parquet") if ID in path.read_bytes()]
        receipt = await forgotten(client)
        await until_it_waits(client, receipt, "a trainer has to begin with it")
        reached, over = asyncio.Event(), asyncio.Event()
        with monkeypatch.context() as patched:
            # Its footer can be read, its rows cannot.
            failing(patched, FAILURES["EIO"], lambda path: path.name == victim.name, rows_alone=True)
            async with running_trainer(settings):
                await until_it_waits(client, receipt, waiting.FILE)
            # What that one said last is still there. Of an outcome that is damaged the receipt stays good.
            await store.redis.set(store.keys.command(receipt.partition("-")[0]), b"{")
            await until_it_waits(client, receipt, "a trainer has to begin with it")
        with monkeypatch.context() as held:
            held.setattr(EpochConsumer, "reached_now", lambda _self: reached.wait())
            async with running_trainer(settings):
                await until_it_waits(client, receipt, waiting.ARCHIVED)
                held.setattr(
                    FitFolder, "may_know", lambda _self, user_id: user_id == ID and not over.is_set()
                )
                reached.set()
                await until_it_waits(client, receipt, waiting.FIT)
                over.set()
                await until_erased(client, receipt)


async def damage(store: Store, name: bytes, value: bytes | None) -> None:
    """Let the one command that waits have another field, or lack it."""
    redis: Any = store.redis
    ((entry, fields),) = await redis.xrange(store.keys.commands)
    await redis.delete(store.keys.commands)
    await redis.xadd(
        store.keys.commands,
        {**{key: kept for key, kept in fields.items() if key != name}, **({name: value} if value else {})},
        id=entry,
    )


@pytest.mark.parametrize(
    ("name", "value"), [(b"id", b"\xc3\xa9" * 16), (b"kind", b"\xe5rase"), (b"user", None)]
)
async def test_an_erasure_whose_command_cannot_be_read_is_done_and_others_are_taken(
    settings: TrainerSettings, caplog: pytest.LogCaptureFixture, name: bytes, value: bytes | None
) -> None:
    async with stack(settings) as (store, client):
        await store.ratings.append([*GIVEN, *RATED])
        receipt = await forgotten(client)
        await damage(store, name, value)
        # A line of which nothing can be made stays for a person.
        await store.redis.hset(store.keys.erasing, "0" * 32, b"bsked 17 secret-one")
        async with running_trainer(settings):
            # Behind it in the stream.
            await fitted(store)
            await until_erased(client, receipt)
            assert await store.redis.xlen(store.keys.commands) == 0, "it names the user"
            await until_drained(store)
        assert await store.redis.hlen(store.keys.erasing) == 1
    assert "term_ended" not in caplog.text
    assert "command_damaged" in caplog.text
    assert "secret-one" not in caplog.text
    assert not [row for row in archived(settings) if row[0] == USER]
