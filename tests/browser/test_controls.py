"""The controls of the pages: a person uses each, and the API then has what the page says."""

import asyncio
import csv
import json
import os
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Response, Route, expect

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.browser.pages import BROWSER, Watched, browsing
from tests.support.examples import ran
from tests.support.factories import low_rank_ratings
from tests.support.serving import LINES, Client, client_of, serves, serving
from tests.support.stacks import foldin
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.slow, *BROWSER]


@pytest.fixture
async def live(store: Store, tmp_path: Path) -> AsyncIterator[Client]:
    """A service with a fit of 4,500 ratings; half of the 30 items have titles and categories."""
    await store.ratings.append(low_rank_ratings(500, 30))
    settings = trainer_settings(store.settings, tmp_path / "archive")
    async with running_trainer(settings), serving(store.settings) as (client, _):
        await serves(client, await fitted(store))
        films = [
            {"item_id": f"i{n}", "title": f"Film {n}", "categories": ["sf" if n % 4 else "crime"]}
            for n in range(0, 30, 2)
        ]
        assert (await client.post("/items", films)).status == 200
        yield client


async def give(watched: Watched, item: str, value: int) -> None:
    """Add a rating of someone who is not stored."""
    await watched.page.get_by_label("Item").fill(item)
    await watched.page.get_by_label("Rating, 1 to 5").fill(str(value))
    await watched.page.get_by_role("button", name="Add").click()


ZEBRA = {"title": "Zebra", "categories": ["sf"], "attributes": {"year": 1965, "cast": ["Ann", "Bob"]}}


async def listed(client: Client, path: str, name: str = "items") -> list[str]:
    return [each["item_id"] for each in (await client.get(path)).ok.json[name]]


async def test_a_hidden_item_is_in_no_list_until_it_is_shown_again(live: Client, watched: Watched) -> None:
    page = watched.page
    (best,) = await listed(live, "/recommend/u1?n=1")
    assert (await live.ask("PUT", f"/items/{best}", json=ZEBRA)).status == 200

    async def lists_with_it() -> int:
        return sum([best in await listed(live, path) for path in ("/recommend/u1?n=30", "/popular?n=30")])

    await page.goto(f"{live.url}/#/items")
    await page.get_by_role("combobox", name="By").select_option("title")
    await page.get_by_label("Begins with").fill("Zeb")
    mine = page.locator("tr").filter(has=page.get_by_role("button", name=re.compile("hide|show again")))
    await expect(mine).to_have_count(1)
    ((shown_id, *_, categories, attributes, _),) = await watched.cells("items")
    assert (shown_id, categories, attributes) == (best, "sf", "year: 1965; cast: Ann, Bob")
    for button, hidden in (("hide", True), ("show again", False)):
        await mine.get_by_role("button", name=button).click()
        await expect(mine.locator(".tag")).to_have_count(int(hidden))
        assert (await live.get(f"/items/{best}")).json.get("hidden", False) is hidden
        await wait_until_async(lists_with_it, "they heed it", (0 if hidden else 2).__eq__)
    await page.goto(f"{live.url}/#/items/{best}")
    about = ["categories", "sf"], ["year", "1965"], ["cast", "Ann, Bob"], ["hidden", "no"]
    catalogue = page.get_by_role("region", name="what the catalogue says")
    await expect(catalogue.locator("tbody tr")).to_have_count(4)
    assert await watched.cells("what the catalogue says") == list(about)
    await page.goto(f"{live.url}/#/items/i2")
    for by in ("content", "both", "behaviour"):
        path = f"/similar/i2?n=10&by={by}"
        near = await wait_until_async(partial(listed, live, path), f"some are near by {by}")
        await page.get_by_label("similar by what").select_option(by)

        async def shown() -> list[str]:
            return [row[0] for row in await watched.cells("similar items")]

        await wait_until_async(shown, f"near by {by}: {near}", near.__eq__)
    assert watched.complaints == []


async def test_someone_who_is_not_stored_gets_the_list_of_these_ratings(
    live: Client, watched: Watched
) -> None:
    page, given = watched.page, list[dict[str, Any]]()
    before = (await live.get("/export/ratings")).text
    await page.goto(f"{live.url}/#/users")

    async def shows_their_list() -> None:
        answer = (await live.post("/recommend", {"ratings": given, "n": 10})).ok.json["items"]
        wanted = [(each["item_id"], f"{each['rating']:.2f}", f"{each['score']:#.3g}") for each in answer]

        async def shown() -> list[tuple[str, ...]]:
            return [(row[1], row[2], row[4]) for row in await watched.cells("recommended")]

        await wait_until_async(shown, f"the list of {given}: {wanted}", wanted.__eq__)

    for item, value in (("i1", 5), ("i2", 1), ("nowhere", 3)):
        await give(watched, item, value)
        given.append({"item_id": item, "rating": value})
        await shows_their_list()
    await expect(page.locator("main")).to_contain_text("1 rating of items that are not known did not count.")
    await page.get_by_role("button", name="i1: 5").click()
    del given[0]
    await shows_their_list()
    assert sorted((await live.get("/export/ratings")).text.split()) == sorted(before.split())
    assert watched.complaints == []


def settled(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what each call has of its own, or what grows meanwhile."""
    for each in answer.get("generations", ()):
        each.pop("feedback", None)
    return {name: value for name, value in answer.items() if name != "recommendation_id"}


@pytest.mark.parametrize("closed", [False, True])
async def test_what_is_copied_runs_and_answers_the_same(live: Client, store: Store, *, closed: bool) -> None:
    secret, answers, copied = new_secret(), dict[str, Response](), list[str]()
    environ = {**os.environ, **({"FOLDIN_API_KEY": secret} if closed else {})}
    if closed:
        await store.access.add(secret, "all", "operate")
        await wait_until_async(lambda: live.get("/status"), "closed", lambda reply: reply.status == 401)
    async with browsing(permissions=["clipboard-read", "clipboard-write"]) as watched:
        page = watched.page
        page.on("response", lambda answer: answers.update({answer.url: answer}))
        await page.goto(f"{live.url}/#/users")
        if closed:
            await page.fill("#key", secret)
            await page.click("#login button")
        for item in ("i1", "it's"):
            await give(watched, item, 4)
        await expect(page.locator(".found button")).to_have_count(2)
        for name in ("users", "users/u1", "items/i2", "generations", "data", "system"):
            await page.goto(f"{live.url}/#/{name}")
            await expect(page.locator(".commands button").first).to_be_visible()
            await page.wait_for_load_state("networkidle")
            for button in await page.locator(".commands button").all():
                copied.append((await button.inner_text()).removeprefix("copy as "))
                await button.click()
                said = button.locator("xpath=..").get_by_role("status")
                await expect(said).to_have_text(f"copied as {copied[-1]}")
                text = await page.evaluate("navigator.clipboard.readText()")
                assert secret not in text
                if copied[-1] == "Python":
                    ids = re.findall(r"item_id='(\w+)'", await ran(text, environ=environ))
                    assert ids == [row[1] for row in await watched.cells("recommended")]
                    continue
                shell = ["sh", "-c", text.replace("curl", "curl --silent --fail", 1)]
                done = await asyncio.to_thread(run, shell, env=environ, capture_output=True, check=True)
                (url,) = [word for word in shlex.split(text) if word.startswith("http")]
                if url in answers:
                    assert settled(json.loads(done.stdout)) == settled(await answers[url].json()), text
        # Where a page has no clipboard the text stays, as it is, to be selected.
        await page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject())")
        await page.goto(f"{live.url}/#/users/u1")
        await page.get_by_role("button", name="copy as Python").click()
        shown = await page.locator(".commands [role=status]").inner_text()
        assert re.search(r"^from foldin_client .*\n\nwith Client.*:\n    print", shown, re.MULTILINE)
    assert (copied.count("curl"), copied.count("Python")) == (8, 2)


async def test_all_is_saved_and_read_again(
    live: Client, store_settings: StoreSettings, watched: Watched, tmp_path: Path
) -> None:
    assert (await live.ask("PUT", "/users/u1/attributes", json={"age": 30})).status == 200
    await watched.page.goto(f"{live.url}/#/data")
    for what in ("ratings", "items", "users"):
        file = tmp_path / f"{what}.ndjson"
        async with watched.page.expect_download() as download:
            await watched.page.get_by_role("button", name=file.name).click()
        await (await download.value).save_as(file)
        exported = (await live.get(f"/export/{what}")).text.splitlines()
        assert sorted(file.read_text("utf-8").splitlines()) == sorted(exported)
        if what == "ratings":
            assert len(exported) == 4500
            empty = replace(store_settings, namespace=f"{store_settings.namespace}-copy")
            async with serving(empty) as (other, _):
                assert (await other.post("/ratings", file.read_bytes(), headers=LINES)).status == 200
                assert sorted((await other.get("/export/ratings")).text.splitlines()) == sorted(exported)
        else:
            arguments = ("import", file, f"--{what}", "--dry-run", "--url", live.url)
            assert (await asyncio.to_thread(foldin, *arguments)).returncode == 0
    assert watched.complaints == []


# What a person sees of a load: the sentence, and where the bar is then.
SEEN = """const main = document.querySelector("#main"), at = () => main.querySelector("progress")?.position;
window.seen = [];
new MutationObserver(() => {
  const said = main.querySelector("#sent")?.innerText;
  if (said && seen.at(-1)?.[0] !== said) seen.push([said, at()]);
}).observe(main, { childList: true, subtree: true, characterData: true });"""
HEADER = ("When", "Product; name", "Stars", "Customer")
CSV = """When;"Product; name";Stars;Customer
2024-01-02;"A ""fine""
thing";5;zoe

2024-01-03;"Another; thing";3;zoe
;x;many;yan
;;4;yan
someday;x;4;yan
"""


async def test_a_file_is_shown_checked_mended_and_loaded(
    client: Client, watched: Watched, tmp_path: Path
) -> None:
    page, file, found = watched.page, tmp_path / "mine.csv", watched.page.locator("#found")
    file.write_text(CSV, "utf-8")
    await page.goto(f"{client.url}/#/data")

    async def check() -> None:
        """Choose the file, and say which columns are which: their names say nothing."""
        async with page.expect_file_chooser() as chooser:
            await page.click("#file")
        await (await chooser.value).set_files(file)
        await page.get_by_label("the first row has names").check()
        for role, name in zip(("timestamp", "item", "rating", "user"), HEADER, strict=True):
            await page.locator(f"#column-{role}").select_option(label=name)
        await page.click("#check")

    await check()
    await expect(found).to_contain_text("2 ratings of 1 user for 2 items, from 3 to 5")
    await expect(found).to_contain_text('the rating "many" is no number')
    lines = [row[0] for row in await watched.cells("bad rows")]
    named = "user=Customer,item=Product; name,rating=Stars,timestamp=When"
    done = await asyncio.to_thread(foldin, "import", file, "--columns", named, "--url", client.url)
    assert lines == re.findall(r"line (\d+)", done.stdout) == ["6", "7", "8"], done
    assert (await client.get("/users/zoe")).status == 404
    assert await watched.violations() == []
    await found.get_by_role("button", name="Load 2 ratings").click()
    await expect(page.locator("#sent")).to_have_text("2 of 2 are stored.")
    kept = (await client.get("/users/zoe/ratings")).json["ratings"]
    assert [each["item_id"] for each in kept] == ["Another; thing", 'A "fine"\nthing']
    assert (kept[0]["rating"], kept[1]["rating"], kept[1]["timestamp"]) == (3, 5, 1704153600)
    # What was found in the file as it was is no longer shown once it has changed, and it can be chosen again.
    stars = np.random.default_rng(1).integers(1, 6, 12_000).tolist()
    table = [(n, f"film{n % 30}", stars[n], f"reader{n // 30}") for n in range(12_000)]
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, delimiter=";").writerows([HEADER, *table])
    await page.click("#check")
    await expect(page.locator("main [role=alert]")).to_contain_text("changed since it was chosen")
    await expect(found).to_have_count(0)
    await check()
    await expect(found).to_contain_text("12,000 ratings of 400 users for 30 items, from 1 to 5.")
    # Stopped while the first part of it is on its way: that is stored, and nothing behind it.
    stopped = asyncio.Event()

    async def held(route: Route) -> None:
        await stopped.wait()
        await route.continue_()

    await page.route("**/ratings", held)
    await found.get_by_role("button", name="Load 12,000 ratings").click()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    stopped.set()
    await expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    await expect(page.locator("#sent")).to_have_text("5,000 of 12,000 are stored.")
    await expect(page.locator("#sent + .soft")).to_have_text("mine.csv, stopped")
    assert len((await client.get("/export/ratings")).text.splitlines()) == 5_000 + 2 + 2
    await page.unroute("**/ratings")
    # Of a proxy before a service that starts: it passes.
    await page.route("**/ratings", lambda route: route.fulfill(status=502), times=1)
    await page.evaluate(SEEN)
    await found.get_by_role("button", name="Load 12,000 ratings").click()
    await expect(page.locator("#sent")).to_have_text("12,000 of 12,000 are stored.")
    seen = [(said.split()[0], at) for said, at in await page.evaluate("seen")]
    assert seen[:3] == [("0", 0), ("5,000", 5 / 12), ("10,000", 10 / 12)]
    assert seen[3][0] == "12,000"
    stored = map(json.loads, (await client.get("/export/ratings")).text.splitlines())
    rows = {(each["timestamp"], each["item_id"], each["rating"], each["user_id"]) for each in stored}
    assert set(table) <= rows
    # Of two columns with one name none is taken, as by the command.
    (file := file.with_name("twice.csv")).write_text("user,user,item,rating\na,b,x,4\n", "utf-8")
    await page.set_input_files("#file", file)
    await expect(page.locator("main [role=alert]")).to_contain_text(twice := "has two columns user")
    await expect(page.locator("#check")).to_be_disabled()
    done = await asyncio.to_thread(foldin, "import", file, "--url", client.url)
    assert twice in done.stdout + done.stderr
    assert [each for each in watched.complaints if "502" not in each] == []


async def test_quality_shows_the_figures_of_the_fit_and_of_lists(live: Client, watched: Watched) -> None:
    page, card = watched.page, watched.page.locator(".card")
    list_ = (await live.get("/recommend/u1?n=5&impressions=true")).ok.json
    bought = {"user_id": "u1", "item_id": list_["items"][1]["item_id"], "type": "purchase", "value": 2}
    await live.post("/events", {**bought, "recommendation_id": list_["recommendation_id"]})

    async def generation() -> dict[str, Any]:
        return next(each for each in (await live.get("/generations")).json["generations"] if each["live"])

    told = await wait_until_async(
        generation, "a purchase came of a list", lambda each: each.get("feedback", {}).get("positives") == 1
    )
    metrics, lists = told["metrics"], told["feedback"]
    await page.goto(f"{live.url}/#/quality")
    tenths = [f"{100 * metrics[f'held_out_coverage_tenth_{n}']:.1f} %" for n in range(1, 11)]
    await expect(page.locator("[aria-label=calibration] .figure")).to_have_text(tenths)
    figures = dict(await watched.cells("held-out metrics"))
    assert figures["error (RMSE)"] == f"{metrics['held_out_rmse']:.4f}"
    assert figures["error of averages of users and items (RMSE)"] == f"{metrics['baseline_loss']:.4f}"
    assert figures["share within the 90 % interval"] == f"{metrics['held_out_coverage']:.4f}"
    await expect(card.filter(has_text="items shown")).to_contain_text(str(lists["shown"]))
    await expect(card.filter(has_text="positive rate")).to_contain_text("20.0 %")
    await expect(card.filter(has_text="catalogue shown")).to_contain_text(f"{100 * lists['coverage']:.1f} %")
    # What was bought is told beside the ratings.
    await page.goto(f"{live.url}/#/users/u1")
    await expect(page.get_by_role("region", name="other events of this user")).to_be_visible()
    events = [(each["item_id"], each["type"]) for each in (await live.get("/users/u1/events")).json["events"]]
    assert [(row[0], row[1]) for row in await watched.cells("other events of this user")] == events
    assert (bought["item_id"], "purchase") in events

    # An engine of choices has other figures: shares, not errors.
    async def of_choices(route: Route) -> None:
        answer = await (await route.fetch()).json()
        for each in answer["generations"]:
            each |= {"engine": "implicit", "metrics": {"loss": 0.2, "baseline_loss": 0.3}}
        await route.fulfill(json=answer)

    await page.route("**/generations", of_choices)
    await page.goto(f"{live.url}/#/quality")
    await expect(page.get_by_role("region", name="held-out metrics").locator("tbody tr")).to_have_count(2)
    assert await watched.cells("held-out metrics") == [
        ["share of the other items placed above a chosen one", "0.2000"],
        ["the same, with items placed by popularity", "0.3000"],
    ]
    await page.unroute("**/generations")
    await page.goto(f"{live.url}/#/overview")
    await expect(card.filter(has_text="30 known")).to_contain_text("items30in this generation")
    assert watched.complaints == []


async def test_the_list_of_a_user_is_what_the_api_says_and_moves(live: Client, watched: Watched) -> None:
    page = watched.page
    await live.post("/ratings", {"user_id": "zoe", "item_id": "i0", "rating": 5})
    before = await listed(live, "/recommend/zoe?n=10")
    asked = {"user_id": "zoe", "item_ids": before}
    predicted = (await live.post("/predict", asked)).ok.json["predictions"]
    await page.goto(f"{live.url}/#/users/zoe")
    region = page.get_by_role("region", name="recommended")
    await expect(region.locator("tbody tr")).to_have_count(10)
    assert [(row[1], " ".join(row[2].split())) for row in await watched.cells("recommended")] == [
        (item, f"{each['rating']:.2f} ± {each['std']:.2f}")
        for item, each in zip(before, predicted, strict=True)
    ]
    drawn = "(all) => all.map((it) => [it.style.left, it.style.width].map(parseFloat))"
    bars = await region.locator(".interval i").evaluate_all(drawn)
    for (left, width), each in zip(bars, predicted, strict=True):
        ends = np.clip([each["rating"] - each["std"], each["rating"] + each["std"]], 1.0, 5.0)
        assert [left, left + width] == pytest.approx(25.0 * (ends - 1.0), abs=0.01)
    # Two of it are rated by name, the second before the first is answered: others move, to where it says.
    sent = {item: asyncio.Event() for item in before[3:5]}

    async def held(route: Route) -> None:
        await sent[(route.request.post_data_json or {})["item_id"]].wait()
        await route.continue_()

    await page.route("**/ratings", held)
    await page.get_by_role("button", name="Try ratings").click()
    for item in sent:
        await page.get_by_label("Item").fill(item)
        await page.get_by_role("group", name=f"rate {item}").last.get_by_role("button", name="1").click()
    history = page.get_by_role("region", name="ratings of this user").locator("tbody tr")
    for n, event in enumerate(sent.values(), 2):
        event.set()
        await expect(history).to_have_count(n)
    await expect(region.get_by_role("group", name=f"rate {before[4]}", exact=True)).to_have_count(0)
    after = await listed(live, "/recommend/zoe?n=10")
    by = [before.index(item) - n if item in before else None for n, item in enumerate(after)]
    signs = ["new" if n is None else f"{'▲' if n > 0 else '▼'}{abs(n)}" if n else "" for n in by]
    shown = [
        (row[0].split(maxsplit=1)[1:] or [""])[0] for row in await watched.cells("recommended") if row[0]
    ]
    assert (sent.keys() & set(after), shown) == (set(), signs)
    assert {sign[0] for sign in signs if sign} == {"n", "▲", "▼"}
    assert watched.complaints == []


async def test_long_lists_have_pages(live: Client, watched: Watched) -> None:
    page = watched.page
    films = [{"item_id": f"z{n:02}", "title": f"Later {n:02}"} for n in range(25)]
    assert (await live.post("/items", films)).status == 200
    await live.post("/ratings", [{"user_id": "zoe", "item_id": f"i{n}", "rating": 3} for n in range(25)])
    some, ratings = "/items?n=50&of=all&by=id", "/users/zoe/ratings?n=20"
    behind = (await live.get(some)).json["next"]
    pages = {
        ("items", "items", "more", "back"): [
            await listed(live, path) for path in (some, f"{some}&cursor={behind}")
        ],
        ("users/zoe", "ratings of this user", "earlier ones", "later ones"): [
            await listed(live, path, "ratings") for path in (ratings, f"{ratings}&offset=20")
        ],
    }
    for (name, table, on, back), (one, two) in pages.items():
        await page.goto(f"{live.url}/#/{name}")
        rows = page.get_by_role("region", name=table, exact=True).locator("tbody tr")
        for button, ids in ((None, one), (on, two), (back, one)):
            if button:
                await page.get_by_role("button", name=button).click()
            await expect(rows).to_have_count(len(ids))
            assert [row[0] for row in await watched.cells(table)] == ids
    assert (len(one), len(two)) == (20, 5)
    assert watched.complaints == []


async def test_keys_are_made_and_removed_and_the_tab_goes_on(client: Client, watched: Watched) -> None:
    page, keys = watched.page, dict[str, str]()
    page.on("dialog", lambda dialog: dialog.accept())
    await page.goto(f"{client.url}/#/system")
    for name, role in (("first", "operate"), ("viewer", "read")):
        await page.fill("#key-name", name)
        await page.select_option("#key-role", role)
        await page.get_by_role("button", name="Make a key").click()
        made = page.get_by_role("status").filter(has_text=f"The key of {name}, shown this once:")
        keys[name] = await made.locator("code").inner_text()
        async with client_of(client.url, keys[name]) as holder:
            in_force = partial(lambda role, it: it.json.get("role") == role, role)
            await wait_until_async(partial(holder.get, "/access"), f"{name} may {role}", in_force)
    await wait_until_async(partial(client.get, "/status"), "closed", lambda it: it.status == 401)
    viewer = page.get_by_role("region", name="keys").locator("tr", has_text="viewer")
    await viewer.get_by_role("button", name="remove").click()
    await expect(viewer).to_have_count(0)
    async with client_of(client.url, keys["viewer"]) as holder:
        await wait_until_async(partial(holder.get, "/popular"), "refused", lambda it: it.status == 401)
    # The page asks for no key: it has gone on with the first.
    await page.goto(f"{client.url}/#/overview")
    await expect(page.locator("#state")).to_have_text("live")
    assert watched.complaints == []
