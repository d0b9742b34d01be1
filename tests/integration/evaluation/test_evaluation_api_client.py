"""The client of the API: each failure is an error that says what the caller can do."""

import aiohttp
import pytest
from aiohttp import web

from evaluation.api_client import ApiBusyError, ApiClient, ApiRefusedError, Rating
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
