"""A browser that watches what a page complains of and where it asks; shared by the tests of pages."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_playwright_python.async_playwright import Axe
from PIL import Image
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
MOST_COLOURS = 256  # of a PNG with a palette
# Pictures of the pages for the documents are made where this names a folder.
PICTURES = os.environ.get("FOLDIN_TEST_PICTURES")


class Watched:
    """A page, what it complained of, and where it asked."""

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
        """What axe-core finds that people would stumble over, be it a little."""
        found = (await Axe().run(self.page)).response["violations"]
        return [f"{each['impact']} {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]

    async def overflows(self) -> bool:
        """Whether the page is wider than its window, so that people would have to move it to and fro."""
        return bool(
            await self.page.evaluate(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
        )

    async def picture(self, name: str, *, most_px: int = 10_000) -> None:
        """Take a picture for the documents, of the `most_px` upper pixels of the page, of few colours and so
        of few bytes.
        """
        if PICTURES is not None:
            # Without a mark of where the focus happens to be.
            await self.page.evaluate("document.activeElement?.blur()")
            taken: Image.Image = Image.open(BytesIO(await self.page.screenshot(full_page=True)))
            taken = taken.crop((0, 0, taken.width, min(most_px, taken.height)))
            _of_few_colours(taken).save(Path(PICTURES) / f"{name}.png", optimize=True)


def _of_few_colours(taken: Image.Image) -> Image.Image:
    """Return a picture with its most frequent colours as they are, each other one as the nearest of these.
    Pillow's own way takes averages, and so gives a tint to what is white.
    """
    pixels = np.asarray(taken.convert("RGB"), dtype=np.int64)
    codes, where, counts = np.unique(
        pixels @ np.array([65_536, 256, 1]), return_inverse=True, return_counts=True
    )  # a number a colour
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    kept = colours[np.argsort(-counts)[:MOST_COLOURS]]
    nearest = ((colours[:, None] - kept) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    drawn = Image.fromarray(nearest[where].reshape(pixels.shape[:2]))
    drawn.putpalette(kept.astype(np.uint8).tobytes())
    return drawn


@asynccontextmanager
async def browsing(**options: Any) -> AsyncIterator[Watched]:
    """A page of a new browser; `options` are those of a context of Playwright."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            context = await browser.new_context(**{"viewport": WIDE, **options})
            yield Watched(await context.new_page())
        finally:
            await browser.close()
