"""Users and items on the page: what is listed, found, typed and rated belongs to the row where it stands."""

import pytest
from playwright.async_api import expect

from tests.browser.pages import BROWSER, Watched
from tests.support.serving import Client

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
