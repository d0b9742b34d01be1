"""The first five minutes: a fresh clone, brought up by the README's own command; then a file of half stars, a
recommendation that is explained and rated, and a step back, all of it on the page.
"""

import asyncio
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import expect

from tests.browser.pages import BROWSER, browsing
from tests.support import house
from tests.support.servers import missing
from tests.support.stacks import Stack, stack
from tests.support.waiting import wait_until_async

# The set-up of a clone shares the machine with the other tests: what it is judged by is `WITHIN_S`.
SET_UP_S = 1_800.0
# It starts its own store.
pytestmark = [pytest.mark.slow, BROWSER[0], BROWSER[1], pytest.mark.timeout(SET_UP_S + 300)]
# What the README says of a store for a file of one's own.
COMMAND = 'make run ARGS="--data ./mine --no-play"'
# Five minutes, from the clone to the step back.
WITHIN_S = 300.0
MOVIES = (
    *("Alien", "Amelie", "Brazil", "Casablanca", "Fargo", "Heat"),
    *("Ikiru", "Jaws", "Memento", "Ran", "Solaris", "Vertigo"),
)


def half_stars(path: Path) -> None:
    """200 ratings of 25 users, in half stars, which depend on a taste and on the movie."""
    rng = np.random.default_rng(3)
    taste, kind = rng.normal(size=25), rng.normal(size=len(MOVIES))
    rows = ["userId,movieId,rating,timestamp"]
    for user in range(25):
        for movie in rng.permutation(len(MOVIES))[:8].tolist():
            value = 3.0 + 1.2 * taste[user] * kind[movie] + 0.3 * rng.normal()
            stars = np.clip(np.round(2 * value) / 2, 0.5, 5.0)
            rows.append(f"reader{user},{MOVIES[movie]},{stars},{1_700_000_000 + user}")
    path.write_text("\n".join(rows) + "\n", "utf-8")


def processor_s() -> float:
    """Seconds of all processors, of this process and of all children and theirs that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


@pytest.fixture
def fresh_clone(tmp_path: Path) -> Iterator[Path]:
    """A clone of the commit that is checked out here, and nothing else: neither environment nor data."""
    if not (house.ROOT / ".git").exists():
        missing("the history of a checkout")
    clone = tmp_path / "foldin"
    subprocess.run(["git", "clone", "--quiet", house.ROOT, clone], check=True, timeout=120)
    yield clone
    # An environment is a gigabyte; pytest keeps the folders of three runs.
    shutil.rmtree(clone)


async def test_from_a_fresh_clone_to_a_recommendation_and_back(tmp_path: Path, fresh_clone: Path) -> None:
    began_s, used_s = time.monotonic(), processor_s()
    assert COMMAND in (fresh_clone / "README.md").read_text("utf-8")
    assert not (fresh_clone / ".venv").exists()
    file = tmp_path / "half-stars.csv"
    half_stars(file)
    running = stack(fresh_clone / "mine", "--no-play", checkout=fresh_clone, up_s=SET_UP_S)
    up = await asyncio.to_thread(running.__enter__)
    try:
        up_s = time.monotonic() - began_s
        await from_an_empty_page(up, file)
        took_s = time.monotonic() - began_s
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
    used_s = processor_s() - used_s
    print(
        f"from the clone to the step back: {took_s:.0f} s, {up_s:.0f} s of them until it ran; "
        f"{used_s:.0f} s of processors"
    )
    # Where other tests have the machine, too, its own share counts.
    assert min(took_s, used_s) < WITHIN_S


async def from_an_empty_page(up: Stack, file: Path) -> None:
    """What a person does on the page."""
    async with browsing() as watched:
        page = watched.page
        await page.goto(f"{up.url}/")
        await expect(page.locator("#state")).to_have_text("nothing learned yet")
        await expect(page.locator(".ways article")).to_have_count(3)
        await page.click(".ways .button")
        await page.set_input_files("#file", file)
        await page.click("#check")
        found = page.locator("#found")
        await expect(found).to_contain_text("200 ratings of 25 users for 12 items, from 0.5 to 5")
        # No scale was told: it is what the file has.
        await expect(page.locator("#scale-low")).to_have_value("0.5")
        await expect(page.locator("#scale-high")).to_have_value("5")
        await expect(page.locator("#scale-step")).to_have_value("0.5")
        assert await watched.violations() == []
        await watched.picture("import")
        await found.get_by_role("button", name="Load 200 ratings").click()
        await expect(page.locator("#sent")).to_have_text("200 of 200 are stored.", timeout=20_000)

        async def fitted() -> bool:
            status = await asyncio.to_thread(up.call, "GET", "/status")
            return bool(status["ratings"] == 200 and status["scale"] == [0.5, 5.0, 0.5])

        await wait_until_async(fitted, "the first fit, of all that was loaded")
        await page.goto(f"{up.url}/#/users/reader7")
        listed = page.get_by_role("region", name="recommended").locator("tbody tr")
        await expect(listed).to_have_count(4)
        title = (await listed.first.locator("button.quiet").inner_text()).split()[0]
        await listed.first.locator("button.quiet").click()
        await expect(page.locator(".why")).to_contain_text("without this user's ratings")
        await expect(page.locator("#state")).to_have_text("live")
        await watched.picture("why")
        await listed.first.get_by_role("button", name="4.5", exact=True).click()
        history = page.get_by_role("region", name="ratings of this user")
        await expect(history).to_contain_text(title)
        await expect(listed).to_have_count(3)
        # Rated once more: of a pair the last one counts.
        mine = history.locator("tbody tr", has_text=title)
        await mine.get_by_role("button", name="0.5", exact=True).click()

        async def rated_again() -> bool:
            rows = (await asyncio.to_thread(up.call, "GET", "/users/reader7/ratings"))["ratings"]
            return [each["rating"] for each in rows if each["item_id"] == title] == [0.5]

        await wait_until_async(rated_again, "the later rating")
        await page.goto(f"{up.url}/#/generations")
        before = (await asyncio.to_thread(up.call, "GET", "/generations"))["live"]
        await page.get_by_role("button", name="Fit now").click()
        rows = page.get_by_role("region", name="generations", exact=True).locator("tbody tr")
        await expect(rows.first).to_contain_text(str(before + 1), timeout=60_000)
        # A refit of its own accord may have come between.
        compare = page.get_by_role("checkbox", name=f"compare {before}", exact=True)
        back = rows.filter(has=compare)
        await back.get_by_role("textbox").fill(str(before))
        await back.get_by_role("button", name="make live").click()
        await expect(page.locator("main")).to_contain_text("Held: an older generation was made live")
        assert (await asyncio.to_thread(up.call, "GET", "/generations"))["live"] == before
        # What was rated since is known by it, too.
        assert await rated_again()
        await page.goto(f"{up.url}/#/overview")
        await expect(page.locator("#cards")).to_contain_text("200")
        assert watched.complaints == []
        assert watched.asked_only(up.url)
