"""A small service with a fit, and a browser that watches its page."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from featurestore.store import Store
from tests.browser.pages import Watched, browsing
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer
from tests.support.waiting import PATIENCE_S

expect.set_options(timeout=1_000 * PATIENCE_S)


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    async with serving_with_trainer(store) as client:
        yield client


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with browsing() as watched:
        yield watched
