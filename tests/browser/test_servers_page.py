"""The servers of the store on the page System, and what is wrong with them."""

import time

import pytest
from playwright.async_api import Route, expect

from featurestore.store import Store
from featurestore.telemetry.points import Point
from featurestore.telemetry.servers import StoreReplica, StoreServer
from tests.browser.pages import BROWSER, Watched
from tests.support.serving import Client

pytestmark = [pytest.mark.slow, *BROWSER, pytest.mark.timeout(240)]


async def test_the_servers_of_a_cluster_are_shown_with_what_is_wrong(
    client: Client, store: Store, watched: Watched
) -> None:
    servers = [
        StoreServer("ten:1", 8_000, used_bytes=3 << 20, replicas=[StoreReplica("ten:2", True, 1 << 20)]),
        StoreServer("ten:3", 8_000, used_bytes=1 << 20, limit_bytes=9 << 20),
        StoreServer("ten:5", 384, answers=False),
    ]
    point = Point("trainer", "elsewhere", time.time(), 10.0, servers=servers)
    await store.telemetry.add(point)
    page = watched.page
    await page.goto(f"{client.url}/#/system")
    shown = page.get_by_role("region", name="servers").locator("tbody tr")
    await expect(shown).to_have_count(3, timeout=20_000)
    cells = [await row.locator("td").all_inner_texts() for row in await shown.all()]
    assert cells[0] == ["ten:1", "8,000", "3 MB", "none", "ten:2: 1 MB behind"]
    assert cells[1] == ["ten:3", "8,000", "1 MB", "9 MB", "none"]
    assert cells[2][2] == "does not answer"
    await expect(page.get_by_text("1.5 times the mean")).to_be_visible()
    wrong = page.get_by_role("region", name="what is wrong")
    await expect(wrong).to_contain_text("ten:3 of the cluster has no replica")
    await expect(wrong).to_contain_text("ten:5 of the cluster does not answer for its 384 slots")
    assert watched.complaints == []


async def test_an_earlier_release_that_tells_of_no_servers_keeps_nothing_else_from_being_shown(
    client: Client, watched: Watched
) -> None:
    page = watched.page

    async def without(route: Route) -> None:
        told = await (answer := await route.fetch()).json()
        await route.fulfill(response=answer, json={key: told[key] for key in told if key != "servers"})

    await page.route("**/history*", without)
    await page.goto(f"{client.url}/#/system")
    # Of what came with the answer.
    await expect(page.get_by_role("region", name="tasks")).to_be_visible(timeout=20_000)
    assert watched.complaints == []
