"""A store with titles, tastes, two fits and calls: every page of the dashboard shows what it is for, and the
manual has its picture (`FOLDIN_TEST_PICTURES`).
"""

import asyncio
import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import expect

from tests.browser.pages import BROWSER, PICTURES, browsing
from tests.support.stacks import Stack, stack
from tests.support.waiting import wait_until

# It starts its own store.
pytestmark = [pytest.mark.slow, BROWSER[0], BROWSER[1], pytest.mark.timeout(300)]
USERS, ITEMS = 150, 48
# Processes tell of themselves every ten seconds; curves of a picture have more than two points.
PLAYED_S = 60.0 if PICTURES else 15.0
# Of made-up films: a first word and a second one.
FIRST = ("Silent", "Last", "Golden", "Hidden", "Broken", "Distant", "Winter", "Paper")
SECOND = ("Harbour", "Letter", "Garden", "Signal", "Mountain", "Train")
GENRES = ("drama", "comedy", "thriller", "science fiction")
# Address of a page, what it has once it is whole, and how many upper pixels its picture has:
# below them are long tables, and settings of the machine.
PAGES = {
    "overview": (".u-legend", 2_000),
    "users": ("[aria-label=recommended] .interval", 900),
    "items": ("[aria-label='most loved items'] td", 900),
    "items/film7": ("[aria-label='similar items'] td", 2_000),
    "quality": ("[aria-label=calibration]", 1_200),
    "generations": ("h2 >> text=beside", 900),
    "data": ("#found", 2_000),
    "system": ("[aria-label=settings] td", 660),
}


class World:
    """Users, films and what they think of each other, in half stars."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self._taste = self.rng.normal(size=(USERS, 2))
        self._kind = self.rng.normal(size=(ITEMS, 2))

    def rating(self, user: int, item: int) -> dict[str, object]:
        value = 3.2 + self._taste[user] @ self._kind[item] + 0.3 * self.rng.normal()
        stars = float(np.clip(np.round(2 * value) / 2, 0.5, 5.0))
        return {"user_id": f"reader{user}", "item_id": f"film{item}", "rating": stars}

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs, what users like sooner."""
        when = self.rng.gumbel(size=(USERS, ITEMS)) + self._taste @ self._kind.T
        order = np.argsort(-when, axis=None).tolist()
        return [(pair // ITEMS, pair % ITEMS) for pair in order]


def learn(up: Stack) -> None:
    """Films and ratings, two fits, and calls and ratings for `PLAYED_S`."""
    world = World()
    films = [
        {
            "item_id": f"film{n}",
            "title": f"The {FIRST[n % 8]} {SECOND[n // 8]}",
            "categories": [GENRES[n % 4]],
            "attributes": {"year": 1960 + n},
            "available_from": f"{2000 + n % 20}-01-31",
        }
        for n in range(ITEMS)
    ]
    up.call("POST", "/items", films)
    up.call("PUT", "/scale", {"low": 0.5, "high": 5.0, "step": 0.5})
    pairs = world.pairs()
    up.call("POST", "/ratings", [world.rating(*pair) for pair in pairs[:4_500]])
    wait_until(lambda: up.call("GET", "/status")["ratings"] >= 4_500, "the first fit")
    rest, ends = iter(pairs[4_500:]), time.monotonic() + PLAYED_S
    while time.monotonic() < ends and (pair := next(rest, None)) is not None:
        up.call("GET", f"/predict?user_id=reader{pair[0]}&item_id=film{pair[1]}")
        up.call("GET", f"/recommend/reader{pair[0]}?n=5&impressions=true")
        up.call("POST", "/ratings", world.rating(*pair))
        time.sleep(0.1)
    # Of the newest half of these are judged by: with 200 calibration is told.
    up.call("POST", "/ratings", [world.rating(*pair) for pair in itertools.islice(rest, 600)])
    receipt = up.call("POST", "/train?wait=0")["receipt"]
    wait_until(lambda: up.call("GET", f"/train/{receipt}")["state"] == "done", "the last fit")
    # What comes of the lists of the fit that is live.
    for user in range(60):
        items = up.call("GET", f"/recommend/reader{user}?n=5&impressions=true")["items"]
        if items and user % 3:
            event = {"user_id": f"reader{user}", "item_id": items[0]["item_id"], "type": "purchase"}
            up.call("POST", "/events", event)


async def test_every_page_shows_what_it_is_for(tmp_path: Path) -> None:
    file, world = tmp_path / "more.csv", World()
    rows = [world.rating(*pair).values() for pair in world.pairs()[:500]]
    file.write_text("\n".join(("userId,movieId,rating", *(",".join(map(str, row)) for row in rows))), "utf-8")
    running = stack(tmp_path / "data", "--no-play")
    up = await asyncio.to_thread(running.__enter__)
    try:
        await asyncio.to_thread(learn, up)
        async with browsing(color_scheme="light") as watched:
            page = watched.page
            for name, (there, most_px) in PAGES.items():
                await page.goto(f"{up.url}/#/{name}")
                if name == "users":
                    await page.fill("#user", "reader7")
                    await page.click(".found a")
                elif name == "generations":
                    for n in (0, 1):
                        await page.get_by_role("checkbox").nth(n).check()
                elif name == "data":
                    await page.set_input_files("#file", file)
                    await page.click("#check")
                await expect(page.locator(there).first).to_be_visible(timeout=20_000)
                if name == "quality":
                    shown = page.locator(".card", has_text="positive rate")
                    await expect(shown).to_contain_text("(95 %)")
                    await expect(shown).to_contain_text(re.compile(r"rate[^0]"))
                await watched.picture(f"dashboard-{name.replace('/', '-')}", most_px=most_px)
                if name == "users":
                    await page.get_by_role("region", name="recommended").locator("button.quiet").first.click()
                    await expect(page.locator(".why")).to_contain_text("without this user's ratings")
                    await watched.picture("why")
            assert watched.complaints == []
            assert watched.asked_only(up.url)
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
