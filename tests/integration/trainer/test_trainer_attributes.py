"""Attributes of items and users in a running stack: learned by a fit, and said of those who come after it."""

from functools import partial

import numpy as np
import pytest

from featurestore.catalogue.attributes import Values
from featurestore.catalogue.item import CatalogueItem
from featurestore.generations.manifest import ATTRIBUTES, USER_ATTRIBUTES
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.factories import put_items
from tests.support.serving import serves, serving
from tests.support.trainers import fitted, running_trainer
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

GENRES = ("drama", "comedy", "war", "horror")
USERS, ITEMS = 24, 40
pytestmark = pytest.mark.usefixtures("quick_rounds")


def item(item_id: str, genre: str, year: float = 1990.0) -> CatalogueItem:
    return CatalogueItem(item_id, categories=[genre], attributes={"year": year})


async def say(store: Store, user_id: bytes, values: Values | None) -> None:
    await store.attributes.change(user_id, lambda _: values)


def given() -> list[NewRating]:
    """Users who rate drama high and horror low, and those who are said to like it sour all higher."""
    rng = np.random.default_rng(4)
    return [
        NewRating(b"u%d" % user, b"i%d" % row, float(np.clip(score + rng.integers(-1, 2), 1, 5)), 1e9)
        for user in range(USERS)
        for row in rng.permutation(ITEMS)[:25].tolist()
        for score in [4 - row % 4 + user % 2]
    ]


async def test_items_and_users_without_ratings_are_served_by_their_attributes(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.item_updates.updater.LOOK_AGAIN_S", 0.02)
    await store.catalogue.schema.hold("items", {"year": "number"})
    await put_items(store, *(item(f"i{row}", GENRES[row % 4], 1950.0 + row) for row in range(ITEMS)))
    await put_items(store, item("unrated-drama", "drama"), item("unrated-horror", "horror"))
    await store.catalogue.schema.hold("users", {"taste": "text"})
    for user in range(USERS):
        await say(store, b"u%d" % user, {"taste": ("sweet", "sour")[user % 2]})
    await store.ratings.append(given())
    async with running_trainer(settings), serving(settings.store) as (client, _):
        generation = await fitted(store)
        meta = await store.generations.meta(1, generation)
        assert {ATTRIBUTES, USER_ATTRIBUTES} <= set(meta.blobs)
        await serves(client, generation)

        async def told(user: str, item: str) -> tuple[float, str]:
            reply = await client.get(f"/predict?user_id={user}&item_id={item}")
            return reply.json["rating"], reply.json["basis"]

        async def until_served(item: str, basis: str) -> float:
            asked, what = partial(told, "stranger", item), f"{item} served by {basis}"
            found: tuple[float, str] = await wait_until_async(asked, what, lambda answer: answer[1] == basis)
            return found[0]

        drama, horror = [await told("stranger", f"unrated-{genre}") for genre in ("drama", "horror")]
        assert (drama[1], horror[1], drama[0] > horror[0] + 0.5) == ("attributes", "attributes", True)
        for who, rests_on in (("stranger", "attributes"), ("u1", "user+attributes")):
            reply = await client.get(f"/recommend/{who}?n=1000&order=rating")
            listed = {each["item_id"]: each["basis"] for each in reply.json["items"]}
            assert listed["unrated-drama"] == (await told(who, "unrated-drama"))[1] == rests_on
        # One that comes after the fit, one that changes, one that is rated, and one without attributes.
        await put_items(store, item("new-drama", "drama"), item("unrated-horror", "drama"))
        assert await until_served("new-drama", "attributes") == pytest.approx(drama[0], abs=0.3)
        changed, what = partial(told, "stranger", "unrated-horror"), "what was changed in the answers"
        await wait_until_async(changed, what, lambda answer: answer[0] > horror[0] + 0.4)
        await store.ratings.append([NewRating(b"u1", b"new-drama", 4.0, 2e9)])
        await until_served("new-drama", "item")
        await put_items(store, CatalogueItem("plain", title="Plain"))
        await until_served("plain", "prior")
        # A new user, on the fast path, in a batch, in a list and in its explanation: it is one number.
        ratings = {}
        for taste in ("sour", "sweet"):
            assert (await client.ask("PUT", "/users/new/attributes", json={"taste": taste})).ok.json
            one = (await client.get("/predict?user_id=new&item_id=i0")).json
            batch = (await client.post("/predict", {"user_id": "new", "item_ids": ["i0"]})).json
            why = (await client.get("/explain/new/i0")).json
            listing = (await client.get(f"/recommend/new?n={ITEMS}&order=rating")).json["items"]
            assert one["basis"] == why["basis"] == "attributes+item"
            assert one["rating"] == batch["predictions"][0]["rating"] == why["rating"] == why["base"]
            assert {each["item_id"]: each["rating"] for each in listing}["i0"] == one["rating"]
            ratings[taste] = one["rating"]
        assert ratings["sour"] > ratings["sweet"] + 0.4
        # Without a rating the user is still one of whom none is known.
        assert (await client.get("/users/new")).status == 404
        await store.ratings.append([NewRating(b"new", b"i3", 3.0, 2e9)])
        assert (await told("new", "i0"))[1] == "user+item"
        # Forgotten, and described once more.
        await store.ratings.forget(b"new")
        assert not await store.redis.exists(store.keys.user(1, b"new"))
        await say(store, b"new", {"taste": "sour"})
        again, basis = await told("new", "i0")
        assert again == pytest.approx(ratings["sour"], abs=1e-4)
        assert basis == "attributes+item"
        # A new history knows who was described before.
        epoch = await store.epochs.begin()
        await store.ratings.append(given(), epoch=epoch)
        await serves(client, await fitted(store, "epoch", epoch))
        assert (await told("new", "i0"))[1] == "attributes+item"
