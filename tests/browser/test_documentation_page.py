"""The description of the API can be read and tried by everybody: on a phone, in light and dark, by keys."""

import pytest
from playwright.async_api import expect

from tests.browser.pages import BROWSER, PHONE, browsing
from tests.support.serving import Client

pytestmark = [pytest.mark.slow, *BROWSER, pytest.mark.timeout(300)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_used_by_everybody_and_on_a_phone(client: Client, scheme: str) -> None:
    async with browsing(viewport=PHONE, color_scheme=scheme) as watched:
        page = watched.page
        await page.goto(f"{client.url}/docs")
        await expect(page.locator(".opblock").first).to_be_visible(timeout=20_000)
        await expect(page.locator("#problems tbody tr").first).to_be_attached()
        assert await watched.violations() == []
        assert not await watched.overflows()
        # Of each kind one that is open: its fields and what was answered, too.
        for method, path in (("post", "/ratings"), ("get", "/livez"), ("delete", "/users/{user_id}")):
            call = page.locator(f".opblock-{method}").filter(
                has=page.locator(f'.opblock-summary-path[data-path="{path}"]')
            )
            await call.locator(".opblock-summary-control").click()
            await expect(call.locator(".execute")).to_be_visible(timeout=20_000)
            if method == "get":
                await call.locator(".execute").click()
                await expect(call.locator(".live-responses-table").first).to_contain_text(
                    '"alive": true', timeout=20_000
                )
            assert await watched.violations() == [], path
            assert not await watched.overflows(), path
        assert await page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme
        assert watched.complaints == []
        assert watched.asked_only(client.url)
