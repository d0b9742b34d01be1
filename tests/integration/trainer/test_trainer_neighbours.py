"""Neighbours in a running stack: by their true tastes, with the latest rating, without who was forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from factors import Float64s
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.recovering import opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, Reply, is_problem, serves, serving
from tests.support.trainers import fitted, running_trainer
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

USERS, ITEMS, RATED = 60, 100, 50
pytestmark = pytest.mark.usefixtures("quick_rounds")


@dataclass(frozen=True)
class World:
    """Tastes of dimension 2 and what each user rates. `like` (u, u): the correlation, over all items, of what
    two would rate beyond others; the second axis of the items is a third of the first.
    """

    ratings: list[NewRating]
    like: Float64s
    scores: Float64s


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(8)
    angle = rng.uniform(0, 2 * np.pi, USERS)
    tastes = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    items = rng.normal(size=(ITEMS, 2)) * (1.2, 0.4)
    departure = tastes @ items.T
    # Some users rate all higher, and some items are better for all: neither says anything of tastes.
    scores = 3.0 + departure + rng.normal(0, 0.3, (USERS, 1)) + rng.normal(0, 0.4, ITEMS)
    given = [
        NewRating(
            b"u%d" % user,
            b"i%d" % item,
            float(np.clip(np.rint(2 * scores[user, item]) / 2, 0.5, 5.0)),
            1e9 + user,
        )
        for user in range(USERS)
        for item in rng.permutation(ITEMS)[:RATED].tolist()
    ]
    return World(given, np.asarray(np.corrcoef(departure)), scores)


@asynccontextmanager
async def stack(settings: TrainerSettings, world: World) -> AsyncIterator[tuple[Store, Client, Client]]:
    async with (
        running_trainer(settings),
        opened(settings.store) as store,
        serving(settings.store, erase_wait_s=0.0) as (client, _),
        serving(settings.store, erase_wait_s=0.0) as (other, _),
    ):
        await store.ratings.append(world.ratings)
        generation = await fitted(store)
        await serves(client, generation)
        await serves(other, generation)
        yield store, client, other


async def near(client: Client, user: str, more: str = "") -> list[int]:
    """The numbers of a user's neighbours, with all that was rated."""

    async def whole() -> Reply | None:
        found = await client.get(f"/neighbours/{user}{more}")
        # A worker on busy cores, that has not heard of the store for seconds, says so.
        return None if found.status == 200 and found.json.get("degraded") else found

    reply = await wait_until_async(whole, "an answer that is whole")
    assert reply.status == 200, reply.text
    similarity = [each["similarity"] for each in reply.json["neighbours"]]
    assert similarity == sorted(similarity, reverse=True)
    assert all(0.0 < each <= 1.0 for each in similarity)
    return [int(each["user_id"].removeprefix("u")) for each in reply.json["neighbours"]]


@pytest.fixture
def settings(settings: TrainerSettings) -> TrainerSettings:
    return replace(settings, store=replace(settings.store, scale="0.5:5:0.5"))


async def rate_as(store: Store, user: str, world: World, like: int, items: range) -> None:
    await store.ratings.append(
        [
            rating(user, f"i{item}", float(np.clip(np.rint(2 * world.scores[like, item]) / 2, 0.5, 5.0)))
            for item in items
        ]
    )


@pytest.mark.slow
async def test_they_have_the_same_taste_as_of_the_latest_rating_without_who_was_forgotten(
    settings: TrainerSettings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(settings, world) as (store, client, other):
        found, best, others = [], [], []
        for user in range(0, USERS, 4):
            rows = await near(client, f"u{user}", "?n=5")
            assert user not in rows
            assert len(rows) == 5
            others_of = np.delete(world.like[user], user)
            found.append(world.like[user, rows].mean())
            best.append(np.sort(others_of)[-5:].mean())
            others.append(others_of.mean())
        # The five that are found are nearly as alike as the five that are most alike in truth.
        assert np.mean(found) > np.mean(others) + 0.95 * (np.mean(best) - np.mean(others))
        assert np.min(found) > 0.5
        reply = (await client.get("/neighbours/u0?n=100")).json
        assert reply["among"] == USERS - 1
        assert {each["ratings"] for each in reply["neighbours"]} == {RATED}
        # Of those that are not near there is none in a list, however long.
        similarity = [each["similarity"] for each in reply["neighbours"]]
        assert 0 < len(similarity) < USERS - 1
        strict = (await client.get("/neighbours/u0?n=100&least=0.9")).json["neighbours"]
        assert [each["similarity"] for each in strict] == [each for each in similarity if each >= 0.9]
        for wrong in ("n=0", "n=101", "least=-0.1", "least=nan"):
            assert is_problem(await client.get(f"/neighbours/u0?{wrong}"), 400, "invalid_parameter")
        # A rating counts in the next answer, on each worker: of a user who is new, or changes.
        assert is_problem(await client.get("/neighbours/new"), 404, "unknown_user")
        opposite = int(np.argmin(world.like[0]))
        for like, items in ((0, range(30)), (opposite, range(60))):
            await rate_as(store, "new", world, like, items)
            for each in (client, other):
                assert world.like[like, await near(each, "new", "?n=5")].mean() > 0.9
        # One who was near turns away.
        first = (await near(other, "new", "?n=1"))[0]
        await rate_as(store, f"u{first}", world, int(np.argmin(world.like[first])), range(ITEMS))
        for each in (client, other):
            assert first not in await near(each, "new", "?n=20")
        # One whose history is damaged keeps no other from an answer.
        first = (await near(client, "u0", "?n=1"))[0]
        await store.redis.hincrby(store.keys.user(1, b"u%d" % first), "n", 1)
        await store.redis.set(store.keys.history(1, b"u%d" % first), b"x" * 20)
        for each in (client, other):
            rows = await near(each, "u0", "?n=100")
            assert first not in rows
            assert len(rows) > 5
        # Who was forgotten is gone at once, and no one brings the id back who had read it before.
        first = rows[0]
        name = b"u%d" % first
        receipt = (await client.ask("DELETE", f"/users/u{first}")).json["receipt"]
        for each in (client, other):
            assert first not in await near(each, "u0", "?n=100")
            assert is_problem(await each.get(f"/neighbours/u{first}"), 404, "unknown_user")

        async def erased() -> bool:
            return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

        await wait_until_async(erased, "the receipt says erased")
        await store.active.replace(1, [name, b"u0", b"u1"])
        assert sorted(await store.active.ids(1)) == [b"u0", b"u1"]
        # Among the most active alone, where there are more.
        monkeypatch.setattr("trainer.publication.publish.MOST_ACTIVE", 10)
        busy = [rating(f"u{user}", f"j{item}", 3.0) for user in range(40, 50) for item in range(3)]
        await store.ratings.append(busy)
        generation = await fitted(store)
        await serves(client, generation)
        assert len(await store.active.ids(1)) == 10
        assert (await client.get("/neighbours/u0?n=100")).json["among"] == 10


async def test_without_the_store_they_are_those_of_the_last_reading(
    own_server: StoreServer, settings: TrainerSettings, world: World
) -> None:
    """For users of whom there is a copy; not once a user was forgotten, who may be among them."""
    path = "/neighbours/u0?n=5"
    async with stack(settings, world) as (_, client, other):
        before = (await client.get(path)).json
        assert len(before["neighbours"]) == 5
        own_server.kill()
        degraded = await client.get(path)
        assert (degraded.status, degraded.json) == (200, {**before, "degraded": True})
        # Once for each answer.
        assert "\nfoldin_degraded_total 1.0\n" in (await client.get("/metrics")).text
        assert is_problem(await client.get("/neighbours/stranger"), 503, "store_unavailable")
        assert is_problem(await other.get(path), 503, "store_unavailable")
        await asyncio.to_thread(own_server.start)

        async def whole() -> bool:
            return bool((await client.get(path)).json == before)

        await wait_until_async(whole, "answers are whole again")
        first = before["neighbours"][0]["user_id"]

        async def forgotten() -> bool:
            # Each connection finds out by itself that the store is back.
            return (await client.ask("DELETE", f"/users/{first}")).status == 200

        await wait_until_async(forgotten, "the user is forgotten")
        assert first not in [each["user_id"] for each in (await client.get(path)).json["neighbours"]]
        own_server.kill()
        assert is_problem(await client.get(path), 503, "store_unavailable")
