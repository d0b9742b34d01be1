"""Each page of the dashboard says what is missing where the store is gone, or nothing was fitted yet; and
never that there is nothing where it cannot know.
"""

import asyncio
from dataclasses import replace

import pytest
from playwright.async_api import expect

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.browser.pages import BROWSER, browsing
from tests.support.factories import lead, publish, rating
from tests.support.servers import StoreServer
from tests.support.serving import serves, serving

pytestmark = [pytest.mark.slow, *BROWSER[:2], pytest.mark.timeout(300)]
REFUSED, GONE = "The store does not answer: ratings are refused", "The feature store does not answer"
# What a page says without the store. That of the overview has what the worker still knows.
WITHOUT_STORE = {
    "overview": (REFUSED, "Something needs a look: generation 1 answers"),
    "users": (GONE,),
    "users/ann": (GONE,),
    "items": (GONE,),
    "items/dune": (GONE,),
    "quality": (GONE,),
    "generations": (GONE,),
    "data": ("not known while the store does not answer",),
    "system": (REFUSED,),
}
# What only the store could tell.
NOT_KNOWN = (
    *(
        "No user that begins so",
        "No rating of this user is known",
        "The catalogue is empty",
        "None was made yet",
    ),
    *("No generation yet", "Nothing is known yet", "nothing of this item", "cannot be shown"),
)
FIRST = "the first is made from 100 ratings or other events on"
WITHOUT_GENERATION = {
    "overview": ("Nothing is known yet. Three ways to begin", "Choose a file"),
    "users": ("No model is live yet",),
    "users/ann": ("No model is live yet",),
    "items": ("The catalogue is empty", "No model is live yet"),
    "items/dune": ("No model is live yet",),
    "quality": (f"No generation yet: {FIRST}",),
    "generations": (f"No generation yet: {FIRST}",),
    "data": ("Load a file", "None was made yet"),
    "system": ("This API asks for no key", "Settings in force"),
}


async def test_without_the_store_each_page_says_so(
    own_server: StoreServer, store_settings: StoreSettings
) -> None:
    settings = replace(store_settings, url=own_server.url)
    store = await Store.open(settings)
    lease = await lead(store, ttl_ms=600_000)
    await store.items(1).register([b"dune", b"emma", b"0"])
    await store.ratings.append([rating("ann", "dune", 5.0)])
    await publish(store, lease, n_items=3, users=[b"ann"])
    await store.close()
    async with serving(settings) as (client, _), browsing() as watched:
        page = watched.page
        await serves(client, 1)
        await page.goto(f"{client.url}/")
        await expect(page.locator("#state")).to_have_text("live")
        await asyncio.to_thread(own_server.kill)
        await expect(page.locator("#state")).to_have_text("the store does not answer", timeout=30_000)
        for name, said in WITHOUT_STORE.items():
            await page.goto("about:blank")
            await page.goto(f"{client.url}/#/{name}")
            for text in said:
                await expect(page.locator("main"), name).to_contain_text(text, timeout=60_000)
            await expect(page.locator("#state")).to_have_text("the store does not answer", timeout=30_000)
            text = await page.locator("main").inner_text()
            assert not [each for each in NOT_KNOWN if each in text], f"{name}: {text}"
            assert await watched.violations() == [], name


async def test_without_a_generation_each_page_says_what_makes_the_first(
    store_settings: StoreSettings,
) -> None:
    async with serving(store_settings) as (client, _), browsing() as watched:
        page = watched.page
        for name, said in WITHOUT_GENERATION.items():
            await page.goto("about:blank")
            await page.goto(f"{client.url}/#/{name}")
            for text in said:
                await expect(page.locator("main"), name).to_contain_text(text, timeout=60_000)
            await expect(page.locator("main")).not_to_contain_text("cannot be shown")
            await expect(page.locator("#state")).to_have_text("no generation yet")
