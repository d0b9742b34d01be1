"""The deployed recommender as a player: it learns and answers over the Foldin API, as any client would.

Invariant: ratings that others gave the API are never thrown away unless `replace` was asked for. An API that
knows nothing yet is trained on the history as the lecture has it, with the environment's own numbers as ids.
Into one that holds ratings the history goes beside them, under ids of this game's own, `world-TAG-u12` and
`world-TAG-i7`, and a refit on everything follows.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from environment.client import KnownRatings, Pair
from evaluation.players.base import PlayerFailedError
from foldin_client import AsyncClient, BusyError, FoldinError
from foldin_client.models import RatingIn, TrainingOut
from foldin_client.problems import RatingsWouldBeLostError, TrainingFailedError, TrainInProgressError

T = TypeVar("T")
BATCH_RATINGS = 2_000  # an API takes up to 10,000 a call; smaller calls let others through
AGAIN_S = 1.0  # where an API that is busy does not say when to come again
LEAST_WAIT_S, MOST_WAIT_S = 0.05, 10.0  # whatever it says: it is not pressed, and noticed when it is back


@dataclass(slots=True)
class SharedApi:
    """One API for the games of one play or evaluation. `client` makes no call again: that is the player's.

    `trained_here`: what it was last trained on came from here, so another training takes nothing from others.
    """

    client: AsyncClient
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
                if fields := _context([0.0] * history.variables.shape[1]):
                    named = {name: {"kind": "number"} for name in fields}
                    await _when_free(lambda: self._api.client.put_schema(context=named))
                await self._add_beside(history)

    async def predict(self, pair: Pair) -> float:
        """`GET /predict`."""
        with _failures_of_the_player():
            prediction = await self._api.client.predict(
                *self._ids(pair.user, pair.item), context=_context(pair.variables)
            )
        self.std = prediction.std
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
        more: dict[str, Any] = {"replace": True} if self._replace else {}
        if history.variables.size:
            more["variables_history"] = history.variables.tolist()
        try:
            await self._train(
                nb_users=history.n_users,
                nb_items=history.n_items,
                user_history=history.user.tolist(),
                item_history=history.item.tolist(),
                rating_history=history.rating.tolist(),
                **more,
            )
        except RatingsWouldBeLostError:
            # They came in since: they stay, and the history goes beside them.
            return False
        self._api.trained_here = True
        return True

    async def _train(self, **history: Any) -> None:
        """Train on a history, or on all that is known; returns when a generation that has learned it is
        live.
        """
        client = self._api.client
        told = await _when_free(lambda: client.train(**history))
        if isinstance(told, TrainingOut):
            await _when_free(lambda: client.wait_for_training(told.receipt))

    async def _is_empty(self) -> bool:
        """Whether no generation rests on any rating. Where that cannot be found out it is not."""
        try:
            told = await _when_free(self._api.client.get_generations)
            return all(generation.n_ratings == 0 for generation in told.generations)
        except FoldinError:
            return False

    async def _add_beside(self, history: KnownRatings) -> None:
        self._own_ids = True
        self.note = f"ids world-{self._tag}-* beside other ratings"
        columns = (history.user.tolist(), history.item.tolist(), history.rating.tolist())
        variables = history.variables.tolist() if history.variables.size else [()] * history.rating.size
        ratings = [self._rating(*event) for event in zip(*columns, variables, strict=True)]
        for first in range(0, len(ratings), BATCH_RATINGS):
            await _when_free(partial(self._api.client.rate, ratings[first : first + BATCH_RATINGS]))
        if ratings:
            await self._train()

    def _rating(self, user: int, item: int, rating: float, variables: Sequence[float]) -> RatingIn:
        user_id, item_id = self._ids(user, item)
        return RatingIn(user_id=user_id, item_id=item_id, rating=rating, context=_context(variables))

    def _ids(self, user: int, item: int) -> tuple[str, str]:
        if self._own_ids:
            return f"world-{self._tag}-u{user}", f"world-{self._tag}-i{item}"
        return str(user), str(item)


def _context(variables: Sequence[float]) -> dict[str, Any] | None:
    return {f"v{number}": value for number, value in enumerate(variables, 1)} or None


async def _when_free(call: Callable[[], Awaitable[T]]) -> T:
    """Return the answer of a call, made again while the API is busy: to repeat one does no harm here, as the
    last rating of a pair counts.
    """
    while True:
        try:
            return await call()
        except (BusyError, TrainInProgressError) as error:
            if isinstance(error, TrainingFailedError):
                raise
            again_s = AGAIN_S if error.retry_after_s is None else error.retry_after_s
            await asyncio.sleep(min(max(again_s, LEAST_WAIT_S), MOST_WAIT_S))


@contextmanager
def _failures_of_the_player() -> Iterator[None]:
    try:
        yield
    except FoldinError as error:
        raise PlayerFailedError(str(error)) from error
