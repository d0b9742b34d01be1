"""The page Data: a file of ratings is shown, checked as a whole, and loaded."""

from pathlib import Path

import pytest
from playwright.async_api import expect

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


def many(path: Path, n: int) -> None:
    rows = ("zoe,x,many", *(f"u{k},dune,{1 + k % 5}" for k in range(n)))
    path.write_text("\n".join(("user,item,rating", *rows)), "utf-8")
