"""Attributes of users in a running stack: learned by a fit, and said of users who come after it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from factors import BASIS
from featurestore import codecs
from featurestore.catalogue.attributes import Values
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import USER_ATTRIBUTES
from featurestore.generations.record_writer import RecordWriter
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.counter_rule import Profile
from featurestore.users.fold_in import StaleUser, fold_in
from tests.support.following import following
from tests.support.serving import serves
from tests.support.serving import serving as service
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

USERS, ITEMS = 60, 20


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive")


async def say(store: Store, user_id: bytes, values: Values | None) -> None:
    if values is not None:
        await store.catalogue.schema.hold("users", dict.fromkeys(values, "text"))
    await store.attributes.change(user_id, lambda _: values)


def taste(user: int) -> Values:
    return {"taste": ("sweet", "sour")[user % 2]}


def given() -> list[NewRating]:
    """Users who rate the items by what they are said to like."""
    rng = np.random.default_rng(4)
    return [
        NewRating(
            b"u%d" % user,
            b"i%d" % item,
            float(np.clip((4 if user % 2 else 2) + rng.integers(-1, 2), 1, 5)),
            1e9,
        )
        for user in range(USERS)
        for item in rng.permutation(ITEMS)[:8].tolist()
    ]


def live_of(follower: Follower) -> LiveGeneration:
    assert follower.live is not None
    return follower.live


async def profile(store: Store, follower: Follower, user_id: bytes) -> Profile:
    return await store.users.profile(live_of(follower), user_id)


def rated(follower: Follower, vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tuple[float, str]:
    """What a user is told of the first item."""
    scores = live_of(follower).scorer.score(vector[None], np.zeros(1, dtype=np.int64), np.array([0]))
    return float(scores.rating[0]), BASIS[scores.basis[0]]


@asynccontextmanager
async def serving(
    store: Store, settings: TrainerSettings, folder: Path, *, described: bool = True
) -> AsyncIterator[Follower]:
    """A stack that has learned from `given`, and from what is said of the users if they are `described`."""
    async with following(store, folder / "cache") as follower, running_trainer(settings):
        await store.ratings.append(given())
        for user in range(USERS if described else 0):
            await say(store, b"u%d" % user, taste(user))
        generation = await fitted(store)
        assert await wait_until_served(store.generations, 1, generation, 60, here=follower)
        yield follower


async def test_users_without_ratings_are_served_by_their_attributes(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with serving(store, settings, tmp_path) as follower:
        assert USER_ATTRIBUTES in live_of(follower).meta.blobs
        unknown = await profile(store, follower, b"new")
        assert (unknown.n, rated(follower, unknown.vector)[1]) == (0, "item")
        await say(store, b"new", {"taste": "sour"})
        sour = await profile(store, follower, b"new")
        assert sour.folded
        assert rated(follower, sour.vector)[1] == "attributes+item"
        # A change acts on the next answer, and what was made of it is kept.
        await say(store, b"new", {"taste": "sweet"})
        sweet = await profile(store, follower, b"new")
        assert rated(follower, sour.vector)[0] > rated(follower, sweet.vector)[0] + 0.5

        async def kept() -> bool:
            again = await store.users.lookup(live_of(follower), [b"new"])
            return not again.behind and bool((again.vectors[0] == sweet.vector).all())

        await wait_until_async(kept, "what was folded in written back")
        # A single rating, and the attributes still are what the rest comes from.
        await store.ratings.append([NewRating(b"new", b"i3", 3.0, 2e9)])
        after = await profile(store, follower, b"new")
        assert rated(follower, after.vector)[1] == "user+item"
        assert after.n == 1
        # Taken away, and forgotten.
        await say(store, b"new", None)
        plain = await profile(store, follower, b"new")
        assert rated(follower, plain.vector)[0] > rated(follower, after.vector)[0]
        await say(store, b"other", {"taste": "sour"})
        await store.ratings.forget(b"other")
        assert not await store.redis.exists(store.keys.user(1, b"other"))
        await say(store, b"other", {"taste": "sour"})
        assert rated(follower, (await profile(store, follower, b"other")).vector)[1] == "attributes+item"


async def test_a_fold_in_with_attributes_gives_the_row_of_the_fit(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with serving(store, settings, tmp_path) as follower:
        live, users = live_of(follower), [b"u%d" % user for user in range(USERS)]
        fit = await store.users.lookup(live, users)
        assert not fit.behind
        for user in range(USERS):
            await say(store, users[user], taste(user))
        looked = await store.users.lookup(live, users)
        assert len(looked.behind) == USERS
        folded = await store.users.catch_up(live, looked)
        np.testing.assert_allclose(folded.vectors, fit.vectors, rtol=1e-4, atol=1e-4)
        assert store.users.corrupt_total == 0
        # Other attributes move who has few ratings.
        await say(store, b"u1", {"taste": "sweet"})
        moved = await profile(store, follower, b"u1")
        assert rated(follower, moved.vector)[0] < rated(follower, fit.vectors[1])[0]


async def test_records_that_rest_on_earlier_attributes_are_refused(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with serving(store, settings, tmp_path) as follower:
        live = live_of(follower)
        read_ms = await store.time_ms()
        n, history = await store.users.history(1, b"u1")
        (before,) = (await store.users.lookup(live, [b"u1"])).vectors
        await say(store, b"u1", {"taste": "sweet"})
        # A reader who had looked before the change, and a fit that had read them before.
        packed = codecs.pack_history(history)
        stale = StaleUser(b"u1", n, packed, None, entries=n, described=b"%d" % (read_ms - 10_000))
        store.users.write_back(live, [stale], fold_in(live, [stale], [history]))
        writer = RecordWriter(store.keys, store.bulk, epoch=1, number=live.generation, kept=[])
        vectors = before[None]
        assert await writer.write([b"u1"], np.array([n]), vectors, read_ms) == 0
        assert (await store.users.lookup(live, [b"u1"])).behind == [0]
        now = await store.time_ms() + 1
        assert await writer.write([b"u1"], np.array([n]), vectors, now) == 1
        assert not (await store.users.lookup(live, [b"u1"])).behind


@pytest.mark.slow
async def test_a_new_history_knows_who_was_described_before(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with serving(store, settings, tmp_path) as follower:
        await say(store, b"new", {"taste": "sour"})
        epoch = await store.epochs.begin()
        await store.ratings.append(given(), epoch=epoch)
        generation = await fitted(store, "epoch", epoch)
        assert await wait_until_served(store.generations, epoch, generation, 60, here=follower)
        found = await profile(store, follower, b"new")
        assert rated(follower, found.vector)[1] == "attributes+item"


async def test_without_attributes_nothing_is_published_of_them(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with serving(store, settings, tmp_path, described=False) as follower:
        live = live_of(follower)
        assert live.user_attributes is None
        assert USER_ATTRIBUTES not in live.meta.blobs
        assert b"described" not in await store.redis.hkeys(store.keys.user(1, b"u1"))
        # They may be said all the same: the next fit learns them.
        await say(store, b"u1", taste(1))
        assert (await profile(store, follower, b"u1")).folded


async def test_a_service_answers_by_attributes_of_the_user(
    store: Store, store_settings: StoreSettings, settings: TrainerSettings
) -> None:
    async with running_trainer(settings), service(store_settings) as (client, _):
        await store.ratings.append(given())
        for user in range(USERS):
            await say(store, b"u%d" % user, taste(user))
        await serves(client, await fitted(store))
        told = {}
        for value in ("sour", "sweet"):
            reply = await client.ask("PUT", "/users/new/attributes", json={"taste": value})
            assert reply.status == 200
            # On the fast path, in a batch, in a list and in its explanation it is one number.
            one = (await client.get("/predict?user_id=new&item_id=i0")).json
            batch = (await client.post("/predict", {"user_id": "new", "item_ids": ["i0"]})).json
            why = (await client.get("/explain/new/i0")).json
            path = f"/recommend/new?n={ITEMS}&order=rating"
            listed = {each["item_id"]: each for each in (await client.get(path)).json["items"]}
            assert one["basis"] == why["basis"] == "attributes+item"
            assert one["rating"] == batch["predictions"][0]["rating"] == why["rating"] == why["base"]
            assert listed["i0"]["rating"] == one["rating"]
            told[value] = one["rating"]
        assert told["sour"] > told["sweet"] + 0.5
        # Without a rating the user is still one of whom none is known.
        assert (await client.get("/users/new")).status == 404
        await store.ratings.append([NewRating(b"new", b"i1", 3.0, 2e9)])
        why = (await client.get("/explain/new/i0")).json
        assert why["base"] + sum(part["contribution"] for part in why["parts"]) == pytest.approx(
            why["rating"]
        )
        assert why["base"] == pytest.approx(told["sweet"], abs=0.2)
