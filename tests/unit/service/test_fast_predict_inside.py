"""The fast path of GET /predict: what it uses of aiohttp that may change, and what refers to it."""

import re
from pathlib import Path

from aiohttp import web

from service.server import fast_predict
from service.server.fast_predict import INSIDE, POSSIBLE

ROOT = Path(__file__).resolve().parents[3]


def test_what_is_used_of_aiohttp_is_there() -> None:
    missing = [name for name in INSIDE if not hasattr(web.RequestHandler, name)]
    assert not missing, f"this aiohttp has no {missing}: GET /predict would take twice the time"
    assert POSSIBLE


def test_only_the_place_where_connections_are_made_refers_to_it() -> None:
    names = re.compile("fast_predict|fast_connections|FastPredict|FastConnection")
    users = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "service").rglob("*.py"))
        if names.search(path.read_text("utf-8")) and path != Path(fast_predict.__file__)
    ]
    assert users == ["service/server/connections.py"]
    # The file can be deleted with these two lines; then the service is without it.
    lines = (ROOT / users[0]).read_text("utf-8").splitlines()
    assert [line.strip() for line in lines if names.search(line)] == [
        "from service.server.fast_predict import fast_connections",
        "self._connect = fast_connections(context)",
    ]
