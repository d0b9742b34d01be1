"""Other bytes under every kind of key: the same answer, or a clear 503 with the key in the log; a trainer
that goes on, or leaves with one line that names the key; nothing is removed. By its name each kind of key
meets one of them, the same in every run.
"""

import asyncio
import json
import logging
import random
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from featurestore.access import new_secret
from featurestore.catalogue.item import CatalogueItem
from featurestore.errors import StoreRefused
from featurestore.keys import shown_key
from featurestore.settings import StoreSettings
from processes.errors import DATA_REFUSED
from tests.support.factories import low_rank_ratings, rating
from tests.support.recovering import fill_beside, now_held, opened, restored
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import Client, serving
from tests.support.trainers import (
    archived,
    fitted,
    running_trainer,
    trainer_settings,
    until_drained,
    until_live,
)
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.errors import CannotStartError
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.slow


ASKED = (
    *("/predict?user_id=ann&item_id=i3", "/users/ann", "/users/ann/ratings"),
    *("/recommend/ann?n=3", "/similar/i3?n=2", "/items/i3", "/explain/ann/i3", "/neighbours/ann?n=2"),
    *("/items/i9", "/items", "/schema", "/users/ann/attributes", "/attributes", "/generations", "/readyz"),
)
KEY = new_secret()
FOREIGN = b"\xff\x00bytes of another program\x01"


@dataclass(frozen=True)
class World:
    """A store and an archive as a trainer left them, one event still waiting; `dumps` and `copy` bring both
    back. `kinds`: a key of each kind, by the kind's name.
    """

    server: StoreServer
    settings: TrainerSettings
    dumps: dict[bytes, bytes]
    copy: Path
    kinds: dict[str, bytes]
    answers: dict[str, str]

    async def reset(self, redis: Any) -> None:
        await redis.flushall()
        for key, dump in self.dumps.items():
            await redis.restore(key, 0, dump)
        shutil.rmtree(self.settings.archive_folder.parent)
        shutil.copytree(self.copy, self.settings.archive_folder.parent)


# Of each a key is damaged; those of experiments and traces have tests of their own.
KINDS = (
    *("config", "live", "live:epochs", "live:generations", "live:commands", "live:command:ID"),
    *("live:erasing", "live:showings", "live:telemetry", "live:workers", "access", "epochs"),
    *("event_types", "contexts", "contexts:ID", "items", "items:order", "user:ID", "history:ID", "ratings"),
    *("catalogue", "catalogue:items", "catalogue:ids", "catalogue:titles", "catalogue:deleted"),
    *("catalogue:changes", "catalogue:schema", "catalogue:scenarios", "attributes:ID", "attributes"),
    *("active", "counts", "forgotten", "generation:G:meta", "generation:G:items:J", "generation:G:index:J"),
    "generation:G:deltas",
)


def kind_of(key: bytes) -> str:
    """The kind of a key, as featurestore/keys.py has it, without namespace, epoch and partition."""
    text = re.sub(r"[{}]", "", key.decode())
    text = re.sub(r"^foldin(\.\d+)?:(\d+:)?", "", text)
    text = re.sub(r"^(user|history|contexts|attributes|live:command):.+", r"\1:ID", text)
    return re.sub(r"^(generation):\d+:(\w+)(:\d+)?", lambda m: f"{m[1]}:G:{m[2]}{':J' if m[3] else ''}", text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("damaged")
    with running_server(KIND, tmp_path_factory.mktemp("damaged-store")) as server:
        yield asyncio.run(_made(server, folder))


async def _made(server: StoreServer, folder: Path) -> World:
    store_settings = StoreSettings(url=server.url, partitions=2, timeout_s=10.0)
    settings = trainer_settings(store_settings, folder / "archive")
    async with opened(store_settings) as store:
        await store.ratings.append(low_rank_ratings())
        await store.ratings.append([rating("gone", "i1")])
        async with running_trainer(settings):
            await fitted(store)
            await store.ratings.forget(b"gone")
            live = await fitted(store)
            await fill_beside(store, b"ann")
            await store.ratings.append([rating("ann", "new", 2.0)])
            await until_drained(store)
            await wait_until_async(lambda: store.redis.xlen(store.keys.deltas(1, live)), "items folded in")
        async with running_trainer(settings):
            await wait_until_async(
                store.generations.list, "what is not kept is removed", lambda kept: len(kept) == 2
            )
            await wait_until_async(lambda: store.redis.hlen(store.keys.erasing), "no erasure is left", not_)
        await store.access.add(KEY, "operator", "operate")
        await store.redis.hset(store.keys.erasing, "0" * 32, "asked")
        await store.redis.hset(store.keys.workers, "w:1", '{"generation":1,"epoch":1,"at":1.0,"pid":1}')
        await store.ratings.append([rating("ann", "i2", 5.0)])
        # Hidden, as it is when it cannot be read: an item of which that is not known is not shown.
        hidden = CatalogueItem("i9", "Nine", attributes={"year": 1999.0}, hidden=True)
        await store.catalogue.change({b"i9": lambda _: hidden, b"i10": lambda _: None})
        async with serving(store_settings) as (client, _):
            answers = {path: text for path, (status, text) in (await asked(client)).items() if status == 200}
    redis: Any = Redis.from_url(server.url)
    dumps = {key: await redis.dump(key) for key in await redis.keys("*")}
    kinds: dict[str, bytes] = {}
    for key in sorted(dumps):
        of_ann = kind_of(key) in {"user:ID", "history:ID", "contexts:ID"} and not key.endswith(b":ann")
        older = b":generation:" in key and b":generation:%d:" % live not in key
        if not of_ann and not older:
            kinds[kind_of(key)] = key
    for name in ("ratings", "counts"):
        kinds[name] = kinds["history:ID"].rpartition(b":history:")[0] + b":" + name.encode()
    assert set(kinds) == set(KINDS)
    assert len(answers) == len(ASKED) + 1
    await redis.aclose()
    shutil.copytree(settings.archive_folder.parent, folder / "copy")
    return World(server, settings, dumps, folder / "copy", kinds, answers)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app._FIRST_LOAD_S", 10.0)


@pytest.fixture
async def redis(world: World) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(world.server.url)
    await world.reset(client)
    yield client
    await client.aclose()


def lasting(text: str) -> str:
    """An answer without what differs from one asking to the next: names of lists, and how many were shown."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    for each in (document, *document.get("generations", [])) if isinstance(document, dict) else ():
        each.pop("recommendation_id", None)
        each.pop("feedback", None)
    return json.dumps(document, separators=(",", ":"))


async def asked(client: Client) -> dict[str, tuple[int, str]]:
    headers = {"X-API-Key": KEY}
    found = {path: await client.get(path, headers=headers) for path in ASKED}
    pairs = {"pairs": [["ann", "i3"], ["u1", "i3"]]}
    found["POST /predict"] = await client.post("/predict", pairs, headers=headers)
    return {path: (reply.status, lasting(reply.text)) for path, reply in found.items()}


async def content(redis: Any, key: bytes) -> object:
    """What a key holds; of a stream its entries, as a leader makes a group of its own."""
    return await (redis.xrange(key) if await redis.type(key) == b"stream" else redis.dump(key))


async def foreign(redis: Any, key: bytes, rng: random.Random) -> None:
    match await redis.type(key):
        case b"string":
            await redis.set(key, FOREIGN + rng.randbytes(60))
        case b"hash":
            for field in await redis.hkeys(key):
                await redis.hset(key, field, FOREIGN)
        case b"list":
            await redis.lset(key, rng.randrange(await redis.llen(key)), FOREIGN)
        case b"stream":
            await redis.xadd(key, {b"x": FOREIGN})
        case b"set":
            await redis.sadd(key, FOREIGN)
        case b"zset":
            await redis.zadd(key, {FOREIGN: 0})


async def another_type(redis: Any, key: bytes, _: random.Random) -> None:
    is_text = await redis.type(key) == b"string"
    await redis.delete(key)
    await (redis.rpush(key, FOREIGN) if is_text else redis.set(key, FOREIGN))


async def flipped(redis: Any, key: bytes, rng: random.Random) -> None:
    if await redis.type(key) == b"string":
        value = bytearray(await redis.get(key))
        # The name of a last field says nothing.
        value[rng.randrange(len(value) - 25)] ^= 1 << rng.randrange(8)
        await redis.set(key, bytes(value))
    else:
        ((_, fields),) = await redis.xrange(key, count=1)
        value = bytearray(fields[b"v"])
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        await redis.xadd(key, {**fields, b"v": bytes(value)})


CHECKED = ("generation:G:meta", "generation:G:items:J", "generation:G:deltas")


@pytest.mark.parametrize("kind", KINDS)
async def test_damage_is_told_and_removes_nothing(
    world: World, redis: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    rng = random.Random(kind)
    damage = flipped if kind in CHECKED else rng.choice([foreign, another_type])
    caplog.set_level(logging.INFO)
    key = world.kinds[kind]
    await damage(redis, key, rng)
    damaged = await content(redis, key)
    keys, events = set(await redis.keys("*")), set(map(repr, archived(world.settings)))

    found, log = await served(world, caplog)
    for path, (status, text) in found.items():
        if kind == "access" and status == 401:
            # A record that cannot be read lets no request in.
            continue
        if kind in {"contexts", "contexts:ID"} and (status, text) != (200, world.answers[path]):
            # Contexts that cannot be read count as not given, and the log says so.
            assert status in {200, 503}, path
            assert shown_key(key) in log
            continue
        if status != 503:
            assert (status, text) == (200, world.answers[path]), path
        else:
            assert '"code":"data_damaged"' in text or '"code":"no_generation"' in text, (path, text)
    if any(status == 503 for status, _ in found.values()):
        assert shown_key(key) in log, log

    ending, log = await trained(world, caplog)
    if ending is not None:
        assert DATA_REFUSED in ending or "NOAUTH" in ending, ending
        assert shown_key(key) in ending
        assert "\n" not in ending
    left = set(await redis.keys("*"))
    if "generation_damaged" in log:
        # A fit has taken its place; what holds ratings is all there.
        keys = {each for each in keys if b":generation:" not in each}
    assert keys <= left
    assert events <= set(map(repr, archived(world.settings)))
    if ending is not None:
        assert await content(redis, key) == damaged


async def served(world: World, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, tuple[int, str]], str]:
    caplog.clear()
    try:
        async with serving(world.settings.store) as (client, _):
            return await asked(client), caplog.text
    except StoreRefused as exc:
        return {}, str(exc)


async def trained(world: World, caplog: pytest.LogCaptureFixture) -> tuple[str | None, str]:
    """Why a new trainer ended by some two seconds after it began to lead, None where it went on; its log."""
    caplog.clear()
    trainer, stop = Trainer(world.settings), asyncio.Event()
    running = asyncio.create_task(trainer.run(stop))
    await wait_until_async(lambda: running.done() or trainer.term is not None, "it leads, or ends")
    await asyncio.wait([running], timeout=2.5)
    ended, why = running.done(), ""
    stop.set()
    try:
        await asyncio.wait_for(running, 20.0)
    except CannotStartError as exc:
        why = str(exc)
    assert why or not ended
    assert "term_ended" not in caplog.text, caplog.text
    assert "Traceback" not in caplog.text, caplog.text
    return why or None, caplog.text


@pytest.mark.parametrize("kind", ["meta", "items:J"])
async def test_a_fit_takes_the_place_of_a_damaged_generation(world: World, redis: Any, kind: str) -> None:
    await redis.set(world.kinds[f"generation:G:{kind}"], FOREIGN)
    before = int(await redis.hget("foldin:live", "generation") or 0)
    async with opened(world.settings.store) as store, serving(world.settings.store) as (client, _):
        assert (await asked(client))["/readyz"][0] == 503
        async with running_trainer(world.settings):
            if kind != "meta":
                # The trainer does not read the tables of what is live.
                await fitted(store)
            await until_live(store, before + 1)
            await wait_until_async(
                lambda: client.get("/readyz"), "served again", lambda reply: reply.status == 200
            )
        assert {status for status, _ in (await asked(client)).values()} == {200}


FILES = {
    "segment": "epoch-000001/*.parquet",
    "identity": "identity.json",
    "items": "epoch-000001/items.list",
    "fit": "epoch-000001/fits/generation-*/users.npy",
    "model of a fit": "epoch-000001/fits/generation-*/model.bin",
    "fit.json": "epoch-000001/fits/generation-*/fit.json",
    "erasures": "erasures-*.log",
}


@pytest.mark.parametrize("kind", FILES)
async def test_a_torn_file_of_the_archive_costs_no_rating(
    world: World, redis: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The trainer leaves with one line that names it, or goes on; its bytes stay unless they can be made."""
    caplog.set_level(logging.INFO)
    folder = world.settings.archive_folder
    path = sorted(folder.glob(FILES[kind]))[-1]
    held = {(user, item): value for user, _, item, value in archived(world.settings)}
    damaged = path.read_bytes()
    damaged = damaged[: random.Random(kind).randrange(len(damaged))]
    path.write_bytes(damaged)
    keys = set(await redis.keys("*"))
    ending, _ = await trained(world, caplog)
    assert keys <= set(await redis.keys("*"))
    if ending is not None:
        assert DATA_REFUSED in ending
        assert path.name in ending
        assert path.read_bytes() == damaged
        return
    if kind in {"segment", "erasures"}:
        assert any(file.read_bytes() == damaged for file in folder.rglob("*") if file.is_file())
    async with opened(world.settings.store) as store, running_trainer(world.settings):
        await fitted(store)
        await until_drained(store)
    now = {(user, item): value for user, _, item, value in archived(world.settings)}
    kept = {pair: value for pair, value in held.items() if pair[0] != "gone"}
    assert {pair: now.get(pair) for pair in kept} == kept


async def test_a_damaged_history_comes_back_from_the_archive(world: World, redis: Any) -> None:
    """What docs/operations.md says to do: the two keys of the user are deleted, then the archive restored."""
    key = world.kinds["history:ID"]
    await redis.append(key, b"torn")
    async with running_trainer(world.settings):
        async with opened(world.settings.store) as store:
            await until_drained(store)
        await redis.delete(key, world.kinds["user:ID"])
        generation, _ = await restored(world.settings, world.settings.archive_folder)
        assert generation
    found = {pair: value for pair, (value, _) in (await now_held(world.settings)).items() if pair[0] == "ann"}
    assert found == {("ann", "i1"): 4.0, ("ann", "new"): 2.0, ("ann", "i2"): 5.0}
