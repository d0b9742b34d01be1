"""The pages in a real browser: they tell what is live, follow it, and load nothing from anywhere else."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright, expect

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.serving import Client, serving
from tests.support.small_trainer import serving_with_trainer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="needs a Chromium on the path"),
    # What a page shows does not depend on the kind of store.
    pytest.mark.parametrize("store_server", ["redis"], indirect=True),
]
# It would look for its own updates.
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
async def client(store_settings: StoreSettings, store: Store) -> AsyncIterator[Client]:
    ratings = [rating("ann", "dune", 5.0), rating("bob", "emma", 2.0)]
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann", b"bob"]) as client:
        yield client


class Watched:
    """A page, what it complained of, and where it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))

    def asked_only(self, url: str) -> bool:
        return all(asked.startswith(f"{url}/") for asked in self.asked)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield Watched(await browser.new_page())
        await browser.close()


async def test_the_page_tells_what_is_live_and_follows_it(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    cards = page.locator("#cards")
    await expect(page.locator("#state")).to_have_text("live")
    await expect(cards).to_contain_text("generation1epoch 1")
    answer = await client.post("/ratings", {"user_id": "eve", "item_id": "dune", "rating": 4})
    assert answer.status == 200
    await expect(cards).to_contain_text("1 since the start")
    assert (await client.post("/train")).status == 200
    await expect(cards).to_contain_text("generation2epoch 1")
    assert watched.complaints == []
    assert watched.asked_only(client.url)


async def test_the_page_says_when_no_service_answers(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    await expect(page.locator("#state")).to_have_text("live")
    await page.route("**/status", lambda route: route.abort())
    await expect(page.locator("#state")).to_contain_text("no answer")


async def test_the_documentation_shows_every_call_and_every_code(client: Client, watched: Watched) -> None:
    page = watched.page
    description = (await client.get("/openapi.json")).json
    await page.goto(f"{client.url}/docs")
    calls = page.locator("#calls")
    for path in description["paths"]:
        await expect(calls).to_contain_text(path)
    for code in description["x-problems"]:
        await expect(page.locator("main")).to_contain_text(code)
    await page.locator("summary", has_text="/predict").first.click()
    await expect(page.locator("details[open]").first).to_contain_text("user_id")
    assert watched.complaints == []
    assert watched.asked_only(client.url)


async def test_the_page_asks_for_a_key_where_the_api_does(
    store_settings: StoreSettings, store: Store, client: Client, watched: Watched
) -> None:
    secret, page = new_secret(), watched.page
    await store.access.add(secret, "viewer", "read")
    async with serving(store_settings) as (closed, _):
        await page.goto(f"{closed.url}/")
        await expect(page.locator("#state")).to_have_text("a key is needed")
        await page.goto(f"{closed.url}/docs")
        await page.locator("summary", has_text="/train").first.click()
        await expect(page.locator("details[open]").first).to_contain_text("a key with the role operate")
        await page.goto(f"{closed.url}/")
        await page.fill("#key", new_secret())
        await page.click("#login button")
        await expect(page.locator("#refused")).to_have_text("This key is not known.")
        await page.fill("#key", f" {secret}\n")
        await page.click("#login button")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("#login")).to_be_hidden()
        await expect(page.locator("#ask")).to_contain_text("Bearer $KEY")
        assert secret not in await page.content()
        await page.click("nav a[href='/generations']")
        await expect(page.locator("#shown")).to_contain_text('"live": 1')
        # It is there after a reload, and kept by nothing that outlives the tab.
        await page.reload()
        await expect(page.locator("#state")).to_have_text("live")
        assert await page.evaluate("localStorage.length") == 0
        assert await page.context.cookies() == []
        assert watched.asked_only(closed.url)
        assert not any(secret in url for url in watched.asked)
        # What the browser says of each answer of 401, and nothing else.
        assert all("401" in complaint for complaint in watched.complaints)
