"""The errors of what would have been predicted for ratings that arrive.

Invariant: a rating is predicted from what was known before it was stored. None waits for its error, where it
came with few others: what has come is counted together, soon after it was acknowledged.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from factors import Float32s, Float64s, Int64s
from featurestore.errors import StoreError
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from service.experiments.background import BackgroundSteps
from service.metrics import Counts
from service.scoring import PairScorer

log = logging.getLogger("foldin.service")

# So many ratings of a call are predicted before they are learned, of a larger call an even sample:
# enough for the error of a minute, at a small part of what storing 10,000 takes.
_PREDICTED = 256
# One prediction for all that came meanwhile takes next to nothing of what one for each takes, and who asks
# for a prediction after a rating does not wait for it.
_LATER_S = 0.1
# Calls that are predicted at once, in a millisecond or two, and users who may wait for it with up to 60 KB of
# history each: what comes beyond them is left out.
_AT_ONCE, _MOST_USERS = 16, 1_000


class _Asked(NamedTuple):
    """Few ratings that are predicted by the generation `live`: who made them, each `user` once, was `asked`
    for before they were stored.
    """

    live: LiveGeneration
    ratings: Columns
    users: list[bytes]
    asked: "asyncio.Future[list[Any]]"

    @property
    def alike(self) -> tuple[int, int]:
        """What ratings have in common that are predicted in one call."""
        context = self.ratings.context
        # Which generation it is: two are not to be compared.
        return id(self.live), 0 if context is None else context.shape[1]


class RatingErrors:
    """Predicts ratings by what was known before them, and counts the errors."""

    def __init__(self, store: Store, scorer: PairScorer, counts: Counts) -> None:
        self._store, self._scorer, self._counts = store, scorer, counts
        self._waiting: list[_Asked] = []
        self._users = 0
        self._begun, self._counting = asyncio.Event(), asyncio.Lock()

    def ask(self, live: LiveGeneration, ratings: Columns) -> _Asked:
        """Ask for the users of a few ratings; what is written in the same turn of the event loop goes with
        it.
        """
        users = list(dict.fromkeys(ratings.user_id))
        return _Asked(live, ratings, users, self._store.users.ask(live, users))

    def stored(self, asked: _Asked) -> None:
        """Count the errors on ratings that were stored after `ask`, soon."""
        if self._users < _MOST_USERS:
            self._users += len(asked.users)
            self._waiting.append(asked)
            self._begun.set()

    async def run(self) -> None:
        """Count what comes, until cancelled."""
        steps = BackgroundSteps("predict what was rated", self._counts)
        while True:
            await self._begun.wait()
            await asyncio.sleep(_LATER_S)
            await steps.make(self.count())

    async def count(self) -> None:
        """Count what has come, and return when that is done, also where another call began with it."""
        async with self._counting:
            self._begun.clear()
            waiting, self._waiting, self._users = self._waiting, [], 0
            for _, group in groupby(waiting, key=lambda asked: asked.alike):
                alike = list(group)
                for start in range(0, len(alike), _AT_ONCE):
                    await self._count(alike[start : start + _AT_ONCE])
                    await asyncio.sleep(0)  # others get their turn

    async def _count(self, alike: Sequence[_Asked]) -> None:
        live, registry = alike[0].live, self._store.items(alike[0].live.epoch)
        vectors, index, known, n_users = list[Float32s](), list[int](), list[bool](), 0
        rated: list[Columns] = []
        for asked in alike:
            try:
                current, is_known = await self._store.users.answered(live, asked.users, asked.asked)
            except StoreError as exc:
                # The ratings are stored.
                log.warning("ratings were not predicted reason=%s", exc)
                continue
            place = {user_id: k for k, user_id in enumerate(asked.users)}
            own = [place[user_id] for user_id in asked.ratings.user_id]
            vectors.append(current.vectors)
            index += [n_users + k for k in own]
            known += is_known[own].tolist()
            n_users += len(asked.users)
            rated.append(asked.ratings)
        if not rated:
            return
        rows = [registry.row(item_id) for ratings in rated for item_id in ratings.item_id]
        item_rows = np.array([-1 if row is None else row for row in rows], dtype=np.int64)
        rating = np.concatenate([ratings.rating for ratings in rated])
        contexts = [ratings.context for ratings in rated if ratings.context is not None]
        users = np.concatenate(vectors), np.array(index, dtype=np.int64)
        context = np.concatenate(contexts) if contexts else None
        self._counts.predicted(_squared(live, users, item_rows, rating, context)[known])

    async def of_many(self, live: LiveGeneration, ratings: Columns) -> Float64s:
        """Return the squared errors (m, 2) on ratings that are yet to be stored, of more than `_PREDICTED` on
        a sample: of the model, and of what an unknown user is told.
        """
        if len(ratings) > _PREDICTED:
            # Every n-th would be of the same few items where a file is sorted.
            chosen = np.random.default_rng(len(ratings)).choice(len(ratings), _PREDICTED, replace=False)
            ratings = ratings.taken(np.sort(chosen).tolist())
        positions: dict[bytes, int] = {}
        index = [positions.setdefault(user_id, len(positions)) for user_id in ratings.user_id]
        vectors, item_rows, _ = await self._scorer.look_up(live, list(positions), ratings.item_id)
        users = vectors, np.array(index, dtype=np.int64)
        return _squared(live, users, item_rows, ratings.rating, ratings.context)


def _squared(
    live: LiveGeneration,
    users: tuple[Float32s, Int64s],
    item_rows: Int64s,
    rating: Float64s,
    context: Float32s | None,
) -> Float64s:
    """Return the squared errors (m, 2) on the `rating` (m,) of users, by their vectors and the row of each
    rating's user in these, and of what an unknown user is told.
    """
    vectors, index = users
    # Both in one call: for a few pairs the number of calls into numpy is all that counts.
    rows = np.concatenate((index, np.full(len(index), -1))), np.tile(item_rows, 2)
    context = None if context is None else np.tile(context, (2, 1))
    predicted = live.scorer.score(vectors, *rows, context=context).rating
    return np.square(rating - predicted.reshape(2, -1)).T
