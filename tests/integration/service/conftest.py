"""Fixtures of a service: one of its own for a test, or one that all tests of a module ask, which has
`pytestmark = SHARED`, no fixture of a test's own event loop, and names of its own in each test.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.http.connection import Connection
from service.server import worker
from tests.support.factories import Written, opened, publish_for_ann
from tests.support.servers import KIND, own_namespace
from tests.support.serving import Client, Served, serving

SHARED_ITEMS = 12


@pytest.fixture(autouse=True)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether GET /predict goes past aiohttp's tasks. Where not, the module that does it is taken out."""
    is_fast = bool(getattr(request, "param", True))
    if not is_fast:
        monkeypatch.setattr(worker, "fast_connections", lambda context: Connection)
    return is_fast


@pytest.fixture
async def published(store: Store) -> Written:
    return await publish_for_ann(store, {"item-0": 5.0})


@pytest.fixture
async def served(store_settings: StoreSettings, published: Written) -> AsyncIterator[Served]:
    async with serving(store_settings, live=published.writer.number, erase_wait_s=0.1) as (client, app):
        yield client, app


@pytest.fixture
def client(served: Served) -> Client:
    return served[0]


@pytest.fixture
async def other(store_settings: StoreSettings, client: Client, published: Written) -> AsyncIterator[Client]:
    async with serving(store_settings, live=published.writer.number) as (found, _):
        yield found


@pytest.fixture(scope="module")
def shared_settings(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> StoreSettings:
    kind = request.config.getoption("store")
    return own_namespace(server_of(KIND if kind == "both" else kind).url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_store(shared_settings: StoreSettings) -> AsyncIterator[Store]:
    async with opened(shared_settings) as store:
        yield store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_store: Store) -> Written:
    return await publish_for_ann(shared_store, {"item-0": 5.0, "item-1": 1.0, "item-2": 4.0}, SHARED_ITEMS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asked(shared_settings: StoreSettings, shared: Written) -> AsyncIterator[Served]:
    """The service of all tests of a module, with its fast path."""
    async with serving(shared_settings, live=shared.writer.number, erase_wait_s=0.1) as (client, app):
        yield client, app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(shared_settings: StoreSettings, shared: Written) -> AsyncIterator[Served]:
    """The same without its fast path: another worker on the same store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "fast_connections", lambda context: Connection)
        async with serving(shared_settings, live=shared.writer.number, erase_wait_s=0.1) as (client, app):
            yield client, app


@pytest.fixture(scope="module")
def both(asked: Served, plain: Served) -> list[Client]:
    return [asked[0], plain[0]]
