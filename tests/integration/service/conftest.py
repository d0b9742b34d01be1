"""Fixtures of the tests of a service."""

import pytest

from service.http.dispatch import Connection
from service.server import connections


@pytest.fixture(autouse=True)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether GET /predict goes past aiohttp's tasks. Where not, the module that does it is taken out."""
    is_fast = bool(getattr(request, "param", True))
    if not is_fast:
        monkeypatch.setattr(connections, "fast_connections", lambda context: Connection)
    return is_fast
