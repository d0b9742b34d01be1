"""Reports of evaluations: what the command prints is kept, and no more than there is room for."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.reports import MOST_REPORTS
from tests.support.serving import is_problem, serving

ROW = {"data": "a.csv", "split": "random 1", "engine": "auto", "rmse": 0.9}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of `foldin evaluate --json` that have an engine, of a small world."""
    rng, file = np.random.default_rng(5), tmp_path_factory.mktemp("report") / "ratings.csv"
    lines = [f"u{p // 15},i{p % 15},{rng.integers(1, 6)}" for p in rng.permutation(300)[:200]]
    file.write_text("user,item,rating\n" + "\n".join(lines) + "\n")
    command = [
        sys.executable,
        "-m",
        "foldin",
        "evaluate",
        str(file),
        "--engines",
        "auto,global-mean",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = [row for row in rows if "engine" in row]
    assert {row["engine"] for row in found} == {"auto", "global-mean"}
    return found


async def test_what_the_command_prints_is_kept_as_far_as_it_is_shown(
    store_settings: StoreSettings, store: Store, printed: list[dict[str, Any]]
) -> None:
    async with serving(store_settings) as (client, _):
        stored = await client.ask("PUT", "/reports/mine", json={"rows": printed})
        assert stored.status == 200, stored.text
        # As many as a call takes, most of them as long as the longest.
        many = [*printed, *[max(printed, key=lambda row: len(json.dumps(row)))] * 200][:200]
        again = await client.ask("PUT", "/reports/many", json={"rows": many})
        assert again.status == 200, again.text
        await store.redis.hset(store.keys.reports, mapping={b"damaged": b"{"})
        reports = {each["name"]: each for each in (await client.get("/reports")).json["reports"]}
        assert reports["mine"] == stored.json
        for row, line in zip(stored.json["rows"], printed, strict=True):
            for name in ("data", "split", "engine", "rmse", "mae", "n_test"):
                assert row[name] == line[name]
        assert "damaged" not in reports
        assert is_problem(await client.ask("PUT", "/reports/none", json={"rows": []}), 422, "invalid_body")


async def test_what_is_too_long_to_keep_is_refused(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        rows = [{**ROW, "note": "x" * 320}] * 200
        refused = await client.ask("PUT", "/reports/long", json={"rows": rows})
        assert is_problem(refused, 413, "body_too_large")
        assert "64000" in refused.json["detail"]
        assert (await client.get("/reports")).json == {"reports": []}
        assert (await client.ask("PUT", "/reports/long", json={"rows": rows[:100]})).status == 200
        # What is not kept may be longer than that.
        rows = [{**ROW, "curve": "x" * 1_000}] * 200
        assert (await client.ask("PUT", "/reports/curves", json={"rows": rows})).status == 200


async def test_no_more_are_kept_than_there_may_be_however_many_come_at_once(
    store_settings: StoreSettings, store: Store
) -> None:
    async with serving(store_settings) as (one, _), serving(store_settings) as (other, _):
        calls = (
            each.ask("PUT", f"/reports/r{k}", json={"rows": [ROW]})
            for k in range(MOST_REPORTS + 10)
            for each in (one, other)
        )
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
