"""The page Data: a file of ratings is shown, checked as a whole, and loaded."""

import asyncio
import json
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from featurestore.settings import StoreSettings
from service.context import CONTEXT
from tests.browser.pages import BROWSER, Watched, browsing
from tests.support.servers import StoreServer
from tests.support.serving import Client, serving
from tests.support.waiting import wait_until_async

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # A file of twelve pieces: what follows the second is not read.
        (
            'u,i,3\r\n"a\nb",i,4\n\n' + "u,i,3\n" * 100 + 'u,"i,3\n' + "u,i,3\n" * 2_000_000,
            "in line 105 is not",
        ),
        ('u,i,3\n\nu,"i,3\n' + "u,i,3\n" * 10, "the quote that begins in line 3 is never closed"),
        ("u,i,3\nu,i,3" + "x" * 3_000_000, "the row that begins in line 2 has no end"),
        ('u\ti\t3\nu\t"i\t4\n', None),
    ],
    ids=["a quote in a large file", "a quote in a small one", "a row without an end", "tabs do not quote"],
)
async def test_a_row_without_an_end_is_named_by_its_line(
    client: Client, watched: Watched, text: str, said: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "stray.csv"
    file.write_text(text, "utf-8", newline="")
    await watched.page.goto(f"{client.url}/#/data")
    await watched.page.set_input_files("#file", file)
    if said is None or "never closed" not in said:  # which the first look finds
        await watched.page.click("#check")
    if said is not None:
        await expect(watched.page.get_by_role("alert")).to_contain_text(said)
        await expect(watched.page.locator("#found")).to_have_count(0)
    else:
        await expect(watched.page.locator("#found")).to_contain_text("2 ratings of 1 user for 2 items")
    assert watched.complaints == []


async def test_times_and_ids_are_those_of_the_command_and_the_api(client: Client, tmp_path: Path) -> None:
    """Dates are ISO 8601, in UTC where they name no zone, wherever the browser is."""
    file = tmp_path / "times.csv"
    times = ("2024-01-02T03:04:05", "2024-01-02 03:04", "2024-01-02T03:04+0100", "2024-01-02", "1700000000")
    wrong = ("01/02/2024", "Product 5", "2024-02-30", "0x10", "1e30")
    rows = [f"zoe,i{n},4,{when}" for n, when in enumerate((*times, *wrong))]
    rows += ["zoe," + "é" * 129 + ",4,", "yan," + "é" * 128 + ",0x4,", "zoe,last,5,"]
    file.write_text("\n".join(("user,item,rating,time", *rows)), "utf-8")
    async with browsing(timezone_id="America/New_York") as watched:
        await watched.page.goto(f"{client.url}/#/data")
        await watched.page.set_input_files("#file", file)
        await watched.page.click("#check")
        bad = watched.page.get_by_role("region", name="bad rows").locator("tbody tr")
        await expect(bad).to_have_count(7)
        for n, text in enumerate((*wrong, "longer than 256 bytes", "no number")):
            await expect(bad.nth(n)).to_contain_text(text)
        await watched.page.get_by_role("button", name="Load 6 ratings").click()
        await expect(watched.page.locator("#sent")).to_have_text("6 of 6 are stored.")
        assert watched.complaints == []
    kept = (await client.get("/users/zoe/ratings")).json["ratings"]
    found = {each["item_id"]: each["timestamp"] for each in kept}
    assert [found[f"i{n}"] for n in range(5)] == [
        *(1704164645, 1704164640, 1704161040, 1704153600, 1700000000),
    ]


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


async def test_a_row_that_the_service_refuses_is_named_by_its_place_in_the_file(
    client: Client, watched: Watched, tmp_path: Path
) -> None:
    page, file, sent = watched.page, tmp_path / "many.csv", list[str]()

    async def spoiled(route: Route) -> None:
        sent.append(route.request.post_data or "")
        lines = sent[-1].split("\n")
        if len(sent) == 2:
            lines[1] = lines[1].replace('"rating":', '"rating":9')
        await route.continue_(post_data="\n".join(lines))

    many(file, 6_000)
    await page.goto(f"{client.url}/#/data")
    await page.set_input_files("#file", file)
    await page.click("#check")
    await page.route("**/ratings", spoiled)
    await page.get_by_role("button", name="Load 6,000 ratings").click()
    # Names, a bad one and 5,000 that were sent before it, and one more.
    await expect(page.get_by_role("alert")).to_contain_text("Row 5,004 of the file")
    await expect(page.locator("#sent")).to_have_text("5,000 of 6,000 are stored.")
    await expect(page.get_by_role("progressbar")).to_have_count(0)
    await expect(page.get_by_role("button", name="Load 6,000 ratings")).to_be_enabled()


async def test_an_export_that_fails_says_why(
    store_server: StoreServer, store_settings: StoreSettings, watched: Watched
) -> None:
    page = watched.page
    async with serving(store_settings) as (client, _):
        await page.goto(f"{client.url}/#/data")
        await expect(page.locator("h1")).to_have_text("Data")
        store_server.pause()
        try:
            await page.get_by_role("button", name="ratings.ndjson").click()
            said = page.get_by_role("alert")
            await expect(said).to_contain_text("The feature store does not answer", timeout=30_000)
        finally:
            store_server.resume()


async def test_an_export_waits_for_a_moment_while_others_run(
    store_settings: StoreSettings, watched: Watched
) -> None:
    page = watched.page
    async with serving(store_settings) as (client, app):
        assert (await client.post("/items", [{"item_id": "dune"}])).status == 200
        running, counts = app[CONTEXT].exports, app[CONTEXT].counts
        # As two others that run.
        for _ in range(2):
            await running.acquire()
        await page.goto(f"{client.url}/#/data")
        async with page.expect_download() as download:
            await page.get_by_role("button", name="items.ndjson").click()
            await wait_until_async(lambda: counts.overloads == 1, "it is refused once")
            running.release()
        saved = await (await download.value).path()
        assert json.loads(saved.read_text())["item_id"] == "dune"
        # One that would wait for long says so.
        await running.acquire()
        await page.get_by_role("button", name="items.ndjson").click()
        said = page.get_by_role("alert")
        await expect(said).to_contain_text("as many exports run as a worker takes on", timeout=15_000)
        assert counts.overloads == 4
