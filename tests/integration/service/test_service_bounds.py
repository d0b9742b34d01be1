"""What one key may give and one user may have; a call that is refused changes nothing."""

from typing import Any

import pytest

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from service.http import rating_quota
from tests.support.factories import Written
from tests.support.serving import is_problem, serves, serving


def rows(n: int, user: str = "ann") -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": f"item-{row % 8}", "rating": 3} for row in range(n)]


async def stored(store: Store) -> tuple[int, object]:
    return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)


async def test_a_key_may_give_so_many_ratings_a_second_and_one_that_operates_any(
    store: Store, store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(rating_quota, "monotonic", lambda: now)
    keys = {role: {"Authorization": f"Bearer {new_secret()}"} for role in ("rate", "operate")}
    for role, headers in keys.items():
        await store.access.add(headers["Authorization"].split()[1], role, role)  # type: ignore[arg-type]
    async with serving(store_settings, key_ratings=10) as (client, app):

        async def rate(n: int, role: str = "rate") -> Any:
            return await client.post("/ratings", rows(n), headers=keys[role])

        assert (await rate(8)).status == 200
        before = await stored(store)
        refused = await rate(5)
        assert is_problem(refused, 429, "quota_exceeded")
        assert refused.headers["Retry-After"] == "1"
        assert await stored(store) == before
        assert (await rate(50, "operate")).status == 200
        now += 1
        # A call that is larger than a bucket takes a full one, and is paid for by waiting.
        assert (await rate(25)).status == 200
        refused = await rate(1)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
        # What only reads goes on; what a list shows is not kept.
        await serves(client, published.writer.number)
        assert (await client.get("/recommend/bob?n=2&impressions=true", headers=keys["rate"])).status == 200
        assert app[CONTEXT].counts.impressions_lost > 0


async def test_a_user_may_have_so_many_entries_of_which_each_can_be_taken_back(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, history_entries=50) as (client, _):
        # One is there.
        assert (await client.post("/ratings", rows(40))).status == 200
        before = await stored(store)
        refused = await client.post("/ratings", [*rows(1, "bob"), *rows(10)])
        assert is_problem(refused, 422, "too_many_ratings")
        assert (refused.json["field"], refused.json["row"]) == ("user_id", 1)
        assert await stored(store) == before
        assert (await client.post("/ratings", rows(9))).status == 200
        assert (await client.ask("DELETE", "/ratings/ann/item-1")).status == 200
