"""Players that have Foldin's model in their own process, without any server.

Invariant: a player learns as the product does. A rating counts at once for its user and soon for its item,
both folded in from their full histories, and all is refitted, warm, now and then.
"""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from environment.client import History
from environment.world import SCALE
from evaluation.players import MakePlayer, PlayerFailedError
from factors import (
    FitSettings,
    Fitted,
    Histories,
    Ratings,
    Scale,
    Scorer,
)
from trainer.engines import ENGINES, make_engine
from trainer.engines.base import FitTask

FOLD_ITEMS_RATINGS = 10  # items follow within a second in the product, in which so many ratings may come
REFIT_RATINGS = 600  # a fit takes some seconds; ratings of that time are folded in
GRID = Scale(float(SCALE[0]), float(SCALE[-1]), 1.0)


class ModelPlayer:
    """Plays with an engine of the trainer. `note` names rank and link of the last fit."""

    def __init__(self, engine: str, settings: FitSettings, seed: int) -> None:
        self._engine = make_engine(engine, settings)  # type: ignore[arg-type] # checked by its caller
        self._rng = np.random.default_rng(seed)
        # All ratings as they came; the two indexes hold positions in them, of each user and of each item.
        self._columns: tuple[list[int], list[int], list[float]] = ([], [], [])
        self._by_user: dict[int, list[int]] = {}
        self._by_item: dict[int, list[int]] = {}
        self._rated: set[int] = set()
        self._shape = (0, 0)
        self._fitted: Fitted | None = None
        self._new_ratings = 0
        self.note = ""
        self.std = float("nan")

    async def prepare(self, history: History) -> None:
        """Fit to the history, in a thread."""
        self._shape = (history.n_users, history.n_items)
        for user, item, rating in zip(
            history.user.tolist(), history.item.tolist(), history.rating.tolist(), strict=True
        ):
            self._add(user, item, rating)
        await self._fit()

    async def predict(self, user: int, item: int) -> float:
        """Return the expected rating; its standard deviation is then in `std`."""
        fitted = self._known()
        scores = Scorer(fitted.posterior, fitted.items).score(
            fitted.users, np.array([user]), np.array([item])
        )
        self.std = float(scores.std[0])
        return float(scores.rating[0])

    async def learn(self, user: int, item: int, rating: float) -> None:
        """Fold the user in, the items a little later; now and then refit."""
        self._add(user, item, rating)
        self._new_ratings += 1
        fitted = self._known()
        # A user or item that the tables do not have yet needs a fit, too.
        if self._new_ratings % REFIT_RATINGS == 0 or user >= len(fitted.users) or item >= len(fitted.items):
            await self._fit()
            return
        one = slice(user, user + 1)
        fitted.users[one] = fitted.posterior.fold_in_users(
            fitted.items,
            self._histories([self._by_user[user]], 1),
            current=fitted.users[one].copy(),
        )
        self._rated.add(item)
        if self._new_ratings % FOLD_ITEMS_RATINGS == 0:
            self._fold_items(fitted)

    async def close(self) -> None:
        """Nothing is held."""

    def _known(self) -> Fitted:
        if self._fitted is None:
            raise PlayerFailedError("it has learned no history yet")
        return self._fitted

    def _add(self, user: int, item: int, rating: float) -> None:
        position = len(self._columns[0])
        self._columns[0].append(user)
        self._columns[1].append(item)
        self._columns[2].append(rating)
        self._by_user.setdefault(user, []).append(position)
        self._by_item.setdefault(item, []).append(position)
        self._shape = (max(self._shape[0], user + 1), max(self._shape[1], item + 1))

    def _fold_items(self, fitted: Fitted) -> None:
        items = np.array(sorted(self._rated))
        histories = self._histories([self._by_item[item] for item in items.tolist()], 0)
        fitted.items[items] = fitted.posterior.fold_in_items(
            fitted.users, histories, current=fitted.items[items]
        )
        self._rated.clear()

    def _histories(self, parts: list[list[int]], other: int) -> Histories:
        """Return the ratings at these positions; `other`: the column of their other side."""
        positions = [position for part in parts for position in part]
        return Histories(
            np.cumsum([0, *map(len, parts)], dtype=np.int64),
            np.array([self._columns[other][position] for position in positions], dtype=np.int32),
            np.array([self._columns[2][position] for position in positions], dtype=np.float64),
            np.full(len(positions), np.nan),  # the environment counts events, not time
        )

    async def _fit(self) -> None:
        user, item, rating = self._columns
        ratings = Ratings(
            np.array(user, dtype=np.int32),
            np.array(item, dtype=np.int32),
            np.array(rating, dtype=np.float64),
            np.full(len(rating), np.nan),
        )
        task = FitTask(ratings, *self._shape, self._rng, self._fitted)
        fitted = await asyncio.to_thread(self._engine.fit, task)
        # Copies to write to: the tables that a fit returns may be read-only.
        self._rated.clear()
        self._fitted = Fitted(fitted.model, fitted.users.copy(), fitted.items.copy(), fitted.metrics)
        self.note = f"rank {fitted.model.rank}, {fitted.model.link}"


def _maker(engine: str, **settings: Any) -> Callable[[int], ModelPlayer]:
    return lambda seed: ModelPlayer(engine, FitSettings(GRID, **settings), seed)


def model_players() -> dict[str, MakePlayer]:
    """Return the players that can play here: `neural` only where its engine and torch are installed."""
    players: dict[str, MakePlayer] = {
        "variational": _maker("variational", link="gaussian"),
        "ordinal": _maker("variational", link="ordinal"),
    }
    if "neural" in ENGINES and find_spec("torch") is not None:
        players["neural"] = _maker("neural")
    return players
