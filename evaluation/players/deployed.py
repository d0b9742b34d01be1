"""The deployed recommender as a player: it learns and answers over the Foldin API, as any client would.

Invariant: ratings that others gave the API are never thrown away unless `replace` was asked for. An API that
knows nothing yet is trained on the history as the lecture has it, with the environment's own numbers as ids.
Into one that holds ratings the history goes beside them, under ids of this game's own, `world-TAG-u12` and
`world-TAG-i7`, and a refit on everything follows.
"""

import math

from environment.client import History
from evaluation.players.api import FoldinApi

BATCH_RATINGS = 2_000  # an API takes up to 10,000 a call; smaller calls let others through


class DeployedPlayer:
    """Plays through `api`. `online`: hands in each true rating as soon as it is known. Time limits are the
    caller's.

    `own_ids`: never trains, always plays under ids of its own: for a second player on the same API, which
    must not see the ratings of the first. `note` says so after `prepare`.
    """

    def __init__(self, api: FoldinApi, *, tag: str, online: bool, replace: bool, own_ids: bool) -> None:
        self._api = api
        self._tag = tag
        self._online = online
        self._replace = replace
        self._own_ids = own_ids
        self.note = ""
        self.std = math.nan

    async def prepare(self, history: History) -> None:
        """Teach the API the history; returns when a generation that knows it answers."""
        if not await self._trained(history):
            await self._add_beside(history)

    async def predict(self, user: int, item: int) -> float:
        """`GET /predict`."""
        rating, self.std = await self._api.predict(*self._ids(user, item))
        return rating

    async def learn(self, user: int, item: int, rating: float) -> None:
        """`POST /ratings`, when playing online."""
        if self._online:
            await self._api.rate(*self._ids(user, item), rating)

    async def close(self) -> None:
        """The connection is the caller's."""

    async def _trained(self, history: History) -> bool:
        if self._own_ids or history.rating.size == 0:
            return False
        if self._replace or self._api.trained_here or await self._api.is_empty():
            return await self._api.train(history, replace=self._replace)
        return False

    async def _add_beside(self, history: History) -> None:
        self._own_ids = True
        self.note = f"ids world-{self._tag}-* beside other ratings"
        ratings = []
        columns = zip(history.user.tolist(), history.item.tolist(), history.rating.tolist(), strict=True)
        for user, item, rating in columns:
            user_id, item_id = self._ids(user, item)
            ratings.append({"user_id": user_id, "item_id": item_id, "rating": rating})
        for first in range(0, len(ratings), BATCH_RATINGS):
            await self._api.add(ratings[first : first + BATCH_RATINGS])
        if ratings:
            await self._api.refit()

    def _ids(self, user: int, item: int) -> tuple[str, str]:
        if self._own_ids:
            return f"world-{self._tag}-u{user}", f"world-{self._tag}-i{item}"
        return str(user), str(item)
