"""Charts show what the API says, with a table behind each; without the store each page says so."""

import asyncio
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from playwright.async_api import Route, expect

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import Point
from service.metrics import LATENCY_BOUNDS
from tests.browser.pages import BROWSER, Watched, browsing
from tests.support.factories import lead, opened, publish, rating
from tests.support.servers import StoreServer
from tests.support.serving import Client, serves, serving
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.slow, *BROWSER, pytest.mark.timeout(300)]
# Title -> the lines by what they are called and their field of `GET /history`, and the digits of a number.
CHARTS: dict[str, tuple[dict[str, str], int | None]] = {
    "Error of arriving ratings, each predicted before it was learned": (
        {"RMSE": "rmse", "what an unknown user is told": "baseline_rmse"},
        3,
    ),
    "Requests a second": ({"requests/s": "requests_per_s", "of these 5xx": "failures_per_s"}, 1),
    "Time to answer, trainings left out": ({"p50": "p50_s", "p99": "p99_s"}, None),
    "Ratings a second": ({"ratings/s": "ratings_per_s"}, 1),
    "Rating events that wait for the archive": ({"events": "lag"}, 0),
    "Memory": ({"workers": "workers_bytes", "store": "store_bytes", "trainer": "trainer_bytes"}, None),
}
# How far back the curves go, as the page has it and as it asks.
SPANS = {"3 h": "10800", "1 day": "86400", "7 days": "604800"}
# What is not known.
UNKNOWN = "\N{EN DASH}"
# What a number is told in.
UNITS = {"ms": 1e-3, "s": 1.0, "MB": 2.0**20, "GB": 2.0**30}


def is_shown(cell: str, value: float | None, digits: int | None) -> bool:
    if value is None or cell == UNKNOWN:
        return value is None and cell == UNKNOWN
    number, _, unit = cell.replace(",", "").partition(" ")
    factor = UNITS[unit] if digits is None else 1.0
    if digits is None:
        digits = 1 if unit in ("s", "GB") or (unit == "ms" and value < 0.01) else 0
    return abs(float(number) - value / factor) <= 0.5 * 10.0**-digits + 1e-9


async def tell(store: Store) -> None:
    now = time.time()
    for n in range(30):
        at, generation = now - 10.0 * (30 - n), 1 + n // 10
        latency = [0] * (len(LATENCY_BOUNDS) + 1)
        latency[3], latency[8] = 90 + n, 2
        for worker in ("worker-a", "worker-b"):
            point = Point(worker, "elsewhere", at, 10.0, requests=100 + n, failures=n % 3, latency=latency)
            point.ratings, point.generation, point.resident_bytes = 7 * n, generation, (200 + n) << 20
            # For a minute nothing arrives.
            if not 12 <= n < 18:
                point.errors, point.squared_error, point.baseline = 10, 4.0 + 0.1 * n, 11.0 + 0.01 * n
            await store.telemetry.add(point)
        trainer = Point("trainer", "elsewhere", at, 10.0, resident_bytes=5 << 30, lag=40 * n)
        trainer.store_bytes = (90 + n) << 20
        await store.telemetry.add(trainer)


async def test_the_table_behind_each_chart_has_what_the_api_says(
    client: Client, store: Store, watched: Watched
) -> None:
    page, answers = watched.page, dict[str, Any]()
    await tell(store)

    async def once(route: Route) -> None:
        # The answer of the service, the same one as long as the page is looked at.
        asked = route.request.url.partition("=")[2]
        if asked not in answers:
            answers[asked] = await (await route.fetch()).json()
        await route.fulfill(json=answers[asked])

    await page.route("**/history?seconds=*", once)
    await page.goto(f"{client.url}/#/overview")
    charts = page.locator("figure.chart")
    await expect(charts).to_have_count(len(CHARTS))
    await expect(charts.locator(".marks")).to_have_text(["dotted: generation 2, generation 3"])
    replicas, told = answers["300"]["replicas"], answers["900"]
    assert {"worker-a", "worker-b", "trainer"} <= {each["process"] for each in replicas}
    assert [row[:3] for row in await watched.cells("processes")] == [
        [each["process"], each["host"], str(each["generation"])] for each in replicas
    ]
    for title, (lines, digits) in CHARTS.items():
        chart = charts.filter(has=page.locator("figcaption", has_text=re.compile(f"^{re.escape(title)}$")))
        await expect(chart.locator(".u-legend .u-series")).to_have_count(1 + len(lines))
        labels = await chart.locator(".u-legend .u-label").all_inner_texts()
        await chart.get_by_text("the numbers").click()
        table = chart.get_by_role("region", name=f"{title}, as a table")
        await expect(table.locator("tbody tr")).to_have_count(len(told["at"]))
        heads = await table.locator("th").all_inner_texts()
        assert heads == labels == ["UTC", *lines]
        rows = [await row.locator("td").all_inner_texts() for row in await table.locator("tbody tr").all()]
        # The newest first.
        moments = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in told["at"]]
        assert [row[0] for row in reversed(rows)] == moments
        for place, name in enumerate(lines.values(), 1):
            values, cells = told[name], [row[place] for row in reversed(rows)]
            wrong = [each for each in zip(cells, values, strict=True) if not is_shown(*each, digits)]
            assert not wrong, f"{title}, {name}: {wrong}"
            # It is a curve that was asked for, with a gap before it.
            known = [value for value in values if value is not None]
            assert len(known) >= 20, name
            assert None in values, name
    assert await watched.violations() == []
    table = page.get_by_role("region", name="Ratings a second, as a table").locator("tbody tr")
    for span, seconds in SPANS.items():
        await page.get_by_role("link", name=span).click()
        await expect(page.get_by_role("link", name=span)).to_have_attribute("aria-current", "true")
        found = await wait_until_async(partial(answers.get, seconds), f"the curves of {span}")
        oldest = datetime.fromtimestamp(found["at"][0], UTC)
        await expect(table.last).to_contain_text(f"{oldest:%Y-%m-%d %H:%M}")
        await expect(table).to_have_count(len(found["at"]))
    assert watched.complaints == []


REFUSED, GONE = "The store does not answer: ratings are refused", "The feature store does not answer"
# What a page says without the store. That of the overview has what the worker still knows.
WITHOUT_STORE = {
    "overview": (REFUSED, "Something needs a look: generation 1 answers"),
    **dict.fromkeys(("users", "users/ann", "items", "items/dune", "quality", "generations"), (GONE,)),
    "data": ("whether there is a backup is not known",),
    "system": (REFUSED,),
}
# What only the store could tell.
NOT_KNOWN = (
    *("No user that begins so", "No rating of this user is known", "No item is known"),
    *("None was made yet", "No generation yet", "Nothing is known yet", "nothing of this item"),
    "cannot be shown",
)


async def test_without_the_store_each_page_says_so(
    own_server: StoreServer, store_settings: StoreSettings
) -> None:
    settings = replace(store_settings, url=own_server.url)
    async with opened(settings) as store:
        await store.items(1).register([b"dune", b"emma", b"0"])
        await store.ratings.append([rating("ann", "dune", 5.0)])
        await publish(store, await lead(store), n_items=3, users=[b"ann"])
    async with serving(settings) as (client, _), browsing() as watched:
        page = watched.page
        await serves(client, 1)
        await page.goto(f"{client.url}/")
        await expect(page.locator("#state")).to_have_text("live")
        await asyncio.to_thread(own_server.kill)
        await expect(page.locator("#state")).to_have_text("the store does not answer")
        for name, said in WITHOUT_STORE.items():
            await page.goto("about:blank")
            await page.goto(f"{client.url}/#/{name}")
            for text in said:
                await expect(page.locator("main"), name).to_contain_text(text)
            await expect(page.locator("#state")).to_have_text("the store does not answer")
            text = await page.locator("main").inner_text()
            assert not [each for each in NOT_KNOWN if each in text], f"{name}: {text}"
