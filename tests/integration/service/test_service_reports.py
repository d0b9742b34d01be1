"""Reports of evaluations: what the command prints is kept, and no more than there is room for."""

import asyncio

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.reports import MOST_REPORTS
from tests.support.serving import is_problem, serving

ROW = {"data": "a.csv", "split": "random 1", "engine": "auto", "rmse": 0.9}


async def test_what_is_too_long_to_keep_is_refused(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        rows = [{**ROW, "note": "x" * 320}] * 200
        refused = await client.ask("PUT", "/reports/long", json={"rows": rows})
        assert is_problem(refused, 413, "body_too_large")
        assert "64000" in refused.json["detail"]
        assert is_problem(await client.ask("PUT", "/reports/none", json={"rows": []}), 422, "invalid_body")
        assert (await client.get("/reports")).json == {"reports": []}
        assert (await client.ask("PUT", "/reports/long", json={"rows": rows[:100]})).status == 200
        # What is not kept may be longer than that.
        rows = [{**ROW, "curve": "x" * 1_000}] * 200
        stored = await client.ask("PUT", "/reports/curves", json={"rows": rows})
        assert stored.status == 200
        # One that cannot be read hides no other.
        await store.redis.hset(store.keys.reports, mapping={b"damaged": b"{"})
        reports = {each["name"]: each for each in (await client.get("/reports")).json["reports"]}
        assert set(reports) == {"long", "curves"}
        assert reports["curves"] == stored.json
        assert {name: stored.json["rows"][0][name] for name in ROW} == ROW


async def test_no_more_are_kept_than_there_may_be_however_many_come_at_once(
    store_settings: StoreSettings, store: Store
) -> None:
    async with serving(store_settings) as (one, _):
        calls = (one.ask("PUT", f"/reports/r{k}", json={"rows": [ROW]}) for k in range(MOST_REPORTS + 10))
        answers = await asyncio.gather(*calls)
        assert sorted({each.status for each in answers}) == [200, 422]
        for each in answers:
            assert each.status == 200 or is_problem(each, 422, "too_many_reports")
        names = [each["name"] for each in (await one.get("/reports")).json["reports"]]
        assert len(names) == MOST_REPORTS
        # One that is there may be replaced, and one that goes makes room.
        assert (await one.ask("PUT", f"/reports/{names[0]}", json={"rows": [ROW]})).status == 200
        refused = await one.ask("PUT", "/reports/new", json={"rows": [ROW]})
        assert is_problem(refused, 422, "too_many_reports")
        assert (await one.ask("DELETE", f"/reports/{names[0]}")).json == {"deleted": 1}
        assert is_problem(await one.ask("DELETE", f"/reports/{names[0]}"), 404, "unknown_report")
        assert (await one.ask("PUT", "/reports/new", json={"rows": [ROW]})).status == 200
