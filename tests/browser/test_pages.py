"""The pages in a real browser: what people see and do there; they load nothing from anywhere else."""

import os
import re
import time
from dataclasses import replace

import pytest
from playwright.async_api import expect

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import Backup, Point, StoreServer
from service.settings import ServiceSettings
from tests.browser.pages import BROWSER, PHONE, Watched, browsing
from tests.support.serving import Client, serving

pytestmark = BROWSER
# Heading of each page, what is there once all of it is, and what there is where nothing is known yet.
PAGES = {
    "overview": ("Overview", ".u-legend", ".ways"),
    "users": ("Try as a new visitor", "[aria-label=recommended]", "[role=alert]"),
    "users/ann": ("ann", "[aria-label='ratings of this user']", "[role=alert]"),
    "items": ("Items", "[aria-label='most loved items']", "[aria-label='items']"),
    "items/dune": ("dune", "[aria-label='similar items']", "[role=alert]"),
    "quality": ("Quality", "[aria-label='held-out metrics']", "text=No generation yet"),
    "generations": ("Generations", "[aria-label=generations]", "[aria-label=generations]"),
    "data": ("Data", "text=None was made yet", "text=None was made yet"),
    "system": ("System", "[aria-label=settings]", "[aria-label=settings]"),
}
# What is compared of two generations: in the table, and by the API.
COMPARED = {"engine": "engine", "link": "link", "rank": "rank"} | {
    name: f"n_{name}" for name in ("users", "items", "ratings")
}
# What a key with the role `read` may do with buttons.
NEEDS = re.compile("needs a key with the role (rate|operate)")
EXPORTS = ["ratings.ndjson", "items.ndjson", "users.ndjson"]
MANUAL = ServiceSettings().manual_dir
FIRST = "Foldin recommends, and learns from every rating the moment it arrives."


@pytest.mark.slow
async def test_the_overview_tells_what_is_live(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    cards = page.locator("#cards")
    await expect(page.locator("#state")).to_have_text("live")
    await expect(cards).to_contain_text("generation1epoch 1")
    health = page.locator("#health")
    await expect(health).to_contain_text("All is well: generation 1 answers, and no rating has arrived")
    assert (await client.post("/ratings", {"user_id": "eve", "item_id": "dune", "rating": 4})).status == 200
    await expect(cards).to_contain_text("1 since the start")
    await expect(health).to_contain_text("ratings of the last minute were predicted with an error of")
    assert (await client.post("/train")).status == 200
    await expect(cards).to_contain_text("generation2epoch 1")
    assert watched.complaints == []
    assert watched.asked_only(client.url)
    await page.route("**/status", lambda route: route.abort())
    await expect(page.locator("#state")).to_contain_text("no answer")
    await expect(health).to_have_text(re.compile(r"^The service does not answer: .* 20[\d-]+ [\d:]+ "))
    await page.unroute("**/status")
    await expect(page.locator("#state")).to_have_text("live")
    # An item that is rated again by its name is so in the history.
    await page.goto(f"{client.url}/#/users/eve")
    await page.get_by_role("button", name="Try ratings").click()
    await page.get_by_label("Item").fill("dune")
    await expect(page.get_by_label("rating of dune")).to_have_count(2)
    await page.get_by_label("rating of dune").last.fill("2")
    await page.get_by_role("button", name="rate").last.click()
    await expect(page.get_by_label("rating of dune").first).to_have_value("2")
    for name in ("users", "items"):
        await page.goto(f"{client.url}/#/{name}/..")
        await expect(page.locator("main")).to_contain_text('A browser cannot ask for the id ".."')


@pytest.mark.slow
async def test_a_first_visitor_sees_three_ways_to_begin(
    store_settings: StoreSettings, watched: Watched
) -> None:
    page = watched.page
    undecided = replace(store_settings, namespace=f"{store_settings.namespace}-new", scale=None)
    async with serving(undecided) as (empty, _):
        await page.goto(f"{empty.url}/")
        await expect(page.locator("#state")).to_have_text("no generation yet")
        await expect(page.locator(".ways article")).to_have_count(3)
        program = f"{empty.url}/predict?user_id=ann&item_id=dune"
        await expect(page.locator(".welcome")).to_contain_text(program)
        # The page does not know the folder of the stack: a whole command would begin another one.
        player = page.locator(".ways article").first
        await expect(player).to_contain_text("the same command as before, with --play in place of --no-play")
        await expect(player).not_to_contain_text("foldin up")
        for name, (heading, _, there) in PAGES.items():
            await page.goto(f"{empty.url}/#/{name}")
            await expect(page.locator("h1")).to_have_text(FIRST if name == "overview" else heading)
            await expect(page.locator(there).first).to_be_visible()
            await expect(page.locator("main")).not_to_contain_text("cannot be shown")
            assert await watched.violations() == [], name
        # A browser tells of each answer that is an error; nothing else went wrong.
        assert watched.refused <= {
            *("404 /users/ann/ratings", "503 /users/ann"),
            *("503 /recommend", "503 /recommend/ann", "503 /popular", "503 /items/dune", "503 /similar/dune"),
        }
        assert all("Failed to load resource" in each for each in watched.complaints), watched.complaints
        assert watched.asked_only(empty.url)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_can_be_used_by_everybody_and_on_a_phone(client: Client, scheme: str) -> None:
    dune = {"title": "Dune", "categories": ["sf"], "attributes": {"year": 1965}}
    await client.ask("PUT", "/items/dune", json=dune)
    async with browsing(viewport=PHONE, color_scheme=scheme) as watched:
        for name, (heading, there, _) in PAGES.items():
            await watched.page.goto(f"{client.url}/#/{name}")
            await expect(watched.page.locator("h1")).to_have_text(heading, ignore_case=True)
            await expect(watched.page.locator(there).first).to_be_attached(timeout=20_000)
            assert await watched.violations() == [], name
            assert not await watched.overflows(), name
        assert watched.complaints == []


async def test_a_user_is_found_explained_rated_and_the_list_moves(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/#/users")
    await page.fill("#user", "an")
    await page.click(".found a")
    await expect(page.locator("h1")).to_have_text("ann")
    listed = page.get_by_role("region", name="recommended").locator("tbody tr")
    first = await listed.first.locator("button.quiet").inner_text()
    await listed.first.locator("button.quiet").click()
    await expect(page.locator(".why")).to_contain_text("without this user's ratings")
    await expect(page.locator(".why .bars").first).to_contain_text("dune")
    history = page.get_by_role("region", name="ratings of this user")
    stored = (await client.get("/users/ann/ratings")).ok.json["ratings"]
    # A reader can write nothing, until a mode is entered that says that it writes.
    for control in ("spinbutton", "combobox"):
        await expect(page.locator("main table").get_by_role(control)).to_have_count(0)
    await expect(page.get_by_role("button", name="take back")).to_have_count(0)
    await page.get_by_role("button", name="Try ratings").click()
    await expect(page.locator("#mode")).to_contain_text("stored as ann's own")
    await listed.first.get_by_role("spinbutton").fill("1")
    await listed.first.get_by_role("button", name="rate").click()
    # Rated, it is in the history, and no longer in the list: where it was it can be undone.
    await expect(history).to_contain_text(first.split()[0])
    await expect(listed.first).to_contain_text("rated 1")
    await history.get_by_role("button", name="take back").last.click()
    await expect(history.locator("tbody tr", has_text="taken back")).to_be_visible()
    assert (await client.get("/users/ann/ratings")).json["total"] == len(stored)
    for part in (history, page.get_by_role("region", name="recommended")):
        await part.get_by_role("button", name="undo").click()
        await expect(part.get_by_role("button", name="undo")).to_have_count(0)
    await page.get_by_role("button", name="Only read").click()
    await expect(history.locator("tbody tr")).to_have_count(len(stored))
    # All of that is what the API says, too.
    assert (await client.get("/users/ann/ratings")).json["ratings"] == stored
    assert watched.complaints == []


@pytest.mark.slow
async def test_items_of_ratings_alone_are_listed_and_drawn(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/#/items")
    listed = page.get_by_role("region", name="items", exact=True).locator("tbody tr")
    await expect(listed).to_have_count(3)
    assert [await row.locator("a").inner_text() for row in await listed.all()] == ["0", "dune", "emma"]
    by = page.locator(".search select")
    await by.select_option("title")
    await expect(listed.first).to_contain_text("The catalogue is empty")
    await client.ask("PUT", "/items/dune", json={"title": "Dune"})
    await by.select_option("id")
    await page.locator(".search input").fill("du")
    await expect(listed).to_have_count(1)
    await expect(listed.first).to_contain_text("Dune")
    await listed.first.locator("a").click()
    await expect(page.locator("h1")).to_have_text("Dune")
    bars = page.get_by_role("list", name="what an unknown user would give").locator("li")
    await expect(bars).to_have_count(10)
    await page.get_by_text("the numbers").click()
    table = page.get_by_role("region", name="what an unknown user would give, as a table").locator("tbody tr")
    await expect(table).to_have_count(10)
    chances = [await row.locator("td").nth(1).inner_text() for row in await table.all()]
    assert chances == [await each.locator(".figure").inner_text() for each in await bars.all()]
    assert sum(float(each.removesuffix(" %")) for each in chances) == pytest.approx(100.0, abs=0.5)
    assert await watched.violations() == []
    assert watched.complaints == []


@pytest.mark.slow
async def test_generations_are_compared_and_made_live(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/#/generations")
    await page.get_by_role("button", name="Fit now").click()
    rows = page.get_by_role("region", name="generations", exact=True).locator("tbody tr")
    await expect(rows).to_have_count(2)
    for n in (0, 1):
        await rows.nth(n).get_by_role("checkbox").check()
    await expect(page.locator("h2", has_text="1 beside 2")).to_be_visible()
    compared = {name: values for name, *values in await watched.cells("two generations compared")}
    told = sorted((await client.get("/generations")).json["generations"], key=lambda it: it["generation"])
    for name, field in COMPARED.items():
        assert compared[name] == [str(each[field]) for each in told], name
    for name in {name for each in told for name in each["metrics"]}:
        metrics = [each["metrics"][name] for each in told]
        assert [float(each) for each in compared[name]] == pytest.approx(metrics, abs=5e-5)
    assert await watched.violations() == []
    back = rows.nth(1)
    await expect(back.get_by_role("button", name="make live")).to_be_disabled()
    await back.get_by_role("textbox").fill("1")
    await back.get_by_role("button", name="make live").click()
    await expect(page.locator("main")).to_contain_text("Held: an older generation was made live")
    assert (await client.get("/generations")).json["live"] == 1
    # Let go of, it may be replaced again; held, whatever is live stays so.
    await page.get_by_role("button", name="Let refits go on").click()
    await page.get_by_role("button", name="Hold generation 1").click()
    await expect(page.locator("main")).to_contain_text("Held: an older generation was made live")
    await page.get_by_role("button", name="Let refits go on").click()
    await expect(page.get_by_role("button", name="Hold generation 1")).to_be_visible()
    found = (await client.get("/generations")).json
    assert (found["live"], found["held"]) == (1, False)


@pytest.mark.slow
async def test_what_is_wrong_is_said_and_what_to_do(client: Client, store: Store, watched: Watched) -> None:
    page, now = watched.page, time.time()
    await page.route("**/manual", lambda route: route.fulfill(status=200))
    await page.goto(f"{client.url}/#/system")
    wrong = page.get_by_role("region", name="what is wrong")
    await expect(page.get_by_role("region", name="tasks")).to_be_visible()
    # It has just begun: that the trainer has told nothing yet says nothing.
    await expect(wrong).to_have_count(0)
    why = "gate_refused: <b>the held-out error 1.20 is above 1.05 of the baseline's</b>"

    def workers(at: float) -> list[Point]:
        return [Point(f"worker-{n}", "a", at, 10.0, generation=n) for n in (1, 2)]

    trainer = Point("trainer", "b", now - 1, 10.0, busy="fit: trial", failed=why, failed_at=now - 60)
    for point in (*workers(now - 1), trainer):
        await store.telemetry.add(point)
    await page.reload()
    await expect(wrong).to_contain_text(why)
    # For a moment that is a new one going live; for a minute it is not.
    await expect(wrong.locator("li")).to_have_count(1)
    for ago_s in range(70, 0, -10):
        for point in workers(now - ago_s):
            await store.telemetry.add(point)
    await page.reload()
    await expect(wrong.locator("li")).to_have_count(2)
    await expect(wrong).to_contain_text(why)
    await expect(wrong).to_contain_text("different generations: 1, 2")
    # Links to the manual appear only if it is built; else the file of the sources is named.
    await expect(wrong).to_contain_text("docs/alerts.md of the sources, FoldinFitFails")
    await expect(page.locator("a[href^='/manual']")).to_have_count(0)
    await page.unroute("**/manual")
    await page.route("**/manual", lambda route: route.fulfill(status=308, headers={"Location": "manual/"}))
    await page.reload()
    # The one sentence of health does not say else.
    await expect(page.locator("#state")).to_have_text("2 problems")
    await expect(page.get_by_role("region", name="tasks")).to_contain_text("fit: trial")
    await page.goto(f"{client.url}/#/data")
    await expect(page.locator("main")).to_contain_text("None was made yet")
    await store.telemetry.note_backup(Backup(now - 7_200, 12_345))
    await expect(page.locator("main")).to_contain_text("made 2 h ago, of 12,345 events")
    # What a trainer finds in itself, what lies in the figures of workers, and an old backup.
    trainer.wrong = {"FoldinClock": "<i>The clocks</i> are 12 s apart."}
    trainer.servers = [StoreServer("a:6379", used_bytes=91, limit_bytes=100)]
    await store.telemetry.add(trainer)
    for ago_s in range(35, 0, -10):
        point = Point("worker-1", "a", now - ago_s, 10.0, generation=1, turned_away=20, mistakes=1)
        await store.telemetry.add(point)
    await store.telemetry.note_backup(Backup(now - 9 * 86_400, 12_345))
    assert "foldin_backup_timestamp_seconds" in (await client.get("/metrics")).text
    await page.goto(f"{client.url}/#/system")
    for alert, said in {
        "FoldinClock": "<i>The clocks</i> are 12 s apart.",
        "FoldinRefusing": "a:6379 has 91 % of its memory in use",
        "FoldinTurnedAway": "calls a second are turned away",
        "FoldinMistakes": "ended in an unexpected exception",
        "FoldinBackupOld": "The last backup was made 9 days ago",
    }.items():
        link = wrong.locator("li").filter(has_text=said).get_by_role("link")
        await expect(link).to_have_attribute("href", f"/manual/alerts.html#{alert.lower()}")
    for name in ("overview", "generations"):
        await page.goto(f"{client.url}/#/{name}")
        await expect(page.locator("main")).to_contain_text(why)
        assert await watched.violations() == []
    assert watched.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_documentation_shows_and_tries_calls(client: Client, scheme: str) -> None:
    description = (await client.get("/openapi.json")).json
    async with browsing(color_scheme=scheme) as watched:
        page = watched.page
        await page.goto(f"{client.url}/docs")
        calls = page.locator("#calls")
        await expect(calls.locator(".opblock").first).to_be_visible()
        shown = await calls.inner_text()
        assert [path for path in description["paths"] if path not in shown.replace("\u200b", "")] == []
        for code in description["x-problems"]:
            await expect(page.locator(f"#problems #{code}")).to_be_attached()
        for path in ("/recommend/{user_id}", "/ratings", "/items/{item_id}", "/livez"):
            of_path = calls.locator(".opblock").filter(has=page.locator(f"[data-path='{path}']"))
            for verb in description["paths"][path]:
                call = of_path.and_(page.locator(f".opblock-{verb}"))
                await call.locator("button").first.click()
        await call.get_by_role("button", name="Execute").click()
        await expect(call.locator(".live-responses-table")).to_contain_text('"alive": true')
        assert await watched.violations() == []
        await page.set_viewport_size(PHONE)
        assert not await watched.overflows()
        assert watched.complaints == []
        assert watched.asked_only(client.url)


@pytest.mark.slow
async def test_the_page_asks_for_a_key_where_the_api_does(
    store: Store, client: Client, watched: Watched
) -> None:
    secret, page = new_secret(), watched.page
    await store.access.add(secret, "viewer", "read")
    async with serving(store.settings) as (closed, _):
        await page.goto(f"{closed.url}/")
        await expect(page.locator("#state")).to_have_text("a key is needed")
        await page.fill("#key", new_secret())
        await page.click("#login button")
        await expect(page.locator("#refused")).to_have_text("This key is not known.")
        await page.fill("#key", f" {secret}\n")
        await page.click("#login button")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("#login")).to_be_hidden()
        # What the key may not do cannot be pressed.
        others, refused = page.locator(".action button"), set()
        for name, (heading, there, _) in PAGES.items():
            await page.goto(f"{closed.url}/#/{name}")
            await expect(page.locator("h1")).to_have_text(heading)
            seen = "[aria-label=workers]" if name == "system" else there
            await expect(page.locator(seen).first).to_be_attached()
            for button in await others.all():
                if (text := await button.inner_text()) not in EXPORTS:
                    await expect(button).to_be_disabled()
                    await expect(button).to_have_attribute("title", NEEDS)
                    refused.add(text)
        assert refused == {"Try ratings", "hide", "Fit now", "Hold generation 1"}
        assert secret not in await page.content()
        # It is there after a reload, and kept by nothing that outlives the tab.
        await page.reload()
        await expect(page.locator("#state")).to_have_text("live")
        assert await page.evaluate("localStorage.length") == 0
        assert await page.context.cookies() == []
        assert watched.asked_only(closed.url)
        assert not any(secret in url for url in watched.asked)
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.locator("#state")).to_have_text("a key is needed")
        await expect(page.locator("#login")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        # What the browser says of each answer of 401, and nothing else.
        assert all("401" in complaint for complaint in watched.complaints)


@pytest.mark.slow
async def test_a_recommendation_is_explained_by_the_keyboard_alone(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    await expect(page.locator("#cards")).to_be_visible()

    async def tab_to(name: str) -> None:
        for _ in range(40):
            await page.keyboard.press("Tab")
            found = page.locator(":focus")
            # What has the focus can be seen to have it.
            assert await found.evaluate("it => getComputedStyle(it).outlineStyle") != "none"
            label = await found.evaluate("it => it.labels?.[0]?.innerText || it.innerText || ''")
            if label.startswith(name):
                return
        raise AssertionError(f"{name} cannot be reached by Tab")

    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.reload()
    await tab_to("Users")
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await tab_to("User")
    await page.keyboard.type("an")
    # Which waits for the end of the typing: who goes on at once is past the place where the users will stand.
    await expect(page.locator(".found a")).to_have_text(["ann"])
    await tab_to("ann")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("ann")
    first = page.get_by_role("region", name="recommended").locator("button.quiet").first
    await expect(first).to_be_visible()
    await tab_to(await first.inner_text())
    await page.keyboard.press("Enter")
    await expect(first).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".why .bars").first).to_contain_text("dune")
    assert await watched.violations() == []
    assert watched.complaints == []


@pytest.mark.slow
@pytest.mark.skipif(
    not MANUAL.is_dir() and "CI" not in os.environ, reason="needs the manual: `make docs` builds it"
)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_of_the_manual_holds_under_the_policy(client: Client, scheme: str) -> None:
    pages = sorted(path.relative_to(MANUAL).as_posix() for path in MANUAL.rglob("*.html"))
    async with browsing(color_scheme=scheme) as watched:
        for name in pages:
            await watched.page.goto(f"{client.url}/manual/{name}")
            await expect(watched.page.locator("html")).to_have_attribute("data-theme", scheme)
            await watched.page.wait_for_load_state("networkidle")
            assert watched.complaints == [], name
        assert watched.asked_only(client.url)
        assert len(pages) > 20
