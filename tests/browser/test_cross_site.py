"""Pages of other origins in a real browser: none can train, rate or read."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from playwright.async_api import Page

from featurestore.store import Store
from service.context import CONTEXT
from tests.browser.pages import BROWSER, browsing
from tests.support.serving import serving
from tests.support.small_trainer import RATINGS, Trainer, training
from tests.support.waiting import wait_until_async

# Names of two other sites, both leading to this machine, as DNS rebinding would have it.
RESOLVE = "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP other.example 127.0.0.1"
HISTORY = (
    '{"nb_users":1,"nb_items":1,"user_history":[0],"item_history":[0],"rating_history":[3],"replace":true}'
)
POST_JSON = f"{{method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: '{HISTORY}'}}"
RATING = '{"user_id":"eve","item_id":"dune","rating":1}'

# What a page may send to any address without asking it first. `URL` is the service.
WITHOUT_LEAVE = [
    f"fetch('URL/train', {{method: 'POST', mode: 'no-cors', body: new Blob(['{HISTORY}'])}})",
    "fetch('URL/train', {method: 'POST', mode: 'no-cors'})",
    f"fetch('URL/train', {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{HISTORY}'}})",
    f"fetch('URL/ratings', {{method: 'POST', mode: 'no-cors', body: new Blob(['{RATING}'])}})",
    "fetch('URL/predict?user_id=ann&item_id=dune', {mode: 'no-cors'})",
    f"navigator.sendBeacon('URL/train', new Blob(['{HISTORY}']))",
]
# What it may not, so that the browser asks first (`OPTIONS`) and gets no leave.
WITH_LEAVE = [
    f"fetch('URL/train', {POST_JSON})",
    "fetch('URL/users/ann', {method: 'DELETE'})",
    "fetch('URL/predict?user_id=ann&item_id=dune')",
]
FORM = """<form id="f" method="post" enctype="text/plain" action="URL/train">
<input name='{"replace":true,"nb_users":1,"nb_items":1,"user_history":[0],"item_history":[0],"x":"'
value='","rating_history":[3]}'></form>"""
# On a page that the service itself gave under the foreign name: of the same origin to the browser.
REBOUND = [
    f"fetch('/train', {POST_JSON})",
    "fetch('/train', {method: 'POST'})",
    "fetch('/users/ann', {method: 'DELETE'})",
    "fetch('/predict?user_id=ann&item_id=dune')",
]


pytestmark = [pytest.mark.slow, *BROWSER]


@dataclass(frozen=True)
class Scene:
    url: str
    evil_url: str
    app: web.Application
    trainer: Trainer
    store: Store

    @property
    def statuses(self) -> dict[str, int]:
        found = Counter[str]()
        for route, by_status in self.app[CONTEXT].counts.requests.items():
            if route not in {"/readyz", "/", "/access", "unmatched"} and "/static" not in route:
                found.update(by_status)
        return found

    async def untouched(self) -> bool:
        return not self.trainer.taken and await self.store.stream.lag(1) == {0: 0, 1: 0, 2: 0, 3: 1}


def serving_page(html: str) -> RawTestServer:
    async def page(_request: web.BaseRequest) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    return RawTestServer(page)


@pytest.fixture
async def scene(store: Store) -> AsyncIterator[Scene]:
    async with (
        training(store, [b"dune"], RATINGS[:1]) as trainer,
        serving(store.settings, live=1) as (client, app),
        serving_page(f"<!doctype html><p>evil</p>{FORM.replace('URL', client.url)}") as evil,
    ):
        yield Scene(client.url, f"http://evil.example:{evil.port}", app, trainer, store)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with browsing(RESOLVE) as watched:
        yield watched.page


async def run(page: Page, calls: Sequence[str], url: str = "") -> list[str]:
    """What the page learned of each call: a status, `opaque`, `sent`, or that the browser stopped it."""
    found = []
    for call in calls:
        script = call.replace("URL", url)
        if "sendBeacon" not in call:
            script += ".then((it) => it.type === 'opaque' ? 'opaque' : String(it.status), () => 'stopped')"
        learned = await page.evaluate(script)
        found.append("sent" if learned is True else learned)
    return found


async def test_a_page_of_another_site_changes_and_learns_nothing(scene: Scene, page: Page) -> None:
    await page.goto(scene.evil_url)
    before = scene.statuses.get("403", 0)
    assert set(await run(page, WITHOUT_LEAVE, scene.url)) <= {"opaque", "sent", "stopped"}
    assert set(await run(page, WITH_LEAVE, scene.url)) == {"stopped"}
    # They did come: it is the service that refused them.
    wanted = before + len(WITHOUT_LEAVE)
    await wait_until_async(lambda: scene.statuses.get("403", 0) >= wanted, "all calls came")
    assert set(scene.statuses) <= {"403", "204", "405"}
    async with page.expect_navigation():
        await page.evaluate("document.getElementById('f').submit()")
    assert "cross_site" in await page.content()
    assert await scene.untouched()


async def test_a_name_that_leads_here_opens_nothing(scene: Scene, page: Page) -> None:
    rebound = scene.url.replace("127.0.0.1", "other.example")
    await page.goto(f"{rebound}/")
    assert "cross_site" in await page.content()
    assert await run(page, REBOUND) == ["403"] * len(REBOUND)
    assert set(scene.statuses) == {"403"}
    assert await scene.untouched()
