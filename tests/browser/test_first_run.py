"""The first minutes with a file of half stars: it is loaded by the page, a recommendation is explained and
rated, and an older generation made live, on a stack of its own."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import expect

from tests.browser.pages import BROWSER, PHONE, WIDE, Watched
from tests.support.examples import ran
from tests.support.stacks import Stack, local_stack
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.slow, *BROWSER, pytest.mark.timeout(300)]
MOVIES = tuple(f"Movie{letter}" for letter in "ABCDEFGHIJKL")


def half_stars(path: Path) -> Path:
    """200 ratings of 25 users, in half stars, which depend on a taste and on the movie."""
    rng = np.random.default_rng(3)
    taste, kind = rng.normal(size=25), rng.normal(size=len(MOVIES))
    rows = ["customer,sku,stars,when"]
    for user in range(25):
        for movie in rng.permutation(len(MOVIES))[:8].tolist():
            value = 3.0 + 1.2 * taste[user] * kind[movie] + 0.3 * rng.normal()
            stars = np.clip(np.round(2 * value) / 2, 0.5, 5.0)
            rows.append(f"reader{user},{MOVIES[movie]},{stars},{1_700_000_000 + user}")
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


async def test_from_an_empty_page_to_a_recommendation_and_back(tmp_path: Path, watched: Watched) -> None:
    async with local_stack(tmp_path / "mine") as up:
        program = await load(up, watched, half_stars(tmp_path / "half-stars.csv"))
        await explain_and_rate(up, watched)
        await step_back(up, watched)
        await watched.taken("5-stepped-back")
        # Five lines of the first page, without the one that says how to install the client.
        assert len([line for line in program.splitlines() if line and not line.startswith("#")]) == 5
        assert re.match(r"[\d.]+\n\[.*item_id=", await ran(program))
        assert watched.complaints == []
        assert watched.asked_only(up.url)


async def load(up: Stack, watched: Watched, file: Path) -> str:
    """Return the program of the first page."""
    page = watched.page
    await page.goto(f"{up.url}/")
    await expect(page.locator("#state")).to_have_text("nothing learned yet")
    await watched.taken("1-empty")
    program = await page.locator(".welcome pre", has_text="import Client").inner_text()
    await page.click(".ways .button")
    await page.set_input_files("#file", file)
    await page.click("#check")
    found = page.locator("#found")
    await expect(found).to_contain_text("200 ratings of 25 users for 12 items, from 0.5 to 5")
    # No scale was told: it is what the file has.
    for name, value in (("low", "0.5"), ("high", "5"), ("step", "0.5")):
        await expect(page.locator(f"#scale-{name}")).to_have_value(value)
    assert await watched.violations() == []
    await watched.taken("2-checked")
    # It may be changed, yet not so that ratings of the file would lie outside.
    load = found.get_by_role("button", name="Load 200 ratings")
    await page.fill("#scale-low", "1")
    await expect(found).to_contain_text("Not all ratings of the file are on it.")
    await expect(load).to_be_disabled()
    await page.fill("#scale-low", "0")
    await load.click()
    await expect(page.locator("#sent")).to_have_text("200 of 200 are stored.")
    await wait_until_async(
        lambda: asyncio.to_thread(up.call, "GET", "/status"),
        "the first fit, of all that was loaded",
        lambda status: status["ratings"] == 200 and status["scale"] == [0.0, 5.0, 0.5],
    )
    await watched.taken("3-loaded")
    # A catalogue is known by its names; a column has the type of all its values.
    (films := file.with_name("films.csv")).write_text(
        'sku,name,genres,year,by\nMovieA,MovieA,sf|war,1965,"A, B"\n'
    )
    await page.set_input_files("#file", films)
    await expect(page.locator("main")).to_contain_text("This looks like a catalogue")
    await page.click("#check")
    await found.get_by_role("button", name="Load 1 item").click()
    await expect(page.locator("#sent")).to_have_text("1 of 1 are stored.")
    item = await asyncio.to_thread(up.call, "GET", "/items/MovieA")
    assert (item["title"], item["categories"]) == ("MovieA", ["sf", "war"])
    assert item["attributes"] == {"year": 1965, "by": "A, B"}
    return program


async def explain_and_rate(up: Stack, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{up.url}/#/users/reader7")
    listed = page.get_by_role("region", name="recommended").locator("tbody tr")
    await expect(listed).to_have_count(4)
    title = (await listed.first.locator("button.quiet").inner_text()).split()[0]
    await listed.first.locator("button.quiet").click()
    await expect(page.locator(".why")).to_contain_text("without this user's ratings")
    await page.get_by_role("button", name="Try ratings").click()
    # A rating has one control: buttons in a line, on a phone a choice that is on the screen.
    tops = "(all) => new Set(all.map((it) => it.getBoundingClientRect().top)).size"
    assert await listed.first.get_by_role("group").get_by_role("button").evaluate_all(tops) == 1
    await page.set_viewport_size(PHONE)
    await expect(listed.get_by_role("combobox")).to_have_count(4)
    box = await listed.first.get_by_role("combobox").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= PHONE["width"]
    assert not await watched.overflows()
    await page.set_viewport_size(WIDE)
    await listed.first.get_by_role("button", name="4.5", exact=True).click()
    history = page.get_by_role("region", name="ratings of this user")
    await expect(history).to_contain_text(title)
    await expect(listed.get_by_role("group")).to_have_count(3)
    # Rated once more: of a pair the last one counts.
    mine = history.locator("tbody tr", has_text=title)
    await mine.get_by_role("button", name="0.5", exact=True).click()
    await wait_until_async(
        lambda: asyncio.to_thread(up.call, "GET", "/users/reader7/ratings"),
        "the later rating",
        lambda told: [each["rating"] for each in told["ratings"] if each["item_id"] == title] == [0.5],
    )
    # What explains an item goes with it; that of the next one can be seen beside its ratings.
    await expect(page.locator(".why")).to_have_count(0)
    await listed.locator("button.quiet").first.click()
    await expect(page.locator(".why .bars").first).to_contain_text(title)
    await watched.taken("4-rated")


async def step_back(up: Stack, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{up.url}/#/generations")
    before = (await asyncio.to_thread(up.call, "GET", "/generations"))["live"]
    await page.get_by_role("button", name="Fit now").click()

    async def fitted() -> bool:
        return bool((await asyncio.to_thread(up.call, "GET", "/generations"))["live"] > before)

    await wait_until_async(fitted, "a new generation")
    rows = page.get_by_role("region", name="generations", exact=True).locator("tbody tr")
    # A refit of its own accord may have come between.
    back = rows.filter(has=page.get_by_role("checkbox", name=f"compare {before}", exact=True))
    await back.get_by_role("textbox").fill(str(before))
    await back.get_by_role("button", name="make live").click()
    await expect(page.locator("main")).to_contain_text("Held: an older generation was made live")
    assert (await asyncio.to_thread(up.call, "GET", "/generations"))["live"] == before
    # What was rated since is known by it, too.
    assert len((await asyncio.to_thread(up.call, "GET", "/users/reader7/ratings"))["ratings"]) == 9
