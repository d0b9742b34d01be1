"""What a key may not do cannot be pressed, and what it may do works. Which controls call what is found by
pressing each of them; which role a call needs is what the description of the API says.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Request, Response, Route, expect
from playwright.async_api import TimeoutError as NotInTime

from featurestore.access import Role, new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.http.access import LEVELS
from tests.browser.pages import BROWSER, Watched, browsing
from tests.support import house
from tests.support.serving import Client, serving
from tests.support.waiting import wait_until_async

# Some hundred pages are opened.
pytestmark = [pytest.mark.slow, *BROWSER, pytest.mark.timeout(1_200)]
ROLES_OF_PEOPLE: tuple[Role, ...] = ("read", "rate", "operate")
# Page, and what is there once all of it is.
PAGES = {
    "overview": "#cards",
    "users": "[aria-label=recommended]",
    "users/ann": "[aria-label='ratings of this user'] td",
    "items": "[aria-label='the catalogue'] td",
    "items/dune": "[aria-label='similar items']",
    "quality": "[aria-label='report kept']",
    "generations": "[aria-label=generations] td",
    "data": "text=None was made yet",
    "system": "[aria-label=workers] td",
}
# What the pages call of themselves, in the code: a control that is not found here would not be pressed.
CALL = re.compile(r'\b(?:call|ask)\("([A-Z]+)", ["`](/[^"`]*)["`]')
# Read again and again, whatever is pressed.
POLLED = {"/status", "/history", "/access"}
# A control calls at once, or after the next frame, or after a look at a file; none found makes no call.
CALLS_WITHIN_S = 2.5


@dataclass(frozen=True)
class Control:
    """A button of a page by what it says, and what it calls, as the description of the API names it."""

    page: str
    says: str
    calls: tuple[str, str]


@pytest.fixture
async def closed(client: Client, store_settings: StoreSettings, store: Store) -> AsyncIterator[Client]:
    """A service that asks for keys, with two generations, a catalogue, a report and some ratings."""
    rows = [{"user_id": "ann", "item_id": f"film{n}", "rating": 3} for n in range(6)]
    assert (await client.post("/ratings", rows)).status == 200
    films = [{"item_id": f"film{n}", "title": f"Film {n}"} for n in range(6)]
    # The first of the list is the one that is hidden there.
    others = [{"item_id": "a-spare-one"}, {"item_id": "dune", "title": "Dune"}]
    assert (await client.post("/items", [*films, *others])).status == 200
    row = {"data": "a.csv", "split": "random 1", "engine": "auto", "rmse": 0.9}
    assert (await client.ask("PUT", "/reports/kept", json={"rows": [row]})).status == 200
    assert (await client.post("/train")).status == 200
    # The first of the list, which is removed.
    await store.access.add(new_secret(), "a-spare-one", "read")
    async with serving(store_settings) as (closed, _):
        yield closed


@dataclass(frozen=True)
class Description:
    """What a service says of its calls."""

    paths: dict[str, dict[str, Any]]

    @classmethod
    async def of(cls, client: Client) -> "Description":
        return cls((await client.get("/openapi.json")).json["paths"])

    def call(self, method: str, path: str) -> tuple[str, str]:
        """A call by its template; of two that fit, that with fewer places to fill."""
        bare = path.partition("?")[0]
        fitting = [
            each
            for each, methods in self.paths.items()
            if method.lower() in methods and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", each), bare)
        ]
        return method, min(fitting, key=lambda each: each.count("{"))

    def needs(self, call: tuple[str, str]) -> Role:
        """The role of a key that may ask."""
        method, path = call
        role: Role = self.paths[path][method.lower()]["x-role"]
        return role


def says(button: str) -> str:
    """What a button says, without what differs from row to row."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"^.*\bwhy\?$", "why?", " ".join(button.split())))


async def buttons(page: Page) -> dict[str, Locator]:
    """The first button of each kind of the page that is open."""
    found: dict[str, Locator] = {}
    for each in await page.locator("main button").all():
        found.setdefault(says(await each.inner_text()), each)
    return found


async def ready(page: Page, url: str, name: str, files: Path) -> dict[str, Locator]:
    """Open a page and fill in all that it has: what is off now is off for the key. Return its buttons."""
    await page.goto("about:blank")
    await page.goto(f"{url}/#/{name}")
    await expect(page.locator(PAGES[name]).first).to_be_attached(timeout=20_000)
    for each in await page.get_by_role("textbox", name=re.compile("^type ")).all():
        (number,) = re.findall(r"\d+", await each.get_attribute("aria-label") or "")
        await each.fill(number)
    for item in await page.locator("main").get_by_label("Item", exact=True).all():
        await item.fill("dune")
    for each in await page.locator("main input[type=number]").all():
        await each.fill("3")
    for chosen in await page.locator("main input[type=file]").all():
        report = "jsonl" in (await chosen.get_attribute("accept") or "")
        await chosen.set_input_files(files / ("report.jsonl" if report else "ratings.csv"))
    for key_name in await page.locator("#key-name").all():
        await key_name.fill("another")
    if name == "data":
        await page.click("#check")
        await expect(page.locator("#found")).to_be_visible()
    return await buttons(page)


@asynccontextmanager
async def entered(url: str, secret: str) -> AsyncIterator[Watched]:
    """A browser whose tab has a key, and says yes to every question."""
    async with browsing() as watched:
        await watched.page.goto(f"{url}/")
        await watched.page.fill("#key", secret)
        await watched.page.click("#login button")
        await expect(watched.page.locator("#login")).to_have_count(0)
        watched.page.on("dialog", lambda dialog: dialog.accept())
        yield watched


def of_service(request: Request, url: str) -> str | None:
    """The path and query of a call of the API that something on the page made."""
    if request.resource_type != "fetch" or not request.url.startswith(f"{url}/"):
        return None
    path = request.url.removeprefix(url)
    return None if path.partition("?")[0] in POLLED else path


async def pressed(page: Page, url: str, button: Locator, within_s: float) -> Request | None:
    """Press a button; return the first call of the API that comes of it, None where there is none."""
    try:
        async with page.expect_request(
            lambda request: of_service(request, url) is not None, timeout=1_000 * within_s
        ) as request:
            await button.click()
        return await request.value
    except NotInTime:
        return None


async def found_controls(
    url: str,
    secret: str,
    pages: Sequence[str],
    api: Description,
    files: Path,
    *,
    within_s: float = CALLS_WITHIN_S,
) -> list[Control]:
    """Press each button of each page, with a key that may do all; what would change something does not reach
    the service.
    """

    async def refuse(route: Route) -> None:
        if route.request.method == "GET":
            await route.continue_()
        else:
            await route.fulfill(status=418, json={"title": "not now"})

    controls = []
    async with entered(url, secret) as watched:
        page = watched.page
        for name in pages:
            for each in await ready(page, url, name, files):
                button = (await ready(page, url, name, files))[each]
                await expect(button, f"{name}: {each}").to_be_enabled()
                # What the page asks for of itself has been asked.
                await page.wait_for_load_state("networkidle")
                await page.route(f"{url}/**", refuse)
                if (request := await pressed(page, url, button, within_s)) is not None:
                    call = api.call(request.method, of_service(request, url) or "")
                    controls.append(Control(name, each, call))
                await page.unroute(f"{url}/**", refuse)
    return controls


async def try_controls(
    url: str, key: tuple[Role, str], controls: Sequence[Control], api: Description, files: Path
) -> None:
    """What the role of a key may not do is off, or not there. What needs this very role is pressed, and does
    it.
    """
    role, secret = key
    async with entered(url, secret) as watched:
        page = watched.page
        for name in dict.fromkeys(each.page for each in controls):
            here = [each for each in controls if each.page == name]
            found = await ready(page, url, name, files)
            for control in here:
                button, needed = found.get(control.says), api.needs(control.calls)
                said = f"{control} needs {needed}, with a key of the role {role}"
                if LEVELS[role] >= LEVELS[needed]:
                    assert button is not None, said
                    await expect(button, said).to_be_enabled()
                elif button is not None:
                    await expect(button, said).to_be_disabled()
                    assert needed in (await button.get_attribute("title") or ""), said
            for control in here:
                if api.needs(control.calls) != role:
                    continue
                button = (await ready(page, url, name, files))[control.says]
                async with page.expect_response(_is_answer(control, url, api)) as answer:
                    await button.click()
                assert (await answer.value).ok, f"{control}: {(await answer.value).status}"
        assert not [each for each in watched.refused if each.startswith("403")], role


def _is_answer(control: Control, url: str, api: Description) -> Callable[[Response], bool]:
    return lambda response: _calls(response.request, url, api) == control.calls


def _calls(request: Request, url: str, api: Description) -> tuple[str, str] | None:
    path = of_service(request, url)
    return None if path is None else api.call(request.method, path)


def written_calls(api: Description) -> set[tuple[str, str]]:
    """What the code of the pages calls that reading alone does not allow."""
    text = "\n".join(path.read_text("utf-8") for path in (house.ROOT / "service/static/app").glob("*.js"))
    calls = {api.call(method, re.sub(r"\$\{[^}]*\}", "x", path)) for method, path in CALL.findall(text)}
    return {each for each in calls if LEVELS[api.needs(each)] > LEVELS["read"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A report and ratings, to be chosen where a page takes a file."""
    (tmp_path / "report.jsonl").write_text('{"data": "b.csv", "split": "random 1", "engine": "auto"}\n')
    (tmp_path / "ratings.csv").write_text("user,item,rating\nbea,dune,4\nbea,emma,2\n")
    return tmp_path


async def test_each_control_is_off_without_the_role_that_its_call_needs_and_works_with_it(
    closed: Client, store: Store, files: Path
) -> None:
    secrets = {role: new_secret() for role in ROLES_OF_PEOPLE}
    api = await Description.of(closed)
    for role, secret in secrets.items():
        await store.access.add(secret, f"key-{role}", role)
    await admits(closed, secrets["operate"])
    at = closed.url, secrets["operate"], tuple(PAGES), api, files
    controls = await found_controls(*at)
    if written_calls(api) - {each.calls for each in controls} != {("PUT", "/scale")}:
        # On busy cores one may have called too late.
        controls = await found_controls(*at, within_s=4 * CALLS_WITHIN_S)
    for each in controls:
        print(f"{each.page}: {each.says!r} calls {' '.join(each.calls)}, which needs {api.needs(each.calls)}")
    # No control that changes something was overlooked, but that of a store without a scale, see below.
    assert written_calls(api) - {each.calls for each in controls} == {("PUT", "/scale")}
    for role in ROLES_OF_PEOPLE:
        await try_controls(closed.url, (role, secrets[role]), controls, api, files)


async def admits(client: Client, secret: str) -> None:
    """Wait until the service knows a key."""

    async def known() -> bool:
        return (await client.get("/status", headers={"X-API-Key": secret})).status == 200

    await wait_until_async(known, "the key is known")
