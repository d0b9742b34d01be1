"""The page Data: a file of ratings is shown, checked as a whole, and loaded."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from tests.browser.pages import BROWSER, Watched
from tests.support.serving import Client

pytestmark = [pytest.mark.slow, *BROWSER]

CSV = """Customer;"Product, name";Stars;When
zoe;"A ""fine"" thing";5;2024-01-02
zoe;"Another; thing";3;
yan;x;many;
"""


async def test_a_file_is_shown_checked_and_loaded(client: Client, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    file = tmp_path / "mine.csv"
    file.write_text(CSV, "utf-8")
    await page.goto(f"{client.url}/#/data")
    await page.set_input_files("#file", file)
    # Names that say nothing: the reader says which is which.
    await page.locator(".check input").check()
    await page.click("#check")
    found = page.locator("#found")
    await expect(found).to_contain_text("2 ratings of 1 user for 2 items, from 3 to 5")
    await expect(found).to_contain_text('the rating "many" is no number')
    assert (await client.get("/users/zoe")).status == 404
    await found.get_by_role("button", name="Load 2 ratings").click()
    await expect(page.locator("#sent")).to_have_text("2 of 2 are stored.")
    kept = (await client.get("/users/zoe/ratings")).json["ratings"]
    assert [(each["item_id"], each["rating"]) for each in kept] == [
        ("Another; thing", 3.0),
        ('A "fine" thing', 5.0),
    ]
    assert kept[1]["timestamp"] == 1704153600
    assert watched.complaints == []


async def test_a_file_off_the_scale_is_refused_before_anything_is_sent(
    client: Client, watched: Watched, tmp_path: Path
) -> None:
    file = tmp_path / "tens.csv"
    file.write_text("user,item,rating\nann,dune,10\n", "utf-8")
    await watched.page.goto(f"{client.url}/#/data")
    await watched.page.set_input_files("#file", file)
    await watched.page.click("#check")
    found = watched.page.locator("#found")
    await expect(found).to_contain_text("The scale of this store is 1 to 5")
    await expect(found.get_by_role("button", name="Load")).to_be_disabled()


def many(path: Path, n: int) -> None:
    rows = ("zoe,x,many", *(f"u{k},dune,{1 + k % 5}" for k in range(n)))
    path.write_text("\n".join(("user,item,rating", *rows)), "utf-8")


async def test_a_load_goes_on_while_its_reader_looks_elsewhere_and_can_be_stopped(
    client: Client, watched: Watched, tmp_path: Path
) -> None:
    page, file, sent, go = watched.page, tmp_path / "many.csv", list[str](), asyncio.Event()

    async def held(route: Route) -> None:
        sent.append(route.request.url)
        if len(sent) == 2:
            # As if the connection had been lost: it is sent again.
            await route.abort("connectionreset")
            return
        if len(sent) == 3:
            await go.wait()
        await route.continue_()

    many(file, 20_000)
    await page.goto(f"{client.url}/#/data")
    await page.set_input_files("#file", file)
    await page.click("#check")
    await page.route("**/ratings", held)
    await page.get_by_role("button", name="Load 20,000 ratings").click()
    await expect(page.locator("#sent")).to_have_text("5,000 of 20,000 are stored.")
    await page.get_by_role("link", name="Generations").click()
    await expect(page.locator("h1")).to_have_text("Generations")
    await page.get_by_role("link", name="Data").click()
    await expect(page.locator("#sent")).to_have_text("5,000 of 20,000 are stored.")
    await page.get_by_role("button", name="Stop").click()
    go.set()
    await expect(page.locator("main")).to_contain_text("10,000 of 20,000 are stored. many.csv, stopped")
    await expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    await expect(page.get_by_role("progressbar")).to_have_count(0)
    assert len(sent) == 3
    assert (await client.get("/status")).json["accepted_ratings"] == 10_000
