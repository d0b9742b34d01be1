"""Ratings of a deleted item are taken back: all from before the call, and nothing that came after it."""

import math

import pytest

from featurestore.store import Store
from foldin.recovery.verifying import verify
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import GIVEN, held, opened
from tests.support.serving import Client, is_problem, serves, serving, until_receipt
from tests.support.trainers import crashed_at, fitted, running_trainer, until_drained
from trainer.settings import TrainerSettings

RATERS = {each.user_id for each in GIVEN if each.item_id == b"i3"}
PATH = "/items/i3?ratings=delete"
pytestmark = pytest.mark.usefixtures("quick_rounds")


async def raters(store: Store, item: str = "i3") -> set[str]:
    return {user for user, rated in await held(store) if rated == item} - {"seen"}


async def asked(client: Client, path: str = PATH) -> str:
    reply = await client.ask("DELETE", path)
    assert (reply.status, reply.json["deleted"], reply.json["archive"]) == (202, 1, "pending")
    return str(reply.json["receipt"])


async def is_clean(store: Store, settings: TrainerSettings) -> None:
    found = await verify(store, settings, lambda _line: None)
    assert (found.count, found.moved) == (0, 0), found.differences


async def test_all_are_taken_back_and_what_comes_after_stays(learned: Learned) -> None:
    settings = learned.settings
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store) as (client, _),
    ):
        # One has taken it back already, one has rated it twice, one is known by it alone, one has seen it.
        await store.ratings.append([rating("alone", "i3"), rating("twice", "i3"), rating("gone", "i3")])
        await store.ratings.append([rating("twice", "i3", 5.0), rating("gone", "i3", math.nan)])
        await client.post("/events", {"user_id": "seen", "item_id": "i3", "type": "view"})
        await serves(client, await fitted(store))
        assert await raters(store) == {each.decode() for each in RATERS} | {"alone", "twice"}
        others = {pair: value for pair, value in (await held(store)).items() if pair[1] != "i3"}
        receipt = await asked(client)
        # A rating of the same value and time, as of a file that is imported again.
        again = next(each for each in GIVEN if each.item_id == b"i3")
        await store.ratings.append([again])
        await until_receipt(client, receipt, "taken_back")
        assert await raters(store) == {again.user_id.decode()}
        assert {pair: value for pair, value in (await held(store)).items() if pair[1] != "i3"} == others
        assert (await client.get("/users/alone/ratings")).json["total"] == 0
        assert (await client.get("/users/seen/events")).json["total"] == 1
        await is_clean(store, settings)
        # Once more takes the one that came since; an item that has no more ratings is no mistake.
        await until_receipt(client, await asked(client), "taken_back")
        assert await raters(store) == set()
        assert is_problem(await client.ask("DELETE", "/items/never?ratings=delete"), 404, "unknown_item")
        assert (await client.ask("DELETE", "/items/i4")).json == {"deleted": 1}
        assert len(await raters(store, "i4")) > 2


@pytest.mark.parametrize("step", ["take_back:found", "take_back:written", "command:reported"])
async def test_a_trainer_that_ends_at_a_step(learned: Learned, step: str) -> None:
    settings = learned.settings
    async with opened(settings.store) as store, serving(settings.store) as (client, _):
        users = sorted(RATERS)
        before = [user.n for user in await store.users.stored(1, users)]
        receipt = await asked(client)
        await crashed_at(settings, step)
        await store.ratings.append([rating("late", "i3")])
        async with running_trainer(settings):
            await until_receipt(client, receipt, "taken_back")
            assert await raters(store) == {"late"}
            # Each once, however often it was begun.
            assert [user.n for user in await store.users.stored(1, users)] == [n + 1 for n in before]
            await until_drained(store)
            await is_clean(store, settings)
