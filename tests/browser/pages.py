"""A browser that watches what a page complains of and where it asks; shared by the tests of pages."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, Response, ViewportSize, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What a page shows does not depend on the kind of store.
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="needs a Chromium on the path"),
]
# It would look for its own updates.
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=390, height=844)


class Watched:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.refused: set[str] = set()
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("response", self._note)

    def _note(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.add(f"{response.status} {urlsplit(response.url).path}")

    def asked_only(self, url: str) -> bool:
        return all(asked.startswith((f"{url}/", "blob:", "data:")) for asked in self.asked)

    async def violations(self) -> list[str]:
        found = (await Axe().run(self.page)).response["violations"]
        return [f"{each['impact']} {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]

    async def cells(self, table: str) -> list[list[str]]:
        """Return the texts of a table; in place of the name of an item its id."""
        shown: list[list[str]] = await self.page.get_by_role("region", name=table, exact=True).evaluate(
            """(it) => [...it.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) =>
              cell.querySelector("a[title], .quiet[title]")?.title ?? cell.innerText))"""
        )
        return shown

    async def taken(self, name: str) -> None:
        """Write a picture into the folder that `FOLDIN_TEST_PICTURES` names, if it names one."""
        if folder := os.environ.get("FOLDIN_TEST_PICTURES"):
            await self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    async def overflows(self) -> bool:
        wider = "(it) => it.scrollWidth > it.clientWidth"
        return bool(await self.page.locator("html").evaluate(wider))


@asynccontextmanager
async def browsing(*flags: str, **options: Any) -> AsyncIterator[Watched]:
    """A page of a new browser with these flags; `options` are those of a context of Playwright."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *flags])
        try:
            context = await browser.new_context(**{"viewport": WIDE, **options})
            yield Watched(await context.new_page())
        finally:
            await browser.close()
