"""A client of the Foldin API: the calls that players and benchmarks make.

Every call is bounded in time, and fails with an error that says what the caller can do: `ApiBusyError` try
again later, `ApiRefusedError` change the request, `ApiUnreadableError` check the address. To repeat a call
does no harm: the last rating of a pair counts.

Not `foldin_client`: what is measured here is to be the service, and httpx takes the event loop for several
times as long as aiohttp does, most of all where hundreds of calls are made at a time.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import msgspec

T = TypeVar("T")

# What a proxy answers whose service is not up yet counts as busy, too.
BUSY = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INSUFFICIENT_STORAGE,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
}
MAX_RETRY_AFTER_S = 10.0  # an API that is back earlier is noticed
LOOK_S = 1.0  # a training that takes longer than a call waits takes minutes
CONNECT_RETRY_S = 5.0  # enough for a restart; with a wrong address there is no point in waiting longer


class ApiError(Exception):
    """A call failed. `status` is 0 where no HTTP answer came; all else is of the problem document."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        detail: str = "",
        retry_after_s: float = 1.0,
        row: int | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail or message  # without the address, for a caller that names it by itself
        self.retry_after_s = retry_after_s
        self.row = row
        self.field = field


class ApiBusyError(ApiError):
    """The API has no room now, or does not answer: the same call may be made again after `retry_after_s`."""


class ApiRefusedError(ApiError):
    """The same request will fail again. `row`: which of several ratings is wrong, from 0."""


class ApiUnreadableError(ApiError):
    """The answer is not what this API gives: another server may be there."""


class Rating(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rating as `POST /ratings` takes it. `timestamp`: seconds since 1970, None for now. `context`: numbers
    and categories by name.
    """

    user_id: str
    item_id: str
    rating: float
    timestamp: float | None = None
    context: Mapping[str, float | str] | None = None


class TrainBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """A new history as `POST /train` takes it: parallel lists. `replace`: what is known is thrown away.
    `variables_history`: numbers beside each event, its context with the names `variables_context` gives.
    """

    nb_users: int
    nb_items: int
    user_history: list[int]
    item_history: list[int]
    rating_history: list[float]
    replace: bool = False
    variables_history: list[list[float]] | None = None


def variables_context(variables: Sequence[float]) -> dict[str, float | str] | None:
    """Return the numbers beside an event as the context of its rating, None where there are none."""
    return {f"v{number}": value for number, value in enumerate(variables, 1)} or None


class Prediction(msgspec.Struct, frozen=True):
    """An answer of `GET /predict`. `distribution`: probability of each step of the scale, where asked for;
    `degraded`: it may lack what came last, for the store was away.
    """

    rating: float
    generation: int = 0
    std: float | None = None
    distribution: list[float] | None = None
    degraded: bool = False


class Generation(msgspec.Struct, frozen=True):
    """A generation of `GET /generations`. `n_ratings`: how many it has learned, None where untold."""

    generation: int = 0
    live: bool = False
    n_ratings: int | None = None


class Status(msgspec.Struct, frozen=True):
    """The part of `GET /status` that a client needs: low end, high end and step of the scale."""

    scale: tuple[float, float, float | None]


class _Training(msgspec.Struct, frozen=True):
    # Without a receipt it is live.
    receipt: str = ""
    state: str = "done"
    cause: str = ""
    detail: str = ""


class _Ratings(msgspec.Struct, frozen=True):
    ratings: list["_Rated"]


class _Rated(msgspec.Struct, frozen=True):
    item_id: str
    rating: float


class _Generations(msgspec.Struct, frozen=True):
    generations: list[Generation]


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""
    code: str = ""
    row: int | None = None
    field: str | None = None


class ApiClient:
    """The API at `url`, asked with `key` where there is one. A call takes `timeout_s` at most; the session is
    the caller's.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, key: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def predict(
        self,
        user_id: str,
        item_id: str,
        *,
        timestamp: float | None = None,
        distribution: bool = False,
        context: Mapping[str, float | str] | None = None,
    ) -> Prediction:
        """`GET /predict`. `timestamp`: predict for that time instead of now; `context`: as in `Rating`."""
        query = {"user_id": user_id, "item_id": item_id}
        if timestamp is not None:
            query["timestamp"] = repr(timestamp)
        if distribution:
            query["distribution"] = "true"
        if context is not None:
            query["context"] = msgspec.json.encode(context).decode()
        return self._decode(await self._call("GET", "/predict", query=query), Prediction)

    async def rate(self, ratings: Sequence[Rating], *, retry: bool = False) -> None:
        """`POST /ratings`: all or, where one is refused, none. `retry`: wait while the API is busy."""
        # Lines, not an array: one form for one rating and for many.
        body = msgspec.json.Encoder().encode_lines(ratings)
        await self._call("POST", "/ratings", body, "application/x-ndjson", retry=retry)

    async def name_variables(self, count: int) -> None:
        """`PUT /schema`: name the fields that `variables_context` gives."""
        fields = {f"v{number}": {"kind": "number"} for number in range(1, count + 1)}
        body = msgspec.json.encode({"context": fields})
        await self._call("PUT", "/schema", body, "application/json", retry=True)

    async def ratings(self, user_id: str) -> dict[str, float]:
        """`GET /users/ID/ratings`: what the user rated, by item, the latest 1,000."""
        body = await self._call("GET", f"/users/{user_id}/ratings", query={"n": "1000"})
        return {row.item_id: row.rating for row in self._decode(body, _Ratings).ratings}

    async def train(self, history: TrainBody | None = None, *, retry: bool = True) -> None:
        """`POST /train`: begin a new history, or (None) refit on all that is known.

        Returns when a generation that has learned it is live. The API refuses with the code
        `ratings_would_be_lost` where a history would replace ratings and does not say so, and with the cause
        where the training fails.
        """
        body = b"" if history is None else msgspec.json.encode(history)
        # The call is answered before it is given up.
        query = {"wait": str(int(min(60.0, 0.8 * (self._timeout.total or 60.0))))}
        answer = await self._call("POST", "/train", body, "application/json", query=query, retry=retry)
        told = self._decode(answer, _Training)
        while told.state in {"waiting", "running"}:
            await asyncio.sleep(LOOK_S)
            told = self._decode(await self._call("GET", f"/train/{told.receipt}", retry=True), _Training)
        if told.state == "failed":
            raise ApiRefusedError(
                f"the API at {self.url} could not train: {told.detail}", code=told.cause, detail=told.detail
            )

    async def generations(self) -> list[Generation]:
        """`GET /generations`; waits while the API is busy."""
        body = await self._call("GET", "/generations", retry=True)
        return self._decode(body, _Generations).generations

    async def status(self) -> Status:
        """`GET /status`."""
        return self._decode(await self._call("GET", "/status"), Status)

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str = "",
        *,
        query: dict[str, str] | None = None,
        retry: bool = False,
    ) -> bytes:
        # While the API answers that it is busy the caller's own time limit is the only one.
        connect_by = time.monotonic() + CONNECT_RETRY_S
        while True:
            try:
                return await self._call_once(method, path, body, content_type, query)
            except ApiBusyError as error:
                if not retry or (error.status == 0 and time.monotonic() > connect_by):
                    raise
                await asyncio.sleep(min(error.retry_after_s, MAX_RETRY_AFTER_S))

    async def _call_once(
        self, method: str, path: str, body: bytes, content_type: str, query: dict[str, str] | None
    ) -> bytes:
        headers = {**self._headers, "Content-Type": content_type} if body else self._headers
        try:
            async with self._session.request(
                method,
                self.url + path,
                params=query,
                data=body or None,
                headers=headers,
                timeout=self._timeout,
            ) as response:
                answer = await response.read()
        except TimeoutError as error:
            raise ApiBusyError(f"the API at {self.url} does not answer in time") from error
        except (aiohttp.ClientError, ValueError) as error:  # ValueError: a host that cannot be one
            raise ApiBusyError(f"the API at {self.url} cannot be asked: {error}") from error
        if response.status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        # Redirects were followed; everything else is a problem document, or not this API.
        raise self._problem(f"{method} {path}", response, answer)

    def _problem(self, call: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except msgspec.MsgspecError:
            # A proxy's page, or nothing: its beginning says enough.
            problem = _Problem(detail=body[:200].decode(errors="replace"))
        status, code = response.status, problem.code
        busy = status in BUSY or code == "train_in_progress"
        return (ApiBusyError if busy else ApiRefusedError)(
            f"the API at {self.url} answered {call} with {status} {code}: {problem.detail}",
            status=status,
            code=code,
            detail=problem.detail,
            retry_after_s=_retry_after_s(response),
            row=problem.row,
            field=problem.field or "",
        )

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise ApiUnreadableError(f"{self.url} returned something unexpected: {error}") from error


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    # At least 50 ms: with "0" a caller would ask without a pause.
    return max(float(text), 0.05) if text.isascii() and text.isdigit() else 1.0
