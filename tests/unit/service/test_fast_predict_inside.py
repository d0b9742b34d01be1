"""The fast path of GET /predict: what it uses of aiohttp that may change, and what refers to it."""

from pathlib import Path

from aiohttp import web

from service.server.fast_predict import INSIDE, POSSIBLE

ROOT = Path(__file__).resolve().parents[3]


def test_what_is_used_of_aiohttp_is_there() -> None:
    missing = [name for name in INSIDE if not hasattr(web.RequestHandler, name)]
    assert not missing, f"this aiohttp has no {missing}: GET /predict would take twice the time"
    assert POSSIBLE
