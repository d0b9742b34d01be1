"""The manual in a real browser, under the policy of the service: it looks and searches as it was built,
asks no other address for anything, and can be read by everybody.
"""

import os
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from featurestore.settings import StoreSettings
from service.settings import ServiceSettings
from tests.browser.pages import BROWSER, browsing
from tests.support.serving import Client, serving

MANUAL = ServiceSettings().manual_dir
pytestmark = [
    pytest.mark.slow,
    *BROWSER,
    pytest.mark.skipif(
        not MANUAL.is_dir() and "CI" not in os.environ, reason="needs the manual: `make docs` builds it"
    ),
]


@pytest.fixture
async def client(store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        yield client


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_holds_under_the_policy(client: Client, scheme: str) -> None:
    pages = sorted(path.relative_to(MANUAL).as_posix() for path in MANUAL.rglob("*.html"))
    async with browsing(color_scheme=scheme) as watched:
        for name in pages:
            await watched.page.goto(f"{client.url}/manual/{name}")
            await expect(watched.page.locator("html")).to_have_attribute("data-theme", scheme)
            await watched.page.wait_for_load_state("networkidle")
            assert watched.complaints == [], name
        assert watched.asked_only(client.url)
        assert len(pages) > 20
