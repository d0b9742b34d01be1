"""The scale of a store: decided once, by one of all who ask, and no rating is off it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from factors import Scale
from featurestore.errors import OffScale, StoreDamaged, StoreRefused
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import rating

HALF_STARS = Scale(0.5, 5.0, 0.5)


@pytest.fixture
def undecided(store_settings: StoreSettings) -> StoreSettings:
    return replace(store_settings, namespace=f"{store_settings.namespace}-scale", scale=None)


async def opened(settings: StoreSettings, count: int) -> list[Store]:
    return [await Store.open(settings) for _ in range(count)]


async def closed(*stores: Store) -> None:
    await asyncio.gather(*(each.close() for each in stores))


async def test_of_several_who_decide_one_wins_and_all_follow(undecided: StoreSettings) -> None:
    stores = await opened(undecided, 4)
    assert not any(each.scale.decided for each in stores)
    scales = [HALF_STARS, Scale(0, 100), Scale(-10, 10), Scale(1, 5)]
    won = await asyncio.gather(
        *(each.scale.decide(scale) for each, scale in zip(stores, scales, strict=True))
    )
    assert sum(won) == 1
    assert {each.scale.value for each in stores} == {scales[won.index(True)]}
    late = await Store.open(undecided)
    assert (late.scale.decided, late.scale.value) == (True, stores[0].scale.value)
    # Again with the same one is no other decision.
    assert await late.scale.decide(stores[0].scale.value)
    assert not await late.scale.decide(Scale(0, 3))
    with pytest.raises(StoreRefused, match=r"has FOLDIN_SCALE [^ ]+, not 1:7: use that"):
        await Store.open(replace(undecided, scale="1:7"))
    await closed(late, *stores)


async def test_the_first_rating_decides_and_nothing_off_the_scale_is_stored(undecided: StoreSettings) -> None:
    one, other = await opened(undecided, 2)
    # Before there is a scale, a rating off the default one decides nothing.
    with pytest.raises(OffScale, match=r"the scale is 1:5 since just now, and a rating is 80"):
        await one.ratings.append([rating("ann", "tea", 80.0)])
    (third,) = await opened(undecided, 1)
    assert not third.scale.decided
    await closed(third)
    assert await other.scale.decide(Scale(0, 100))
    # Checked here by what was the scale until then.
    with pytest.raises(OffScale, match="0:100"):
        await one.ratings.append([rating("ann", "tea", -3.0)])
    await one.ratings.append([rating("ann", "tea", 80.0), rating("ann", "milk", float("nan"))])
    assert (await other.users.history(1, b"ann"))[1].rating.tolist() == [80.0]
    await closed(one, other)
    (fresh,) = await opened(replace(undecided, namespace=f"{undecided.namespace}-b"), 1)
    await fresh.ratings.append([rating("ann", "tea", 4.0)])
    assert (fresh.scale.decided, fresh.scale.value) == (True, Scale(1.0, 5.0))
    assert not await fresh.scale.decide(HALF_STARS)
    await closed(fresh)


async def test_the_scale_of_a_store_that_lost_its_configuration_stays(undecided: StoreSettings) -> None:
    (store,) = await opened(undecided, 1)
    await store.scale.decide(HALF_STARS)
    await store.ratings.append([rating("ann", "tea", 0.5)])
    await store.redis.delete(store.keys.config)
    # Another process is first, and knows of none.
    (other,) = await opened(undecided, 1)
    await store.look_again()
    found: Any = await other.redis.hgetall(store.keys.config)
    assert (found[b"scale"], b"scale_open" in found) == (b"0.5:5:0.5", False)
    await other.redis.hset(store.keys.config, "scale", "five")
    with pytest.raises(StoreDamaged):
        await Store.open(undecided)
    await closed(store, other)
