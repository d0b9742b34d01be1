"""The deployed recommender as a player: it learns and answers over the Foldin API, as any client would.

Invariant: ratings that others gave the API are never thrown away unless `replace` was asked for. An API that
knows nothing yet is trained on the history as the lecture has it, with the environment's own numbers as ids.
Into one that holds ratings the history goes beside them, under ids of this game's own, `world-TAG-u12` and
`world-TAG-i7`, and a refit on everything follows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from environment.client import KnownRatings, Pair
from evaluation import api_client
from evaluation.api_client import ApiClient, ApiError, Rating
from evaluation.players.base import PlayerFailedError

BATCH_RATINGS = 2_000  # an API takes up to 10,000 a call; smaller calls let others through


@dataclass(slots=True)
class SharedApi:
    """One API for the games of one play or evaluation.

    `trained_here`: what it was last trained on came from here, so another training takes nothing from others.
    """

    client: ApiClient
    trained_here: bool = False


class DeployedPlayer:
    """Plays through `api`. `online`: hands in each true rating as soon as it is known. Time limits are the
    caller's.

    `own_ids`: never trains, always plays under ids of its own: for a second player on the same API, which
    must not see the ratings of the first. `note` says so after `prepare`. The variables of an event are the
    context of its rating.
    """

    def __init__(self, api: SharedApi, *, tag: str, online: bool, replace: bool, own_ids: bool) -> None:
        self._api = api
        self._tag = tag
        self._online = online
        self._replace = replace
        self._own_ids = own_ids
        self.note = ""
        self.std = math.nan

    async def prepare(self, history: KnownRatings) -> None:
        """Teach the API the history; returns when a generation that knows it answers."""
        with _failures_of_the_player():
            if not await self._trained(history):
                if variables := history.variables.shape[1]:
                    await self._api.client.name_variables(variables)
                await self._add_beside(history)

    async def predict(self, pair: Pair) -> float:
        """`GET /predict`."""
        with _failures_of_the_player():
            prediction = await self._api.client.predict(
                *self._ids(pair.user, pair.item), context=api_client.variables_context(pair.variables)
            )
        self.std = math.nan if prediction.std is None else prediction.std
        return prediction.rating

    async def learn(self, pair: Pair, rating: float) -> None:
        """`POST /ratings`, when playing online."""
        if self._online:
            # Once, without waiting: a rating that comes late costs the next prediction, not the game.
            with _failures_of_the_player():
                await self._api.client.rate([self._rating(pair.user, pair.item, rating, pair.variables)])

    async def close(self) -> None:
        """The connection is the caller's."""

    async def _trained(self, history: KnownRatings) -> bool:
        """Train the API on the history; False where that would lose ratings of others."""
        # An empty history cannot be trained on, and needs no training.
        if self._own_ids or history.rating.size == 0:
            return False
        if not (self._replace or self._api.trained_here or await self._is_empty()):
            return False
        document = api_client.TrainBody(
            history.n_users,
            history.n_items,
            history.user.tolist(),
            history.item.tolist(),
            history.rating.tolist(),
            self._replace,
            history.variables.tolist() if history.variables.size else None,
        )
        try:
            await self._api.client.train(document)
        except ApiError as error:
            # Ratings came in since: they stay, and the history goes beside them.
            if error.code == "ratings_would_be_lost":
                return False
            raise
        self._api.trained_here = True
        return True

    async def _is_empty(self) -> bool:
        """Whether no generation rests on any rating. Where that cannot be found out it is not."""
        try:
            return all(generation.n_ratings == 0 for generation in await self._api.client.generations())
        except ApiError:
            return False

    async def _add_beside(self, history: KnownRatings) -> None:
        self._own_ids = True
        self.note = f"ids world-{self._tag}-* beside other ratings"
        columns = (history.user.tolist(), history.item.tolist(), history.rating.tolist())
        variables = history.variables.tolist() if history.variables.size else [()] * history.rating.size
        ratings = [self._rating(*event) for event in zip(*columns, variables, strict=True)]
        for first in range(0, len(ratings), BATCH_RATINGS):
            await self._api.client.rate(ratings[first : first + BATCH_RATINGS], retry=True)
        if ratings:
            await self._api.client.train()

    def _rating(self, user: int, item: int, rating: float, variables: Sequence[float]) -> Rating:
        return Rating(*self._ids(user, item), rating, context=api_client.variables_context(variables))

    def _ids(self, user: int, item: int) -> tuple[str, str]:
        if self._own_ids:
            return f"world-{self._tag}-u{user}", f"world-{self._tag}-i{item}"
        return str(user), str(item)


@contextmanager
def _failures_of_the_player() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise PlayerFailedError(str(error)) from error
