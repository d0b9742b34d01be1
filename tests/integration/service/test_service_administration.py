"""What operators see: users found, ratings exported, and what each worker tells."""

import json

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from service.telemetry.reporter import Reporter
from tests.support.factories import Written
from tests.support.serving import LINES, Client, is_problem, serving


async def test_users_are_found_by_how_ids_begin(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings) as (client, _):
        ids = [*(f"u*{n}" for n in range(30)), "ann", "anna", "an\0na", "änn"]
        rows = [{"user_id": user_id, "item_id": "item-1", "rating": 3} for user_id in ids]
        assert (await client.post("/ratings", rows)).status == 200
        assert await all_users(client, "prefix=an") == {"an\0na", "ann", "anna"}
        # The very id comes first; what would be a pattern is a text.
        assert (await client.get("/users?prefix=ann")).json["users"][0] == "ann"
        assert await all_users(client, "prefix=u*&n=1000") == {f"u*{n}" for n in range(30)}
        assert await all_users(client, "prefix=%3F") == set()
        assert await all_users(client, "prefix=%C3%A4") == {"änn"}
        is_problem(await client.get("/users?cursor=x"), 400, "invalid_parameter")
        assert set(ids) <= await all_users(client, "n=1")


async def all_users(client: Client, query: str) -> set[str]:
    """Go from page to page: a store with the users of others, too, has some on each."""
    seen: set[str] = set()
    path = f"/users?{query}"
    while path:
        page = (await client.get(path)).json
        seen.update(page["users"])
        path = f"/users?{query}&cursor={page['next']}" if page["next"] else ""
    return seen


async def test_what_is_exported_can_be_stored_again(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings) as (client, _):
        rows = [
            {"user_id": f"u{n % 50}", "item_id": f"item-{n % 7}", "rating": 1 + n % 5, "timestamp": 1e9 + n}
            for n in range(300)
        ]
        assert (await client.post("/ratings", rows)).status == 200
        reply = await client.get("/export/ratings")
        # Those of `published` have other users.
        lines = [line for line in map(json.loads, reply.text.splitlines()) if line["user_id"][0] == "u"]
        kept = {(row["user_id"], row["item_id"]): row for row in rows}
        assert len(lines) == len(kept)
        assert all(kept[line["user_id"], line["item_id"]] == line for line in lines)
        assert (await client.ask("POST", "/ratings", data=reply.text.encode(), headers=LINES)).status == 200
        again = await client.get("/export/ratings")
        assert sorted(again.text.splitlines()) == sorted(reply.text.splitlines())


async def test_a_worker_tells_what_it_did_since_it_told_before(
    store_settings: StoreSettings, store: Store, published: Written
) -> None:
    async with serving(store_settings) as (client, app):
        reporter = Reporter(app[CONTEXT], "here")
        for n in range(5):
            await client.post("/ratings", {"user_id": "ann", "item_id": f"item-{n}", "rating": 1 + n})
        await reporter.tell()
        await client.get("/predict?user_id=ann&item_id=item-1")
        await reporter.tell()
        first, second = await store.telemetry.read(60)
        assert (first.requests, first.ratings, first.errors, second.requests) == (5, 5, 5, 1)
        assert first.squared_error > 0
        # The first rating finds ann unknown: both are told the same.
        assert first.baseline > 0
        assert sum(first.latency) == 5
        assert first.lag >= 0
        assert first.store_bytes > 0
        history = (await client.get("/history?seconds=60")).json
        assert history["requests_per_s"][-1] == 6 / history["step_s"]
        assert [each["host"] for each in history["replicas"]] == ["here"]
        is_problem(await client.get("/history?seconds=1"), 400, "invalid_parameter")
