"""Fixtures of the tests of a service."""

import pytest

from featurestore.store import Store
from service.http.dispatch import Connection
from service.server import connections
from tests.support.factories import Written, publish_for_ann


@pytest.fixture(autouse=True)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether GET /predict goes past aiohttp's tasks. Where not, the module that does it is taken out."""
    is_fast = bool(getattr(request, "param", True))
    if not is_fast:
        monkeypatch.setattr(connections, "fast_connections", lambda context: Connection)
    return is_fast


@pytest.fixture
async def published(store: Store) -> Written:
    """A generation of eight items that knows user `ann`."""
    return await publish_for_ann(store, {"item-0": 5.0})
