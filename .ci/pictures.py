"""Takes the pictures of the dashboard that the documents have, into docs/pictures: `make pictures`.

A stack of its own has films with titles, users with tastes, two fits and calls; each page is taken once it
shows what it is for. Prints what the first page weighs, when it shows something, and what axe finds in all
pages.
"""

import asyncio
import gzip
import itertools
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  # the path first
from PIL import Image  # noqa: E402
from playwright.async_api import Page, Response, expect  # noqa: E402

from tests.browser.pages import browsing  # noqa: E402
from tests.support.stacks import Stack, stack  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402

USERS, ITEMS = 150, 48
MOST_COLOURS = 256  # of a PNG with a palette
# Processes tell of themselves every ten seconds; curves of a picture have more than two points.
PLAYED_S = 60.0
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


async def picture(page: Page, name: str, *, most_px: int = 10_000) -> None:
    """Take the `most_px` upper pixels of the page, of few colours and so of few bytes."""
    # Without a mark of where the focus happens to be.
    await page.evaluate("document.activeElement?.blur()")
    taken: Image.Image = Image.open(BytesIO(await page.screenshot(full_page=True)))
    taken = taken.crop((0, 0, taken.width, min(most_px, taken.height)))
    _of_few_colours(taken).save(ROOT / f"docs/pictures/{name}.png", optimize=True)


async def open_first(page: Page, url: str) -> None:
    """Open the first page, and print what its files weigh and when it shows something."""
    answers: list[Response] = []

    # A built-in method is none that Playwright takes.
    def note(answer: Response) -> None:
        answers.append(answer)

    page.on("response", note)
    await page.goto(f"{url}/")
    await expect(page.locator(".u-legend").first).to_be_visible(timeout=20_000)
    files = [each for each in answers if each.url == f"{url}/" or "/static/" in each.url]
    weight = sum([len(gzip.compress(await each.body())) for each in files])
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    print(
        f"first page: {len(files)} files, {weight / 1024:.0f} KB gzipped; first contentful paint after",
        end=" ",
    )
    print(f"{await page.evaluate(paint):.0f} ms")


async def main(folder: Path) -> None:
    """Bring a stack up, let it learn, and take every page."""
    file, world = folder / "more.csv", World()
    rows = [world.rating(*pair).values() for pair in world.pairs()[:500]]
    file.write_text("\n".join(("userId,movieId,rating", *(",".join(map(str, row)) for row in rows))), "utf-8")
    with stack(folder / "data", "--no-play") as up:
        await asyncio.to_thread(learn, up)
        async with browsing(color_scheme="light") as watched:
            page, found = watched.page, Counter[str]()
            await open_first(page, up.url)
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
                found.update(each.split()[0] for each in await watched.violations())
                await picture(page, f"dashboard-{name.replace('/', '-')}", most_px=most_px)
                if name == "users":
                    await page.get_by_role("region", name="recommended").locator("button.quiet").first.click()
                    await expect(page.locator(".why")).to_be_visible()
                    await picture(page, "why", most_px=1_400)
            print("findings of axe:", dict(found) or "none")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="foldin-pictures-") as given:
        asyncio.run(main(Path(given)))
