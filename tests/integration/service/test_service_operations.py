"""What operators see and change beside the model."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from featurestore.telemetry.points import Point
from service.context import CONTEXT
from service.telemetry.reporter import Reporter
from tests.support.serving import SHARED, Client, Served, is_problem, serving

pytestmark = SHARED


@pytest.fixture(scope="module")
def client(asked: Served) -> Client:
    return asked[0]


async def all_users(client: Client, query: str) -> set[str]:
    """Go from page to page: a store with the users of others, too, has some on each."""
    seen: set[str] = set()
    path = f"/users?{query}"
    while path:
        page = (await client.get(path)).json
        seen.update(page["users"])
        path = f"/users?{query}&cursor={page['next']}" if page["next"] else ""
    return seen


async def test_users_are_found_by_how_ids_begin_and_ratings_are_exported(client: Client) -> None:
    ids = [*(f"u*{n}" for n in range(30)), "anna", "an\0na", "änn"]
    rows = [
        {"user_id": user_id, "item_id": f"item-{n % 7}", "rating": 1 + n % 5, "timestamp": 1e9 + n}
        for n, user_id in enumerate(ids)
    ]
    assert (await client.post("/ratings", rows)).status == 200
    assert await all_users(client, "prefix=an") == {"an\0na", "ann", "anna"}
    # The very id comes first; what would be a pattern is a text.
    assert (await client.get("/users?prefix=ann")).json["users"][0] == "ann"
    assert await all_users(client, "prefix=u*&n=1000") == {f"u*{n}" for n in range(30)}
    assert await all_users(client, "prefix=%3F") == set()
    assert await all_users(client, "prefix=%C3%A4") == {"änn"}
    is_problem(await client.get("/users?cursor=x"), 400, "invalid_parameter")
    assert set(ids) <= await all_users(client, "n=1")
    reply = await client.get("/export/ratings")
    lines = {line["user_id"]: line for line in map(json.loads, reply.text.splitlines())}
    assert [lines[row["user_id"]] for row in rows] == rows


async def test_a_worker_tells_what_it_did_since(asked: Served, shared_store: Store) -> None:
    client, app = asked
    reporter = Reporter(app[CONTEXT], "here")
    # What other tests did.
    await app[CONTEXT].rating_errors.count()
    await reporter.tell()
    for n in range(5):
        await client.post("/ratings", {"user_id": "told", "item_id": f"item-{n}", "rating": 1 + n})
    await app[CONTEXT].rating_errors.count()
    await reporter.tell()
    assert (await client.get("/status", headers={"Origin": "http://evil.example"})).status == 403
    app[CONTEXT].counts.exceptions += 1
    await reporter.tell()
    own = [point for point in await shared_store.telemetry.read(600) if point.host == "here"]
    first, second = own[-2:]
    assert (first.requests, first.ratings, first.errors, second.requests) == (5, 5, 5, 1)
    # The first rating finds the user unknown: both are told the same.
    assert min(first.squared_error, first.baseline, first.store_bytes) > 0
    assert (first.turned_away, first.mistakes, second.turned_away, second.mistakes) == (0, 0, 1, 1)
    assert sum(first.latency) == 5
    assert first.lag >= 0
    history = (await client.get("/history?seconds=600")).json
    assert all(any(history[name]) for name in ("requests_per_s", "turned_away_per_s", "mistakes_per_s"))
    assert "here" in [each["host"] for each in history["replicas"]]
    is_problem(await client.get("/history?seconds=1"), 400, "invalid_parameter")


async def test_kept_points_are_bounded(shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.telemetry.points.MOST_POINTS", 150)
    for n in range(400):
        await shared_store.telemetry.add(Point("worker 0", "full", float(n), 10.0))
    kept = await shared_store.telemetry.read(600)
    newest = [point.at for point in kept if point.host == "full"]
    assert (len(kept), newest) == (150, list(range(400 - len(newest), 400)))


async def test_the_manual_is_served_and_nothing_else_of_the_disk(
    shared_settings: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "manual"
    (tmp_path / "secret.html").write_text("secret")
    async with serving(shared_settings, manual_dir=folder) as (client, _):
        # Without one it says how to build it; links of the dashboard lead to its pages.
        for name in ("", "/", "/alerts.html", "/how-to/"):
            found = await client.get(f"/manual{name}")
            assert (found.status, "make docs" in found.text) == (200, True)
        file = await client.get("/manual/_static/theme.css")
        assert (file.status, file.json["code"]) == (404, "not_found")
        (folder / "how-to").mkdir(parents=True)
        (folder / "searchindex.js").write_text("Search.setIndex({})")
        (folder / "how-to/index.html").write_text("how to")
        (folder / "objects.inv").write_bytes(b"of no use to a browser")
        for built, text in enumerate(("first", "second")):
            # A new build is there without a restart.
            (folder / "index.html").write_text(text)
            os.utime(folder / "searchindex.js", ns=(0, 1 + built))
            page = await client.get("/manual/")
            assert (page.text, page.headers["Content-Type"]) == (text, "text/html; charset=utf-8")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = await client.get("/manual/", headers={"If-None-Match": page.headers["ETag"]})
        assert (again.status, again.text) == (304, "")
        for name in ("how-to/", "how-to/index.html"):
            assert (await client.get(f"/manual/{name}")).text == "how to"
        for name in ("objects.inv", "nothing.html", "how-to", "../secret.html", "..%2fsecret.html", "%00"):
            assert (await client.get(f"/manual/{name}")).status == 404, name
