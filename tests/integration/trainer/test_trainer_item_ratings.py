"""The ratings of an item are taken back from all users when it is deleted so: all that came before the call,
and nothing that came after it, whichever process is killed.
"""

import asyncio
import contextlib
import math
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.records import StoredUser, UserRecords
from foldin.recovery.verifying import verify
from tests.support.factories import low_rank_ratings, rating
from tests.support.recovering import held, opened
from tests.support.serving import Client, Service, client_of, is_problem, serves, serving
from tests.support.trainers import ChildTrainer, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until, wait_until_async
from trainer import log
from trainer.consume.consumer import EpochConsumer
from trainer.settings import TrainerSettings

GIVEN = low_rank_ratings(users=40, items=12)
RATERS = {each.user_id for each in GIVEN if each.item_id == b"i3"}
PATH = "/items/i3?ratings=delete"


async def counts(store: Store, users: Sequence[bytes]) -> list[int]:
    return [user.n for user in await store.users.stored(1, users)]


async def raters(store: Store, item: str = "i3") -> set[str]:
    """Who holds a rating of an item now; not who has only seen it."""
    return {user for user, rated in await held(store) if rated == item} - {"seen"}


async def asked(client: Client, path: str = PATH) -> str:
    reply = await client.ask("DELETE", path)
    assert (reply.status, reply.json["deleted"], reply.json["archive"]) == (202, 1, "pending")
    return str(reply.json["receipt"])


async def until(client: Client, receipt: str, state: str = "taken_back") -> None:
    async def said() -> bool:
        reply = await client.get(f"/receipts/{receipt}")
        assert reply.status == 200, reply.text
        return bool(reply.json["archive"] == state)

    await wait_until_async(said, f"the receipt says {state}")


async def is_clean(store: Store, settings: TrainerSettings) -> None:
    found = await verify(store, settings, lambda _line: None)
    assert (found.count, found.moved) == (0, 0), found.differences


@pytest.mark.slow
async def test_all_are_taken_back_and_what_comes_after_stays(settings: TrainerSettings) -> None:
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        # One has taken it back already, one has rated it twice, one is known by it alone, one has seen it.
        await store.ratings.append(
            [*GIVEN, rating("alone", "i3"), rating("twice", "i3"), rating("gone", "i3")]
        )
        await store.ratings.append([rating("twice", "i3", 5.0), rating("gone", "i3", math.nan)])
        await client.post("/events", {"user_id": "seen", "item_id": "i3", "type": "view"})
        await serves(client, await fitted(store))
        assert await raters(store) == {each.decode() for each in RATERS} | {"alone", "twice"}
        others = {pair: value for pair, value in (await held(store)).items() if pair[1] != "i3"}
        before = await counts(store, [b"gone", b"seen", b"alone"])
        receipt = await asked(client)
        # A rating of the same value and time, as of a file that is imported again.
        again = next(each for each in GIVEN if each.item_id == b"i3")
        body = {
            "user_id": again.user_id.decode(),
            "item_id": "i3",
            "rating": again.rating,
            "timestamp": again.time,
        }
        assert (await client.post("/ratings", body)).status == 200
        await until(client, receipt)
        assert await raters(store) == {again.user_id.decode()}
        assert {pair: value for pair, value in (await held(store)).items() if pair[1] != "i3"} == others
        assert await counts(store, [b"gone", b"seen", b"alone"]) == [before[0], before[1], before[2] + 1]
        page = (await client.get(f"/users/{again.user_id.decode()}/ratings")).json
        assert "i3" in {each["item_id"] for each in page["ratings"]}
        assert (await client.get("/users/alone/ratings")).json["total"] == 0
        assert (await client.get("/users/seen/events")).json["total"] == 1
        await is_clean(store, settings)
        # Once more takes the one that came since; an item that has no more ratings is no mistake.
        assert is_problem(await client.ask("DELETE", "/items/i3"), 404, "unknown_item")
        await until(client, await asked(client))
        assert await raters(store) == set()
        await serves(client, await fitted(store))
        await client.ask("PUT", "/items/i3", json={})
        assert (await client.get("/items/i3")).json["ratings"] == 0
        assert is_problem(await client.ask("DELETE", "/items/never?ratings=delete"), 404, "unknown_item")
        assert is_problem(await client.ask("DELETE", "/items/i4?ratings=some"), 400, "invalid_parameter")
        assert (await client.ask("DELETE", "/items/i4")).json == {"deleted": 1}
        assert len(await raters(store, "i4")) > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["command:running", "take_back:found", "take_back:written", "command:done", "command:reported"]
)
async def test_a_trainer_is_killed_at_any_step(settings: TrainerSettings, step: str) -> None:
    victim = ChildTrainer(settings, step)
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        await store.ratings.append(GIVEN)
        users = sorted(RATERS)
        before = await counts(store, users)
        receipt = await asked(client)
        await wait_until_async(lambda: victim.ended, "the trainer kills itself")
        reply = (await client.get(f"/receipts/{receipt}")).json
        assert reply["archive"] == ("taken_back" if step == "command:reported" else "pending")
        await store.ratings.append([rating("late", "i3")])
        async with running_trainer(settings):
            await until(client, receipt)
            assert await raters(store) == {"late"}
            # Each once, however often it was begun.
            assert await counts(store, users) == [n + 1 for n in before]
            await until_drained(store)
            await is_clean(store, settings)
            assert await store.redis.hlen(store.keys.erasing) == 0


@pytest.mark.slow
async def test_a_service_is_killed_amid_calls(settings: TrainerSettings, tmp_path: Path) -> None:
    """What was answered is done; what was not may be sent again."""
    items = [f"i{row}" for row in range(12)]
    service = Service(settings.store, tmp_path, workers=2)
    try:
        service.wait_for("/livez")
        async with opened(settings.store) as store, client_of(service.url) as client:
            await store.ratings.append(GIVEN)
            receipts: dict[str, str] = {}

            async def ask(item: str) -> None:
                with contextlib.suppress(aiohttp.ClientError):
                    receipts[item] = await asked(client, f"/items/{item}?ratings=delete")

            asking = asyncio.gather(*map(ask, items))
            await wait_until_async(lambda: len(receipts) >= 2, "some are answered")
            # The supervisor would start workers again: all of it goes.
            pids = service.worker_pids()
            service.end(signal.SIGKILL)
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the workers end")
            await asking
        async with (
            opened(settings.store) as store,
            serving(settings.store) as (client, _),
            running_trainer(settings),
        ):
            for receipt in receipts.values():
                await until(client, receipt)
            assert not set(receipts) & {item for _, item in await held(store)}
            for item in set(items) - set(receipts):
                await until(client, await asked(client, f"/items/{item}?ratings=delete"))
            assert await held(store) == {}
            await is_clean(store, settings)
    finally:
        if service.process.code is None:
            service.end()


async def test_who_rates_just_then_keeps_what_is_new(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the archive and the store, and between the store's answer and the write."""
    stored, late = UserRecords.stored, sorted(RATERS)[:4]
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await store.ratings.append(GIVEN)
        await until_drained(store)
        left = [0, 0]

        async def rates_meanwhile(
            self: UserRecords, epoch: int, user_ids: Sequence[bytes]
        ) -> list[StoredUser]:
            if not left[0]:
                left[0] = 1
                # Of the item again, the second one as it was; and of another item.
                await store.ratings.append(
                    [rating(late[0].decode(), "i3", 5.0), rating(late[2].decode(), "x")]
                )
            found = await stored(self, epoch, user_ids)
            if not left[1]:
                left[1] = 1
                await store.ratings.append(
                    [rating(late[1].decode(), "i3", 4.0), rating(late[3].decode(), "y")]
                )
            return found

        monkeypatch.setattr(UserRecords, "stored", rates_meanwhile)
        receipt = await asked(client)
        await until(client, receipt)
        monkeypatch.undo()
        assert left == [1, 1]
        assert await raters(store) == {late[0].decode(), late[1].decode()}
        await is_clean(store, settings)


@pytest.mark.parametrize("dropped", [True, False])
async def test_an_older_trainer_does_not_know_the_command(settings: TrainerSettings, dropped: bool) -> None:
    """Services are upgraded first: what it refused is done by the one after it, and said no sooner."""
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await until_drained(store)
        receipt = await asked(client)
        (command,) = await store.commands.take("0", 1000)
        await store.redis.set(store.keys.command(command.id), '{"state":"failed","code":"unknown_command"}')
        if dropped:
            await store.commands.drop(command.stream_id)
        assert (await client.get(f"/receipts/{receipt}")).json["archive"] == "pending"
        async with running_trainer(settings):
            await until(client, receipt)
            assert await raters(store) == set()


@pytest.mark.slow
async def test_a_new_history_is_not_touched(settings: TrainerSettings) -> None:
    """Its ratings came after the call. Where it is given up, the old history is dealt with."""
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await store.ratings.append(GIVEN)
        await fitted(store)
        epoch = await store.epochs.begin()
        given = [each for each in GIVEN if each.item_id == b"i3"]
        receipt = await asked(client)
        await store.ratings.append([*GIVEN, *given], epoch=epoch)
        for _ in range(4):
            await asyncio.sleep(0.25)
            assert (await client.get(f"/receipts/{receipt}")).json["archive"] == "pending"
        await fitted(store, "epoch", epoch)
        await until(client, receipt, "failed")
        assert "replaced" in (await client.get(f"/receipts/{receipt}")).json["detail"]
        assert await raters(store) == {each.decode() for each in RATERS}
        # One that is given up.
        epoch = await store.epochs.begin()
        receipt = await asked(client)
        await store.epochs.abandon(epoch)
        await until(client, receipt)
        assert await raters(store) == set()
        await is_clean(store, settings)


@pytest.mark.slow
async def test_many_that_wait_do_not_keep_a_new_history_from_its_fit(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a refit; and a trainer that finds them all waiting gets as far."""
    monkeypatch.setattr("trainer.commands._AT_ONCE", 2)
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await fitted(store)
            epoch = await store.epochs.begin()
            receipts = [await asked(client, f"/items/i{row}?ratings=delete") for row in range(4)]
            await fitted(store)
        async with running_trainer(settings):
            await fitted(store)
            await store.ratings.append(GIVEN, epoch=epoch)
            await fitted(store, "epoch", epoch)
            for receipt in receipts:
                await until(client, receipt, "failed")
            # Each command has left the stream, though they ended in another order.
            await wait_until_async(lambda: no_commands(store), "no command is left")


async def no_commands(store: Store) -> bool:
    return not await store.redis.xlen(store.keys.commands)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["history", "count"])
async def test_an_item_that_cannot_be_done_holds_up_no_other(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """It is tried again, which is said once, and done when a person has mended the store."""
    monkeypatch.setattr("trainer.item_deletion.item_ratings._MENDED_S", 0.1)
    monkeypatch.setattr("trainer.item_deletion.item_ratings._ITEMS_AT_ONCE", 1)
    stored, tried = UserRecords.stored, list[bytes]()

    async def seen(self: UserRecords, epoch: int, user_ids: Sequence[bytes]) -> list[StoredUser]:
        tried.extend(user_ids)
        return await stored(self, epoch, user_ids)

    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await store.ratings.append([*GIVEN, rating("alone", "i3")])
        await until_drained(store)
        user, key = store.keys.user(1, b"alone"), store.keys.history(1, b"alone")
        history = await store.redis.get(key)
        if damaged == "history":
            await store.redis.set(key, b"x" * 21)
        else:
            await store.redis.hset(user, "n", "none")
        monkeypatch.setattr(UserRecords, "stored", seen)
        said = waits()
        receipt = await asked(client)
        for item in ("i4", "i5"):
            await until(client, await asked(client, f"/items/{item}?ratings=delete"))
        await wait_until_async(lambda: tried.count(b"alone") >= 4, "it is tried again")
        assert waits() == said + 1
        assert (await client.get(f"/receipts/{receipt}")).json["archive"] == "pending"
        # All others have lost theirs, those who stand behind the damaged one, too.
        for user_id in RATERS:
            page = (await client.get(f"/users/{user_id.decode()}/ratings")).json
            assert "i3" not in {each["item_id"] for each in page["ratings"]}
        await store.redis.set(key, history or b"")
        await store.redis.hset(user, "n", "1")
        await until(client, receipt)
        assert not {"i3", "i4", "i5"} & {item for _, item in await held(store)}
        await is_clean(store, settings)


def waits() -> int:
    logged = log.logged().get("take_back_waits")
    return logged.count if logged else 0


@pytest.mark.slow
async def test_what_is_restored_meanwhile_loses_them_too(settings: TrainerSettings) -> None:
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        await store.ratings.append(GIVEN)
        await fitted(store)
        epoch = await store.epochs.begin(by="restore")
        half = len(GIVEN) // 2
        await store.ratings.append(GIVEN[:half], epoch=epoch)
        await until(client, await asked(client))
        # As a restore that had read the live history before.
        await store.ratings.append(GIVEN[half:], epoch=epoch)
        await fitted(store, "epoch", epoch)
        assert await raters(store) == set()
        assert len(await held(store)) > 100


async def test_an_archive_that_was_rebuilt_meanwhile(
    settings: TrainerSettings, store_at: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where events stood is not known any more: what the ratings say of themselves decides."""
    async with opened(store_at) as store, serving(store_at) as (client, _):
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await until_drained(store)
        receipt = await asked(client)
        await client.post("/ratings", {"user_id": "late", "item_id": "i3", "rating": 3})
        for path in (settings.archive_folder / "epoch-000001").glob("*.parquet"):
            path.unlink()
        rebuilt, seen = EpochConsumer._rebuild, list[int]()

        async def counted(self: EpochConsumer) -> None:
            seen.append(1)
            await rebuilt(self)

        monkeypatch.setattr(EpochConsumer, "_rebuild", counted)
        async with running_trainer(settings):
            await until(client, receipt)
            assert seen
            assert await raters(store) == {"late"}
            await is_clean(store, settings)


@pytest.fixture
def store_at(settings: TrainerSettings) -> StoreSettings:
    return replace(settings.store, timeout_s=5.0)
