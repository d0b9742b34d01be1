"""Users and items on the page: what is listed, found, typed and rated belongs to the row where it stands."""

from pathlib import Path

import pytest
from playwright.async_api import expect

from featurestore.settings import StoreSettings
from tests.browser.pages import BROWSER, Watched
from tests.support.serving import Client, serving
from tests.support.trainers import running_trainer
from trainer.settings import TrainerSettings

pytestmark = [pytest.mark.slow, *BROWSER]


async def test_a_recommendation_is_explained_by_the_keyboard_alone(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    await expect(page.locator("#cards")).to_be_visible()

    async def tab_to(name: str) -> None:
        """Go on by Tab until what has the focus has this name."""
        for _ in range(40):
            await page.keyboard.press("Tab")
            found = page.locator(":focus")
            # What has the focus can be seen to have it.
            assert await found.evaluate("it => getComputedStyle(it).outlineStyle") != "none"
            label = await found.evaluate("it => it.labels?.[0]?.innerText || it.innerText || ''")
            if label.startswith(name):
                return
        raise AssertionError(f"{name} cannot be reached by Tab")

    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.reload()
    await tab_to("Users")
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await tab_to("User")
    await page.keyboard.type("an")
    # Which waits for the end of the typing: who goes on at once is past the place where the users will stand.
    await expect(page.locator(".found a")).to_have_text(["ann"])
    await tab_to("ann")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("ann")
    first = page.get_by_role("region", name="recommended").locator("button.quiet").first
    await expect(first).to_be_visible()
    await tab_to(await first.inner_text())
    await page.keyboard.press("Enter")
    await expect(first).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".why .bars").first).to_contain_text("dune")
    assert watched.complaints == []


async def test_a_store_of_events_alone_is_told_by_its_events(
    store_settings: StoreSettings, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    events = [
        {"user_id": f"u{user}", "item_id": f"i{user % 3 + 3 * item}", "type": "purchase"}
        for user in range(30)
        for item in range(user % 5 + 1)
    ]
    trainer = TrainerSettings(store=store_settings, archive_dir=tmp_path / "archive")
    async with running_trainer(trainer), serving(store_settings) as (client, _):
        assert (await client.post("/events", events)).status == 200
        assert (await client.post("/train")).status == 200
        await page.goto(f"{client.url}/")
        cards = page.locator("#cards")
        await expect(cards).to_contain_text("30")
        await expect(cards).not_to_contain_text("the first fit comes")
        await page.goto(f"{client.url}/#/items")
        await expect(page.locator("main")).to_contain_text("By the weight of positive events")
        loved = page.get_by_role("region", name="most loved items")
        await expect(loved.locator("tbody tr").first).to_contain_text("10.00")
        assert await watched.violations() == []
        await page.goto(f"{client.url}/#/items/i0")
        await expect(page.locator("main")).to_contain_text("positive events")
        await expect(page.get_by_role("region", name="similar items")).to_contain_text("i3")
        await page.goto(f"{client.url}/#/users/u1")
        await page.get_by_role("region", name="recommended").get_by_role("button", name="why?").first.click()
        why = page.locator(".why")
        await expect(why).to_contain_text("Relevance")
        # Nothing is said to come of ratings, as there are none.
        await expect(why).not_to_contain_text("Expected rating")
    assert watched.complaints == []
