"""Attributes of items in a running stack: learned by a fit, and said of items that come after it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from factors import BASIS, Histories
from featurestore.catalogue.item import CatalogueItem
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import ATTRIBUTES
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.following import following
from tests.support.serving import Client, serves, serving
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.catalogue import reading
from trainer.catalogue.changes import ChangedItems
from trainer.errors import ArchiveFailedError
from trainer.schedule import CatalogueChanges, Rules
from trainer.settings import TrainerSettings

GENRES = ("drama", "comedy", "war", "horror")
USERS, ITEMS = 24, 40


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive")


def item(item_id: str, genre: str, year: float = 1990.0) -> CatalogueItem:
    return CatalogueItem(item_id, categories=[genre], attributes={"year": year})


async def put(store: Store, items: list[CatalogueItem]) -> None:
    await store.catalogue.change({each.item_id.encode(): partial(became, each) for each in items})


def became(item: CatalogueItem, _: CatalogueItem | None) -> CatalogueItem:
    return item


def given() -> list[NewRating]:
    """Users who choose items of one genre, and rate drama high and horror low."""
    rng = np.random.default_rng(4)
    return [
        NewRating(b"u%d" % user, b"i%d" % row, float(np.clip(5 - row % 4 + rng.integers(-1, 2), 1, 5)), 1e9)
        for user in range(USERS)
        for row in rng.permutation(ITEMS)[:25].tolist()
        if (row + user) % 4 or row % 2
    ]


async def catalogue_of(store: Store) -> None:
    await put(store, [item(f"i{row}", GENRES[row % 4], 1950.0 + row) for row in range(ITEMS)])
    await put(store, [item("unrated-drama", "drama"), item("unrated-horror", "horror")])


def live_of(follower: Follower) -> LiveGeneration:
    assert follower.live is not None
    return follower.live


def rated(store: Store, follower: Follower, item_id: bytes) -> tuple[float, str]:
    """What a user without ratings is told of an item."""
    live, row = live_of(follower), store.items(1).row(item_id)
    assert row is not None
    prior = live.posterior.prior_user[None]
    scores = live.scorer.score(prior, np.zeros(1, dtype=np.int64), np.array([row]))
    return float(scores.rating[0]), BASIS[scores.basis[0]]


async def served(store: Store, follower: Follower, item_id: bytes, basis: str) -> None:
    async def known() -> bool:
        row = store.items(1).row(item_id)
        return row is not None and rated(store, follower, item_id)[1] == basis

    await wait_until_async(known, f"{item_id!r} served as {basis}")


@pytest.mark.slow
async def test_items_without_ratings_are_served_by_their_attributes(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    await catalogue_of(store)
    async with following(store, tmp_path / "cache") as follower:
        async with running_trainer(settings):
            await store.ratings.append(given())
            generation = await fitted(store)
            assert await wait_until_served(store.generations, 1, generation, 30, here=follower)
            drama, basis = rated(store, follower, b"unrated-drama")
            horror, _ = rated(store, follower, b"unrated-horror")
            assert (basis, drama > horror + 0.5) == ("attributes", True)
            async with serving(settings.store) as (client, _):
                await serves(client, generation)
                for user, rests_on in (("new", "attributes"), ("u1", "user+attributes")):
                    reply = await client.get(f"/recommend/{user}?n=1000&order=rating")
                    listed = {each["item_id"]: each["basis"] for each in reply.json["items"]}
                    pair = await client.get(f"/predict?user_id={user}&item_id=unrated-drama")
                    assert listed["unrated-drama"] == pair.json["basis"] == rests_on
            # One that comes after the fit, and one that changes.
            await put(store, [item("new-drama", "drama"), item("unrated-horror", "drama")])
            await served(store, follower, b"new-drama", "attributes")
            assert rated(store, follower, b"new-drama")[0] == pytest.approx(drama, abs=0.3)

            async def changed() -> bool:
                return rated(store, follower, b"unrated-horror")[0] > horror + 0.4

            await wait_until_async(changed, "what was changed in the answers")
            # A rating of its own, and it rests on that.
            await store.ratings.append([NewRating(b"u1", b"new-drama", 4.0, 2e9)])
            await served(store, follower, b"new-drama", "item")
            # Without attributes, nothing is known of it.
            await put(store, [CatalogueItem("plain", title="Plain")])
            await served(store, follower, b"plain", "prior")
        assert ATTRIBUTES in live_of(follower).meta.blobs


async def test_a_catalogue_whose_changes_are_lost_is_read_anew(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    await catalogue_of(store)
    async with following(store, tmp_path / "cache") as follower, running_trainer(settings):
        await store.ratings.append(given())
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 30, here=follower)
        await store.redis.delete(store.keys.catalogue_changes)
        await put(store, [item("late", "drama")])
        await store.redis.xtrim(store.keys.catalogue_changes, maxlen=0)
        await served(store, follower, b"late", "attributes")


async def test_a_store_without_a_catalogue_is_fitted_as_ever(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with following(store, tmp_path / "cache") as follower, running_trainer(settings):
        await store.ratings.append(given())
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 30, here=follower)
        live = live_of(follower)
        assert ATTRIBUTES not in live.meta.blobs
        assert not [name for name in live.model.parameters if "attributes" in name]


async def test_the_file_of_a_fit_leaves_out_what_cannot_be_read(store: Store, tmp_path: Path) -> None:
    await put(store, [item("a", "drama"), item("b", "war")])
    await store.redis.hset(store.keys.catalogue_items, "b", b"\xff")
    path, version = await reading.write_catalogue(store.catalogue, store.items(1), tmp_path / "new")
    assert version.encode() == await store.catalogue.version()
    found = reading.read_catalogue(path, pa.array(["x", "a", "b"]))
    assert [(row, each.item_id) for row, each in found] == [(1, "a")]


async def test_an_unrated_item_is_relevant_by_its_attributes(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    # Users who choose one genre each.
    await catalogue_of(store)
    rng = np.random.default_rng(2)
    chosen = [
        NewRating(b"u%d" % user, b"i%d" % row, float(rng.integers(2, 6)), 1e9)
        for user in range(USERS)
        for row in rng.permutation(ITEMS).tolist()
        if row % 4 == user % 4
    ]
    async with following(store, tmp_path / "cache") as follower, running_trainer(settings):
        await store.ratings.append(chosen)
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 30, here=follower)
        await put(store, [item("new-drama", "drama"), item("new-war", "war")])

        async def joined() -> bool:
            ranking, war = live_of(follower).ranking, store.items(1).row(b"new-war")
            items = () if ranking is None else ranking.head.items
            return war is not None and war < len(items) and bool(np.any(items[war]))

        # How high it is rated the attributes do not tell here.
        await wait_until_async(joined, "the new items in the head of the service")
        ranking = live_of(follower).ranking
        assert ranking is not None
        rows = [store.items(1).row(f"i{row}".encode()) for row in (0, 4, 8, 12)]
        history = Histories(np.array([0, 4]), np.array(rows, np.int32), np.full(4, 4.0), np.full(4, 1e9))
        fresh = [store.items(1).row(name) for name in (b"new-drama", b"new-war", b"unrated-drama")]
        drama, war, unrated = ranking.head.scores(history, np.array(fresh))
        assert drama > war + 0.05
        assert drama == pytest.approx(unrated, rel=1e-3)
        await put(store, [CatalogueItem("plain", title="Plain")])
        async with serving(settings.store) as (client, _):
            await serves(client, generation)
            # u0 chose dramas; of a new user nothing is known.
            said = {"unrated-drama": "attributes", "new-drama": "attributes", "plain": "prior", "i0": "item"}
            await listed(client, "new", said)
            of_user = {name: f"user+{basis}" for name, basis in said.items()}
            await listed(client, "u0", {**of_user, "plain": "user", "i0": "user+item"}, "&exclude_seen=false")
            # What was bought is relevant by that, although it has no rating: in the next fit, and after it.
            for bought in ("new-war", "unrated-drama"):
                event = {"user_id": "u2", "item_id": bought, "type": "purchase"}
                assert (await client.post("/events", event)).status == 200
                if bought == "new-war":
                    assert (await client.post("/train")).status == 200
                said[bought] = "item"
                await listed(client, "new", said)
            reply = await client.get("/predict?user_id=new&item_id=new-war")
            assert reply.json["basis"] in ("prior", "attributes")


async def listed(client: Client, user: str, wanted: dict[str, str], more: str = "") -> None:
    """Wait until a list by score and the explanations say that relevance rests on what is `wanted`."""

    async def said() -> bool:
        reply = await client.get(f"/recommend/{user}?n=1000&order=score{more}")
        found = {each["item_id"]: each["relevance_basis"] for each in reply.json["items"]}
        why = [(await client.get(f"/explain/{user}/{name}")).json["relevance"]["basis"] for name in wanted]
        return [found.get(name) for name in wanted] == why == list(wanted.values())

    await wait_until_async(said, f"relevance to {user} by {wanted}")


async def test_ratings_are_fitted_without_a_catalogue_that_cannot_be_read(
    settings: TrainerSettings, store: Store
) -> None:
    await store.ratings.append(given())
    await put(store, [item("i0", "drama")])
    await store.redis.set(store.keys.catalogue, b"zz")
    await store.redis.set(store.keys.event_types, b"{")
    async with running_trainer(settings):
        assert await fitted(store)
    await store.redis.delete(store.keys.event_types)


async def test_a_catalogue_that_no_disk_has_room_for_is_waited_for(store: Store, tmp_path: Path) -> None:
    await put(store, [item("i0", "drama")])
    (tmp_path / "items.ndjson").mkdir()
    with pytest.raises(ArchiveFailedError, match="cannot write"):
        await reading.write_catalogue(store.catalogue, store.items(1), tmp_path)


@pytest.mark.slow
async def test_many_items_that_are_described_after_a_fit_cause_one(
    store: Store, settings: TrainerSettings
) -> None:
    async with running_trainer(replace(settings, rules=Rules(10**9, 1.0))):
        await store.ratings.append(given())
        generation = await fitted(store)
        await put(store, [item(f"i{row}", GENRES[row % 4]) for row in range(ITEMS)])
        await put(store, [item(f"new-{k}", GENRES[k % 4]) for k in range(100)])

        async def refitted() -> bool:
            meta = await store.generations.meta(1, (await store.generations.live()).generation)
            return meta.summary.generation > generation and ATTRIBUTES in meta.blobs

        await wait_until_async(refitted, "a fit of what the catalogue says")
        # What has been learned counts no more.
        generation = (await store.generations.live()).generation
        changed = ChangedItems(store.catalogue)
        version = await store.catalogue.version()
        assert await changed.look(0.0, version) == CatalogueChanges()
        for k in range(3):
            await put(store, [item("i1", GENRES[k])])
        assert await changed.look(10.0, version) == CatalogueChanges(1, ITEMS + 100, 10.0, 10.0)
        # As often as asked, the store is asked once a second.
        await put(store, [item("i2", "none")])
        assert (await changed.look(10.5, version)).items == 1
        assert await changed.look(11.5, version) == CatalogueChanges(2, ITEMS + 100, 10.0, 11.5)
        assert await changed.look(12.0, None) == CatalogueChanges()
        # Of an unknown version all items have changed.
        assert (await changed.look(20.0, b"1-1")).items == ITEMS + 100
        assert (await store.generations.live()).generation == generation
