"""The Foldin API as a client sees it: the few calls that a player makes, each bounded, each error named."""

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from environment.client import History
from evaluation.players.base import PlayerFailedError

MAX_RETRY_AFTER_S = 10.0
CONNECT_PATIENCE_S = 5.0  # enough for a restart; who got the address wrong need not wait for long
BUSY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.BAD_GATEWAY,  # this and the next: a proxy whose service is not up yet
    HTTPStatus.GATEWAY_TIMEOUT,
}


class _Prediction(msgspec.Struct, frozen=True):
    rating: float
    std: float | None = None


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""
    code: str = ""


class _Generation(msgspec.Struct, frozen=True):
    n_ratings: int | None = None


class _Generations(msgspec.Struct, frozen=True):
    generations: list[_Generation]


class FoldinApi:
    """The API at `url`, for the players of one play or evaluation. Every call raises PlayerFailedError.

    `trained_here`: what the API was last trained on came from here, so training it again loses nobody's
    ratings.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.trained_here = False

    async def predict(self, user_id: str, item_id: str) -> tuple[float, float]:
        """`GET /predict`: the expected rating and its standard deviation, NaN where the API tells none."""
        status, body, _ = await self._call("GET", "/predict", params={"user_id": user_id, "item_id": item_id})
        if status != HTTPStatus.OK:
            raise self._refused("GET /predict", status, body)
        try:
            prediction = msgspec.json.decode(body, type=_Prediction)
        except msgspec.MsgspecError as error:
            raise PlayerFailedError(f"{self._url}/predict returned something unexpected: {error}") from error
        return prediction.rating, math.nan if prediction.std is None else prediction.std

    async def rate(self, user_id: str, item_id: str, rating: float) -> None:
        """`POST /ratings` with one rating, once."""
        document = {"user_id": user_id, "item_id": item_id, "rating": rating}
        status, body, _ = await self._call("POST", "/ratings", document)
        if not _is_success(status):
            raise self._refused("POST /ratings", status, body)

    async def add(self, ratings: list[dict[str, Any]]) -> None:
        """`POST /ratings` with many, waiting while the API is busy."""
        status, body = await self._call_patiently("POST", "/ratings", ratings)
        if not _is_success(status):
            raise self._refused("POST /ratings", status, body)

    async def refit(self) -> None:
        """`POST /train` without a body: returns when a generation that knows every rating is live."""
        status, body = await self._call_patiently("POST", "/train")
        if not _is_success(status):
            raise self._refused("POST /train", status, body)

    async def train(self, history: History, *, replace: bool) -> bool:
        """`POST /train` with a history. False when the API would lose ratings by it and `replace` is not
        given.
        """
        document: dict[str, Any] = {
            "nb_users": history.n_users,
            "nb_items": history.n_items,
            "user_history": history.user.tolist(),
            "item_history": history.item.tolist(),
            "rating_history": history.rating.tolist(),
        }
        if replace:
            document["replace"] = True
        status, body = await self._call_patiently("POST", "/train", document)
        if status == HTTPStatus.CONFLICT:
            return False
        if not _is_success(status):
            raise self._refused("POST /train", status, body)
        self.trained_here = True
        return True

    async def is_empty(self) -> bool:
        """Whether no generation rests on any rating. When it cannot be told, then it is not."""
        status, body = await self._call_patiently("GET", "/generations")
        if status != HTTPStatus.OK:
            return False
        try:
            generations = msgspec.json.decode(body, type=_Generations).generations
        except msgspec.MsgspecError:
            return False
        return all(generation.n_ratings == 0 for generation in generations)

    async def _call_patiently(self, method: str, path: str, document: object = None) -> tuple[int, bytes]:
        """Call, and again while the API is busy or about to start. Safe: the last rating of a pair wins."""
        connect_by = time.monotonic() + CONNECT_PATIENCE_S
        while True:
            try:
                status, body, retry_after_s = await self._call(method, path, document)
            except PlayerFailedError:
                if time.monotonic() > connect_by:
                    raise
                retry_after_s = 0.5
            else:
                if status not in BUSY and _problem(body).code != "train_in_progress":
                    return status, body
            await asyncio.sleep(retry_after_s)

    async def _call(
        self, method: str, path: str, document: object = None, params: dict[str, str] | None = None
    ) -> tuple[int, bytes, float]:
        body = None if document is None else msgspec.json.encode(document)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._url + path, params=params, data=body, headers=headers
            ) as response:
                return response.status, await response.read(), _retry_after_s(response)
        except aiohttp.ClientError as error:
            raise PlayerFailedError(f"the API at {self._url} cannot be asked: {error}") from error

    def _refused(self, call: str, status: int, body: bytes) -> PlayerFailedError:
        problem = _problem(body)
        return PlayerFailedError(
            f"the API at {self._url} answered {call} with {status} {problem.code}: {problem.detail}"
        )


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return _Problem(detail=body[:200].decode(errors="replace"))


def _is_success(status: int) -> bool:
    return HTTPStatus(200) <= status < HTTPStatus(300)


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdigit() else 1.0
    return min(max(seconds, 0.05), MAX_RETRY_AFTER_S)
