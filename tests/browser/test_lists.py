"""Users and items on the page: what is listed, found, typed and rated belongs to the row where it stands."""

from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from featurestore.settings import StoreSettings
from tests.browser.pages import BROWSER, Watched
from tests.support.serving import Client, serving
from tests.support.trainers import running_trainer
from trainer.settings import TrainerSettings

pytestmark = [pytest.mark.slow, *BROWSER]


async def test_what_was_typed_for_an_item_moves_with_it(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/#/users/ann")
    listed = page.get_by_role("region", name="recommended").locator("tbody tr")
    await listed.nth(1).get_by_role("spinbutton").fill("4")
    second = await listed.nth(1).get_by_role("spinbutton").get_attribute("aria-label")
    await listed.first.get_by_role("spinbutton").fill("1")
    await listed.first.get_by_role("button", name="rate").click()
    await expect(listed.first.get_by_role("spinbutton")).to_have_attribute("aria-label", second or "")
    await expect(listed.first.get_by_role("spinbutton")).to_have_value("4")
    assert watched.complaints == []


async def test_times_of_items_and_ratings_are_shown_whatever_they_are(
    client: Client, watched: Watched
) -> None:
    page = watched.page
    times = {"available_from": "2020-01-02T03:04:05Z", "available_until": 4_000_000_000}
    assert (await client.ask("PUT", "/items/dune", json=times)).status == 200
    late = {"user_id": "eve", "item_id": "dune", "rating": 4, "timestamp": 1e15}
    assert (await client.post("/ratings", late)).status == 200
    await page.goto(f"{client.url}/#/items/dune")
    said = page.get_by_role("region", name="what the catalogue says")
    await expect(said).to_contain_text("available from (UTC)2020-01-02 03:04")
    await expect(said).to_contain_text("available until (UTC)2096-10-02 07:06")
    await page.goto(f"{client.url}/#/users/eve")
    await expect(page.get_by_role("region", name="ratings of this user")).to_contain_text("dune")
    assert watched.complaints == []


async def test_a_page_that_cannot_be_shown_leaves_the_others(client: Client, watched: Watched) -> None:
    page = watched.page
    broken = {"item_id": "dune", "ratings": 1, "mean": "no number", "expected": None, "generation": 1}
    await page.route("**/items/dune", lambda route: route.fulfill(json=broken))
    await page.goto(f"{client.url}/#/items/dune")
    await expect(page.get_by_role("alert")).to_contain_text("This page cannot be shown")
    for address, heading in (("items/emma", "emma"), ("items", "Items")):
        await page.goto(f"{client.url}/#/{address}")
        await expect(page.locator("h1")).to_have_text(heading)


async def test_items_have_their_titles_in_every_list(client: Client, watched: Watched) -> None:
    page = watched.page
    titles = [{"item_id": item, "title": f"The {item}"} for item in ("dune", "emma", "0")]
    assert (await client.post("/items", titles)).status == 200
    await page.goto(f"{client.url}/#/users/ann")
    listed = page.get_by_role("region", name="recommended").locator("tbody tr")
    await expect(listed.first).to_contain_text("The ")
    await listed.first.locator("button.quiet").click()
    await expect(page.locator(".why .bars").first).to_contain_text("The dune (rated 5)")
    await page.get_by_role("region", name="ratings of this user").get_by_role("link", name="The dune").click()
    await expect(page.locator("h1")).to_have_text("The dune")
    await page.goto(f"{client.url}/#/users")
    await expect(page.get_by_role("region", name="recommended")).to_contain_text("The dune")
    await page.goto(f"{client.url}/#/items")
    await expect(page.get_by_role("region", name="most loved items")).to_contain_text("The dune")
    assert watched.complaints == []


async def test_items_of_long_ids_have_their_titles_too(client: Client, watched: Watched) -> None:
    page = watched.page
    # Percent-encoded they are 768 bytes each: an address takes ten of them.
    ids = [f"{'ü' * 127}{n:02}" for n in range(20)]
    titles = [{"item_id": item, "title": f"The {n:02}"} for n, item in enumerate(ids)]
    assert (await client.post("/items", titles)).status == 200
    rows = [{"user_id": "ann", "item_id": item, "rating": 4} for item in ids]
    assert (await client.post("/ratings", rows)).status == 200
    await page.goto(f"{client.url}/#/users/ann")
    listed = page.get_by_role("region", name="ratings of this user").locator("tbody tr a")
    await expect(listed).to_have_count(20)
    assert sorted(await listed.all_inner_texts()) == [f"The {n:02}" for n in range(20)]
    assert watched.complaints == []


async def test_an_item_that_has_ratings_alone_is_found_by_its_id(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/#/items")
    await page.get_by_label("Begins with").fill("emma")
    await expect(page.get_by_role("region", name="the catalogue")).to_contain_text("ratings alone")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("emma")
    await expect(page.locator(".cards")).to_contain_text("expected of an unknown user")
    await expect(page.locator(".cards .interval b")).to_be_visible()
    assert watched.complaints == []


async def test_a_search_shows_what_it_has_and_ends_where_the_user_is_found(
    client: Client, watched: Watched
) -> None:
    page, asked, answers = watched.page, list[str](), {"anna": ["anna"], "an": ["anne"]}

    async def endless(route: Route) -> None:
        prefix = route.request.url.partition("prefix=")[2].partition("&")[0]
        asked.append(prefix)
        await route.fulfill(json={"users": answers.get(prefix, []), "next": f"{len(asked):x}"})

    await page.route("**/users?*", endless)
    await page.goto(f"{client.url}/#/users")
    # A store so large that a search of it does not end: it goes on where the reader wants that.
    await page.fill("#user", "an")
    further = page.get_by_role("button", name="Look further")
    await expect(further).to_be_visible()
    await expect(page.locator(".found a")).to_have_text(["anne"])
    assert asked.count("an") == 20
    await further.click()
    await expect(page.locator(".found")).to_contain_text("looking")
    await expect(further).to_be_visible()
    await expect(page.locator(".found a")).to_have_text(["anne"])
    assert asked.count("an") == 40
    await page.locator("#user").press("End")
    await page.locator("#user").press_sequentially("na")
    await expect(page.locator(".found a")).to_have_text(["anna"])
    await expect(page.locator(".found")).not_to_contain_text("looking")
    await expect(further).to_be_hidden()
    assert asked.count("anna") == 1
    # What was typed on the way to it was not asked for.
    assert "ann" not in asked
    await page.fill("#user", "x")
    await expect(page.locator(".found")).to_contain_text("None in the part of the store")
    assert watched.complaints == []


async def test_a_search_waits_for_its_quota_and_keeps_what_it_has_found(
    client: Client, watched: Watched
) -> None:
    page, cursors = watched.page, list[str]()
    busy = {"code": "quota_exceeded", "title": "The caller has used up its quota", "detail": "wait"}

    async def refusing(route: Route) -> None:
        if "&prefix=an" not in route.request.url:
            # Of the page as it came, before anything was typed: on busy cores that is asked, too.
            await route.fulfill(json={"users": [], "next": None})
            return
        cursors.append(route.request.url.partition("&cursor=")[2])
        if len(cursors) == 1:
            await route.fulfill(json={"users": ["anne"], "next": "1"})
        elif len(cursors) == 2:
            await route.fulfill(status=429, json=busy, headers={"Retry-After": "1"})
        elif len(cursors) == 3:
            await route.fulfill(json={"users": ["anna"], "next": "2"})
        elif len(cursors) == 4:
            await route.fulfill(status=500, json={"code": "internal", "title": "A mistake", "detail": ""})
        else:
            await route.fulfill(json={"users": ["annabel"], "next": None})

    await page.route("**/users?*", refusing)
    await page.goto(f"{client.url}/#/users")
    await page.fill("#user", "an")
    await expect(page.get_by_role("alert")).to_contain_text("A mistake")
    await expect(page.locator(".found a")).to_have_text(["anne", "anna"])
    await page.get_by_role("button", name="Look further").click()
    await expect(page.locator(".found a")).to_have_text(["anne", "anna", "annabel"])
    await expect(page.get_by_role("alert")).to_be_hidden()
    assert cursors == ["", "1", "1", "2", "2"]


async def test_the_bars_add_up_with_many_ratings(client: Client, watched: Watched) -> None:
    rows = [{"user_id": "ann", "item_id": f"i{n}", "rating": 1 + n % 5} for n in range(20)]
    assert (await client.post("/ratings", rows)).status == 200
    why = (await client.get("/explain/ann/dune")).json
    await watched.page.goto(f"{client.url}/#/users/ann")
    listed = watched.page.get_by_role("region", name="recommended")
    await listed.locator("button.quiet").first.click()
    bars = watched.page.locator(".why .bars").first
    await expect(bars.locator("li")).to_have_count(13)
    await expect(bars.locator("li").last).to_contain_text(f"{len(why['parts']) - 12} others")


async def test_a_recommendation_is_explained_by_the_keyboard_alone(client: Client, watched: Watched) -> None:
    page = watched.page
    await page.goto(f"{client.url}/")
    await expect(page.locator("#cards")).to_be_visible()

    async def tab_to(name: str) -> None:
        """Go on by Tab until what has the focus has this name."""
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
    assert watched.complaints == []


async def test_a_store_of_events_alone_is_told_by_its_events(
    store_settings: StoreSettings, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    events = [
        {"user_id": f"u{user}", "item_id": f"i{user % 3 + 3 * item}", "type": "purchase"}
        for user in range(30)
        for item in range(user % 5 + 1)
    ]
    trainer = TrainerSettings(store=store_settings, archive_dir=tmp_path / "archive")
    async with running_trainer(trainer), serving(store_settings) as (client, _):
        assert (await client.post("/events", events)).status == 200
        assert (await client.post("/train")).status == 200
        await page.goto(f"{client.url}/")
        cards = page.locator("#cards")
        await expect(cards).to_contain_text("30")
        await expect(cards).not_to_contain_text("the first fit comes")
        await page.goto(f"{client.url}/#/items")
        await expect(page.locator("main")).to_contain_text("By the weight of positive events")
        loved = page.get_by_role("region", name="most loved items")
        await expect(loved.locator("tbody tr").first).to_contain_text("10.00")
        assert await watched.violations() == []
        await page.goto(f"{client.url}/#/items/i0")
        await expect(page.locator("main")).to_contain_text("positive events")
        await expect(page.get_by_role("region", name="similar items")).to_contain_text("i3")
        await page.goto(f"{client.url}/#/users/u1")
        await page.get_by_role("region", name="recommended").get_by_role("button", name="why?").first.click()
        why = page.locator(".why")
        await expect(why).to_contain_text("Relevance")
        # Nothing is said to come of ratings, as there are none.
        await expect(why).not_to_contain_text("Expected rating")
    assert watched.complaints == []
