"""The deployed recommender as a player: it learns and answers over the Foldin API, as any client would.

Invariant: ratings that others gave the API are never thrown away unless `replace` was asked for. A fresh API
(or one that only knows an earlier `POST /train`) is trained on the history as the lecture has it, with the
environment's own numbers as ids. Where the API refuses that because it holds other ratings, the history goes
in beside them under ids of this game's own, `world-TAG-u12` and `world-TAG-i7`, and a refit on everything
follows.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from environment.client import History
from environment.players.base import PlayerFailedError

BATCH_RATINGS = 2_000  # an API takes up to 10,000 a call; smaller calls let others through
MAX_RETRY_AFTER_S = 10.0


class _Prediction(msgspec.Struct, frozen=True):
    rating: float


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""
    code: str = ""


class DeployedPlayer:
    """Plays through the API at `url`. `online`: hands in each true rating as soon as it is known.

    `own_ids`: never `POST /train`, always ids under `world-TAG-`: for a second player on the same API, which
    must not see the ratings of the first. Time limits are the caller's.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        tag: str,
        online: bool,
        replace: bool,
        own_ids: bool,
    ) -> None:
        self._session = session
        self._url = url
        self._tag = tag
        self._online = online
        self._replace = replace
        self._own_ids = own_ids
        self.note = ""

    async def prepare(self, history: History) -> None:
        """Train the API on the history; returns when a generation that knows it answers."""
        if self._own_ids or history.rating.size == 0 or not await self._train(history):
            await self._add_beside(history)

    async def predict(self, user: int, item: int) -> float:
        """`GET /predict`."""
        user_id, item_id = self._ids(user, item)
        status, body, _ = await self._call("GET", "/predict", params={"user_id": user_id, "item_id": item_id})
        if status != HTTPStatus.OK:
            raise self._refused("GET /predict", status, body)
        try:
            return msgspec.json.decode(body, type=_Prediction).rating
        except msgspec.MsgspecError as error:
            raise PlayerFailedError(
                f"GET {self._url}/predict returned something unexpected: {error}"
            ) from error

    async def learn(self, user: int, item: int, rating: float) -> None:
        """`POST /ratings`, when playing online."""
        if not self._online:
            return
        user_id, item_id = self._ids(user, item)
        document = {"user_id": user_id, "item_id": item_id, "rating": rating}
        status, body, _ = await self._call("POST", "/ratings", document)
        if not _is_success(status):
            raise self._refused("POST /ratings", status, body)

    async def close(self) -> None:
        """The session is the caller's."""

    async def _train(self, history: History) -> bool:
        """The lecture's way. False when the API keeps what it has."""
        document: dict[str, Any] = {
            "nb_users": history.n_users,
            "nb_items": history.n_items,
            "user_history": history.user.tolist(),
            "item_history": history.item.tolist(),
            "rating_history": history.rating.tolist(),
        }
        if self._replace:
            document["replace"] = True
        status, body = await self._call_patiently("/train", document)
        if status == HTTPStatus.CONFLICT and not self._replace:
            return False
        if not _is_success(status):
            raise self._refused("POST /train", status, body)
        return True

    async def _add_beside(self, history: History) -> None:
        self._own_ids = True
        self.note = f"ids world-{self._tag}-* beside other ratings"
        rows = [
            {"user_id": self._ids(user, item)[0], "item_id": self._ids(user, item)[1], "rating": rating}
            for user, item, rating in zip(
                history.user.tolist(), history.item.tolist(), history.rating.tolist(), strict=True
            )
        ]
        for first in range(0, len(rows), BATCH_RATINGS):
            status, body = await self._call_patiently("/ratings", rows[first : first + BATCH_RATINGS])
            if not _is_success(status):
                raise self._refused("POST /ratings", status, body)
        if rows:
            status, body = await self._call_patiently("/train", None)
            if not _is_success(status):
                raise self._refused("POST /train", status, body)

    def _ids(self, user: int, item: int) -> tuple[str, str]:
        if self._own_ids:
            return f"world-{self._tag}-u{user}", f"world-{self._tag}-i{item}"
        return str(user), str(item)

    async def _call_patiently(self, path: str, document: object) -> tuple[int, bytes]:
        """POST, again after `Retry-After` while the API is busy (429, 503): safe, as the last rating of a
        pair wins.
        """
        while True:
            status, body, retry_after_s = await self._call("POST", path, document)
            if status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
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
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except msgspec.MsgspecError:
            problem = _Problem(detail=body[:200].decode(errors="replace"))
        return PlayerFailedError(
            f"the API at {self._url} answered {call} with {status} {problem.code}: {problem.detail}"
        )


def _is_success(status: int) -> bool:
    return HTTPStatus(200) <= status < HTTPStatus(300)


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdigit() else 1.0
    return min(max(seconds, 0.05), MAX_RETRY_AFTER_S)
