"""The client of the API: each failure is an error that says what the caller can do."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from evaluation.api_client import ApiBusyError, ApiClient, ApiRefusedError, ApiUnreadableError, Rating
from tests.integration.evaluation.api_fake import FakeApi, problem, serving

ONE = Rating("ann", "tea", 4.0)


async def test_a_busy_api_says_when_to_come_again_and_is_waited_for_where_asked() -> None:
    fake = FakeApi()
    async with serving(fake.app()) as address, aiohttp.ClientSession() as session:
        client = ApiClient(session, f"{address}/")
        for status in (429, 503, 502, 504):
            fake.refuse(status, Retry_After="7")
            with pytest.raises(ApiBusyError) as caught:
                await client.rate([ONE])
            assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)
        fake.refuse(503, Retry_After="0")
        await client.rate([ONE, Rating("ann", "milk", 2.0)], retry=True)
    assert fake.ratings == {("ann", "tea"): 4.0, ("ann", "milk"): 2.0}


async def test_a_refusal_is_known_by_its_code_and_row() -> None:
    fake = FakeApi()
    refusal = {"detail": "off the scale", "code": "invalid_body", "row": 3}
    fake.refusals = [web.json_response(refusal, status=422), problem(409, "train_in_progress")]
    async with serving(fake.app()) as address, aiohttp.ClientSession() as session:
        client = ApiClient(session, address)
        with pytest.raises(ApiRefusedError, match="422 invalid_body: off the scale") as caught:
            await client.rate([ONE], retry=True)
        assert (caught.value.code, caught.value.row) == ("invalid_body", 3)
        with pytest.raises(ApiBusyError) as busy:
            await client.train(retry=False)
        assert busy.value.code == "train_in_progress"


async def test_a_training_that_takes_longer_than_a_call_is_waited_for() -> None:
    states = ["waiting", "running", "done", "running", "failed"]
    waits: list[str] = []

    async def train(request: web.Request) -> web.Response:
        waits.append(request.query["wait"])
        return web.json_response({"receipt": "abc-1", "state": "running", "since": 1.0}, status=202)

    async def progress(request: web.Request) -> web.Response:
        told = {"receipt": request.match_info["receipt"], "state": states.pop(0), "cause": "fit_refused"}
        return web.json_response(told | {"detail": "too few"})

    app = web.Application()
    app.router.add_post("/train", train)
    app.router.add_get("/train/{receipt}", progress)
    async with serving(app) as address, aiohttp.ClientSession() as session:
        client = ApiClient(session, address, timeout_s=10.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evaluation.api_client.LOOK_S", 0.01)
            await client.train()
            assert states == ["running", "failed"]
            with pytest.raises(ApiRefusedError, match="too few") as caught:
                await client.train()
    assert caught.value.code == "fit_refused"
    assert waits == ["8", "8"]


async def test_another_server_and_a_silent_one_are_told_apart() -> None:
    async def silent(_request: web.Request) -> web.Response:
        await asyncio.get_running_loop().create_future()
        return web.Response()

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/predict", silent)
    app.router.add_get("/status", hello)
    async with serving(app) as address, aiohttp.ClientSession() as session:
        with pytest.raises(ApiUnreadableError, match="unexpected"):
            await ApiClient(session, address).status()
        with pytest.raises(ApiBusyError, match="in time"):
            await ApiClient(session, address, timeout_s=0.1).predict("ann", "tea")
