"""What a player sees of an environment: the other side of the lecture's contract."""

import hashlib
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import msgspec
import numpy as np
import numpy.typing as npt

from environment.contract import LastAnswer, PredictAnswer, ResetAnswer

T = TypeVar("T")

TIMEOUT_S = 30.0  # drawing the largest world takes seconds


class EnvironmentFailedError(Exception):
    """The environment did not answer as the lecture's contract says; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class KnownRatings:
    """Known ratings in time order: `user`, `item` int64 (n,), `rating` float64 (n,), `variables` float64
    (n, k): the numbers beside each event, k = 0 where the environment has none.

    `n_users`, `n_items`: sizes of the world; users and items that appear later are counted.
    """

    n_users: int
    n_items: int
    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    rating: npt.NDArray[np.float64]
    variables: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    def latest(self, count: int) -> "KnownRatings":
        """The last `count` ratings of this history."""
        names = ("user", "item", "rating", "variables")
        first = max(self.user.size - count, 0)
        return replace(self, **{name: getattr(self, name)[first:] for name in names})

    def digest(self) -> bytes:
        """Return 16 bytes that differ between worlds."""
        columns = b"".join(column.tobytes() for column in (self.user, self.item, self.rating, self.variables))
        return hashlib.blake2b(columns, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Pair:
    """A user and an item whose rating is to be predicted, with the numbers beside the event."""

    user: int
    item: int
    variables: tuple[float, ...] = ()


class EnvironmentClient:
    """One token's game. Each call waits `TIMEOUT_S` at most and raises EnvironmentFailedError for anything
    unexpected.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._token = token

    async def reset(self, seed: int | None = None) -> tuple[KnownRatings, Pair]:
        """Begin a new game; return what is known and the first pair. `seed` asks for a certain world.

        An environment that does not know the parameter ignores it: compare the histories where it matters.
        """
        parameters = {"user_id": self._token}
        if seed is not None:
            parameters["seed"] = str(seed)
        status, body = await self._get("/reset", parameters)
        if status != HTTPStatus.OK:
            raise self._unexpected("/reset", status, body)
        document = self._decode(body, ResetAnswer)
        variables = document.variables_history or [[] for _ in document.user_history]
        columns = (document.user_history, document.item_history, document.rating_history, variables)
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise EnvironmentFailedError(
                f"{self._url}/reset returned histories of different lengths: {sorted(lengths)}"
            )
        if len({len(numbers) for numbers in variables}) > 1:
            raise EnvironmentFailedError(f"{self._url}/reset returned events with unlike many variables")
        history = KnownRatings(
            n_users=document.nb_users,
            n_items=document.nb_items,
            user=np.array(document.user_history, dtype=np.int64),
            item=np.array(document.item_history, dtype=np.int64),
            rating=np.array(document.rating_history, dtype=np.float64),
            variables=np.array(variables, dtype=np.float64).reshape(len(variables), -1),
        )
        return history, _pair(document)

    async def rate(self, predicted_score: float) -> tuple[int, Pair | None]:
        """Hand in the prediction of the pending pair; return its true rating and the next pair, None after
        the last.
        """
        # repr: the shortest text that reads back as the same float.
        parameters = {"user_id": self._token, "predicted_score": repr(float(predicted_score))}
        status, body = await self._get("/predict", parameters)
        if status == HTTPStatus.GONE:
            rating = self._decode(body, LastAnswer).rating
            if rating is not None:
                return rating, None
        if status != HTTPStatus.OK:
            raise self._unexpected("/predict", status, body)
        document = self._decode(body, PredictAnswer)
        return document.rating, _pair(document)

    async def _get(self, path: str, parameters: dict[str, str]) -> tuple[int, bytes]:
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with self._session.get(self._url + path, params=parameters, timeout=timeout) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise EnvironmentFailedError(f"{self._url}{path} did not answer in {TIMEOUT_S:g} s") from error
        except aiohttp.ClientError as error:
            raise EnvironmentFailedError(f"{self._url}{path} cannot be asked: {error}") from error

    def _unexpected(self, path: str, status: int, body: bytes) -> EnvironmentFailedError:
        return EnvironmentFailedError(
            # 300 bytes hold any problem document of this environment, but no page of an unknown server.
            f"{self._url}{path} answered {status}: {body[:300].decode(errors='replace')}"
        )

    def _decode(self, body: bytes, document: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=document)
        except msgspec.MsgspecError as error:
            raise EnvironmentFailedError(f"{self._url} returned something unexpected: {error}") from error


def _pair(document: ResetAnswer | PredictAnswer) -> Pair:
    return Pair(document.next_user, document.next_item, tuple(document.next_variables or ()))
