"""What the short way uses of aiohttp that aiohttp does not promise to keep."""

from aiohttp import web

from service.http.fast_predict import INSIDE, POSSIBLE


def test_what_is_used_of_aiohttp_is_there() -> None:
    missing = [name for name in INSIDE if not hasattr(web.RequestHandler, name)]
    assert not missing, f"this aiohttp has no {missing}: GET /predict would take the long way"
    assert POSSIBLE
