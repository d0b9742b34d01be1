"""A receipt says `erased` when no file has a byte of the user any more: of the store, the archive, the trash,
fits or logs; while others rate.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from redis import Redis

from featurestore.commands import Command, Commands
from featurestore.errors import EpochGone
from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.files import StoreFiles
from featurestore.ratings.log import NewRating, RatingsLog
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings
from tests.support.recovering import opened
from tests.support.servers import ServerKind, StoreServer, running_server
from tests.support.serving import Client, serving
from tests.support.traces import traces
from tests.support.trainers import ChildTrainer, fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import wait_until_async
from trainer.commands import CommandHandler
from trainer.consume.consumer import EpochConsumer
from trainer.erasure.file_rewrites import FileRewrites
from trainer.fit_job import result_files
from trainer.settings import TrainerSettings

OTHERS = low_rank_ratings(users=12, items=12)
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
    at = StoreSettings(url=server.url, namespace="t", partitions=4, timeout_s=5.0)
    return trainer_settings(at, tmp_path / "archive", lease_ttl_s=2.0)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path) -> Iterator[None]:
    """All that is logged goes to a file that is searched, too."""
    handler = logging.FileHandler(tmp_path / "all.log")
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    # What aiohttp and the event loop say of sockets.
    yield
    root.removeHandler(handler)
    root.setLevel(level)
    handler.close()


@asynccontextmanager
async def others_rate(settings: StoreSettings) -> AsyncIterator[None]:
    """Others rate all along, some in the user's partition."""

    async def rate() -> None:
        async with opened(settings) as store:
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


async def live_everywhere(store: Store, client: Client, settings: TrainerSettings) -> None:
    """The user is in two fits, a record, and an epoch in the trash, and has taken a rating back."""
    await store.ratings.append([*OTHERS, *RATED[:3]])
    await fitted(store)
    epoch = await store.epochs.begin()
    await store.ratings.append([*OTHERS, *RATED[2:]], epoch=epoch)
    await fitted(store, "epoch", epoch)
    await store.ratings.append([*RATED[1:4], replace(RATED[4], rating=math.nan)])
    await until_drained(store, 2)
    await fitted(store)
    assert (await client.get(f"/predict?user_id={quote(USER, safe='')}&item_id=i7")).status == 200
    await wait_until_async(
        lambda: list((settings.archive_folder / "trash").glob("epoch-*Z")), "an epoch in the trash"
    )


@asynccontextmanager
async def stack(settings: TrainerSettings) -> AsyncIterator[tuple[Store, Client]]:
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        yield store, client


async def until_erased(client: Client, receipt: str, timeout_s: float = 60) -> None:
    async def erased() -> bool:
        return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

    await wait_until_async(erased, "the receipt says erased", timeout_s=timeout_s)


@pytest.mark.slow
async def test_no_byte_is_left(server: StoreServer, settings: TrainerSettings, tmp_path: Path) -> None:
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await live_everywhere(store, client, settings)
        await store.contexts.change(lambda _: ContextSchema((ContextField("depth", "number"),)))
        await store.attributes.change(ID, lambda _: {"born": "in Arrakeen", "worms": 8191.53125})
        told = np.array([77123.25], dtype=np.float32)
        await store.ratings.append([NewRating(ID, b"told", 4.0, RATED[0].time, context=told)])
        seen = {"type": "view", "value": 55123.8125, "timestamp": 1_111_222_333.625}
        assert (await client.post("/events", {"user_id": USER, "item_id": "i3", **seen})).status == 200
        there = {"rating": 4.0, "timestamp": RATED[1].time, "context": {"place": PLACE}}
        assert (await client.post("/ratings", {"user_id": USER, "item_id": "i4", **there})).status == 200
        await until_drained(store)
        await fitted(store)
        values: list[float | str] = ["in Arrakeen", 8191.53125, 77123.25, 55123.8125, 1_111_222_333.625]
        # Among those who may be neighbours.
        assert ID in await store.active.ids(2)
        await store.redis.bgsave()
        found = traces(tmp_path, ID, RATED, values)
        kinds = {"id", "rating", "time", "value"}
        # The search finds what is there, each of it in the store's files and in those of the trainer.
        for value in values:
            files = {
                Path(name).suffix
                for name, kinds in traces(tmp_path, ID, [], [value]).items()
                if "value" in kinds
            }
            assert files & {".aof"}, value
            assert value in values[:2] or files & {".parquet", ".npy"}, (value, files)
        assert any(kinds <= found[name] for name in found if name.endswith(".incr.aof")), found
        of_segments = [found[name] for name in found if name.endswith(".parquet")]
        assert any({"id", "rating", "time"} <= each for each in of_segments), found
        assert any("value" in each for each in of_segments), found
        assert any("trash" in name for name in found), found
        assert "value" in found[next(name for name in found if name.endswith("item_contexts.npy"))]
        assert {"id_bytes.npy", "item_values.npy", "item_times.npy"} <= {Path(name).name for name in found}
        await wait_until_async(
            lambda: "dump.rdb" in traces(tmp_path, ID, RATED, values), "a dump with the user"
        )
        async with others_rate(settings.store):
            fit = asyncio.create_task(fitted(store))
            reply = await client.ask("DELETE", PATH)
            assert reply.status == 200
            await until_erased(client, reply.json["receipt"])
            assert traces(tmp_path, ID, RATED, values) == {}
            await fit
            assert traces(tmp_path, ID, RATED, values) == {}
            # Names of categories and fields are those of the schema, as ids of items are of the catalogue.
            of_schema = {Path(name).name for name in traces(tmp_path, ID, [], [PLACE])}
            of_files = {name for name in of_schema if name.startswith("appendonly.")}
            assert of_schema - of_files <= {"dump.rdb", "contexts.json"}
        assert [key async for key in store.redis.scan_iter(b"*") if ID in key] == []
        assert ID not in await store.active.ids(2)
        assert (await client.get(PATH)).status == 404


@pytest.mark.parametrize("stops_at", ["forget", "ask", "wait"])
async def test_a_service_that_ends_between_its_steps(
    server: StoreServer,
    settings: TrainerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops_at: str,
) -> None:
    """Before the first step nothing is gone, after it all goes, without another call."""
    async with running_trainer(settings), stack(settings) as (store, _):
        await live_everywhere(store, _, settings)
        await store.attributes.change(ID, lambda _: {"born": "in Arrakeen"})
        assert ID in await store.active.ids(2)
        reached = asyncio.Event()

        async def stands(*_args: object, **_options: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        owner = RatingsLog if stops_at == "forget" else Commands
        with monkeypatch.context() as patch:
            patch.setattr(owner, stops_at, stands)
            async with serving(settings.store) as (client, _):
                asking = asyncio.create_task(client.ask("DELETE", PATH))
                await asyncio.wait_for(reached.wait(), 20)
                asking.cancel()
                await asyncio.wait({asking})
        if stops_at == "forget":
            n, history = await store.users.history(2, ID)
            assert (n > 0, len(history) > 0) == (True, True)
            return

        async def nothing_left() -> bool:
            return not await asyncio.to_thread(traces, tmp_path, ID, RATED)

        await wait_until_async(nothing_left, "no byte is left")
        assert ID not in await store.active.ids(2)
        assert [key async for key in store.redis.scan_iter(b"*") if ID in key] == []


@pytest.mark.slow
@pytest.mark.parametrize("without", ["rewrite", "renewed streams", "times"])
async def test_what_would_be_left(
    server: StoreServer,
    settings: TrainerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: str,
) -> None:
    """Each step taken out leaves bytes, and the search finds them."""

    async def nothing(*_args: object) -> bool:
        return True

    if without == "rewrite":
        monkeypatch.setattr(FileRewrites, "_rewrite", nothing)
    elif without == "renewed streams":
        monkeypatch.setattr(StoreFiles, "renew_streams", nothing)
        # Commands beside the erasure are open: one with an outcome leaves at once.
        monkeypatch.setattr(Commands, "drop", nothing)
    else:
        monkeypatch.setattr(result_files, "_OF_A_RATING", ("item_values",))
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await live_everywhere(store, client, settings)
        if without == "renewed streams":
            # Another command that is open keeps the node of the stream in which the user was named.
            await store.redis.xadd(store.keys.commands, {b"id": b"held", b"kind": b"epoch", b"epoch": b"0"})
        reply = await client.ask("DELETE", PATH)
        if without == "renewed streams":
            await store.redis.xadd(store.keys.commands, {b"id": b"held", b"kind": b"held", b"epoch": b"0"})
        await until_erased(client, reply.json["receipt"])
        names = set(traces(tmp_path, ID, RATED))
    ends = {"rewrite": ".incr.aof", "renewed streams": ".base.rdb", "times": "item_times.npy"}
    assert any(name.endswith(ends[without]) for name in names), names


async def test_many_erasures_share_a_rewrite(server: StoreServer, settings: TrainerSettings) -> None:
    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([NewRating(b"g%d" % k, b"i1", 2.0, 1e9) for k in range(40)])
        before = (await store.files.states())[0].rewrites
        receipts = [
            reply.json["receipt"]
            for reply in await asyncio.gather(
                *[client.ask("DELETE", f"/users/g{k}") for k in range(40)],
                client.ask("DELETE", "/users/ghost"),
            )
        ]
        for receipt in receipts:
            await until_erased(client, receipt)
        assert (await store.files.states())[0].rewrites - before <= 5
        assert await store.redis.exists(store.keys.erasing, store.keys.commands) <= 1
        assert await store.redis.xlen(store.keys.commands) == 0


@pytest.mark.parametrize(
    "step",
    [
        *("command:running", "erase:archive", "erase:attributes", "erase:active", "erase:dropped"),
        *("erase:rewritten", "command:done", "command:reported"),
    ],
)
async def test_a_trainer_killed_at_a_step(
    server: StoreServer, settings: TrainerSettings, tmp_path: Path, step: str
) -> None:
    victim = ChildTrainer(settings, step)
    try:
        async with stack(settings) as (store, client):
            await store.ratings.append([*OTHERS, *RATED])
            await store.attributes.change(ID, lambda _: {"born": "in Arrakeen"})
            await store.active.replace(1, [ID])
            receipt = (await client.ask("DELETE", PATH)).json["receipt"]
            await wait_until_async(lambda: victim.ended, "the trainer kills itself")
            async with running_trainer(settings):
                await until_erased(client, receipt)
                assert traces(tmp_path, ID, RATED) == {}
            assert [key async for key in store.redis.scan_iter(b"*") if ID in key] == []
    finally:
        victim.end()


@pytest.mark.slow
async def test_killed_before_the_rewrite(
    server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """Nothing names the user any more; the next trainer ends the erasure all the same."""
    victim = ChildTrainer(settings, "erase:dropped")
    async with stack(settings) as (store, client):
        await store.ratings.append([*OTHERS, *RATED])
        receipt = (await client.ask("DELETE", PATH)).json["receipt"]
        await wait_until_async(lambda: victim.ended, "the trainer kills itself")
        answer = (await client.get(f"/receipts/{receipt}")).json
        assert answer["archive"] == "pending"
        assert "until they are written anew" in answer["detail"]
        # However long it takes: outcomes expire, and it is no outcome.
        await store.redis.delete(store.keys.command(receipt.partition("-")[0]))
        assert (await client.get(f"/receipts/{receipt}")).json == answer
        async with running_trainer(settings):
            await until_erased(client, receipt)
        assert traces(tmp_path, ID, RATED) == {}


async def test_behind_one_that_waits_no_command_stays(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be done again by the next leader, as outcomes expire."""
    mended, erase = asyncio.Event(), CommandHandler._erase

    async def waits(self: CommandHandler, command: Command) -> None:
        await mended.wait()
        await erase(self, command)

    monkeypatch.setattr(CommandHandler, "_erase", waits)
    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([*OTHERS, *RATED])
        receipt = (await client.ask("DELETE", PATH)).json["receipt"]
        await fitted(store)

        async def is_alone() -> bool:
            return [command.kind for command in await store.commands.take("0", 0)] == ["erase"]

        await wait_until_async(is_alone, "the refit has left the stream")
        mended.set()
        await until_erased(client, receipt)


async def test_an_erasure_outlives_its_epoch(
    server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on its way through an epoch that is replaced, or given up, just then."""
    reached_now, gone = EpochConsumer.reached_now, [1, 1]

    async def gone_twice(self: EpochConsumer) -> None:
        if gone:
            raise EpochGone(gone.pop())
        await reached_now(self)

    async with running_trainer(settings), stack(settings) as (store, client):
        await store.ratings.append([*OTHERS, *RATED])
        await until_drained(store)
        monkeypatch.setattr(EpochConsumer, "reached_now", gone_twice)
        receipt = (await client.ask("DELETE", PATH)).json["receipt"]
        await until_erased(client, receipt)
        assert not gone


@pytest.mark.slow
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
        await store.ratings.append([*OTHERS, *RATED])
        receipt = (await client.ask("DELETE", PATH)).json["receipt"]

        async def waits() -> bool:
            answer = (await client.get(f"/receipts/{receipt}")).json
            assert answer["archive"] == "pending"
            return "which the store refuses: the operator has to start it" in answer.get("detail", "")

        await wait_until_async(waits, "the receipt says what it waits for")
        admin.bgrewriteaof()
        await until_erased(client, receipt)
        assert traces(tmp_path, ID, RATED) == {}
    admin.close()
