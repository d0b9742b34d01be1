"""Players that have Foldin's model in their own process, without any server.

Invariant: a player learns as the product does. A rating counts at once for its user and soon for its item,
both folded in from their full histories, and all is refitted, warm, now and then.
"""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from environment.client import KnownRatings, Pair
from environment.world import SCALE
from evaluation.offline.online import histories_of
from evaluation.players import MakePlayer, PlayerFailedError
from evaluation.players.baselines import LocalPlayer
from factors import ContextKind, FitSettings, Fitted, Float32s, Ratings, Scale, Scorer
from trainer.engines import ENGINES, make_engine
from trainer.engines.base import FitTask

FOLD_ITEMS_RATINGS = 10  # items follow within a second in the product, in which so many ratings may come
REFIT_RATINGS = 600  # a fit takes some seconds; ratings of that time are folded in
GRID = Scale(float(SCALE[0]), float(SCALE[-1]), 1.0)


class ModelPlayer(LocalPlayer):
    """Plays with an engine of the trainer. `note` names rank and link of the last fit, and whether the
    variables of the events move its predictions.
    """

    def __init__(self, engine: str, settings: FitSettings, seed: int) -> None:
        self._engine = make_engine(engine, settings)  # type: ignore[arg-type] # checked by its caller
        self._rng = np.random.default_rng(seed)
        self._rated: set[int] = set()
        self._shape = (0, 0)
        self._fitted: Fitted | None = None
        self._new_ratings = 0

    async def prepare(self, history: KnownRatings) -> None:
        """Fit to the history, in a thread."""
        unknown = np.full(history.rating.size, np.nan)  # the environment counts events, not time
        self._ratings = Ratings(
            *(history.user.astype(np.int32), history.item.astype(np.int32), history.rating, unknown),
            _context(history.variables),
        )
        self._shape = (history.n_users, history.n_items)
        await self._fit()

    async def predict(self, pair: Pair) -> float:
        """Return the expected rating; its standard deviation is then in `std`."""
        fitted = self._known()
        scores = Scorer(fitted.posterior, fitted.items).score(
            fitted.users,
            np.array([pair.user]),
            np.array([pair.item]),
            context=_context([pair.variables]),
        )
        self.std = float(scores.std[0])
        return float(scores.rating[0])

    async def learn(self, pair: Pair, rating: float) -> None:
        """Fold the user in, the items a little later; now and then refit."""
        user, item = pair.user, pair.item
        fitted = self._known()
        self._ratings = _with(self._ratings, pair, rating, _context([pair.variables]))
        self._new_ratings += 1
        # A user or item that the tables do not have yet needs a fit, too.
        if self._new_ratings % REFIT_RATINGS == 0 or user >= len(fitted.users) or item >= len(fitted.items):
            await self._fit()
            return
        # A scan of all ratings, not an index: for 10,000 it takes 4 us of the 240 that a rating costs.
        one, rated = slice(user, user + 1), np.flatnonzero(self._ratings.user_row == user)
        fitted.users[one] = fitted.posterior.fold_in_users(
            fitted.items,
            histories_of(self._ratings, [rated], self._ratings.item_row),
            current=fitted.users[one].copy(),
        )
        self._rated.add(item)
        if self._new_ratings % FOLD_ITEMS_RATINGS == 0:
            self._fold_items(fitted)

    def _known(self) -> Fitted:
        if self._fitted is None:
            raise PlayerFailedError("it has learned no history yet")
        return self._fitted

    def _fold_items(self, fitted: Fitted) -> None:
        items = np.array(sorted(self._rated))
        parts = [np.flatnonzero(self._ratings.item_row == item) for item in items.tolist()]
        histories = histories_of(self._ratings, parts, self._ratings.user_row)
        fitted.items[items] = fitted.posterior.fold_in_items(
            fitted.users, histories, current=fitted.items[items]
        )
        self._rated.clear()

    async def _fit(self) -> None:
        # Users and items may appear whose numbers are past the sizes that the environment gave.
        user, item = self._ratings.user_row, self._ratings.item_row
        n_users, n_items = self._shape
        self._shape = (
            max(n_users, int(user.max(initial=-1)) + 1),
            max(n_items, int(item.max(initial=-1)) + 1),
        )
        context = self._ratings.context
        kinds: tuple[ContextKind, ...] = () if context is None else ("number",) * context.shape[1]
        task = FitTask(self._ratings, *self._shape, self._rng, self._fitted, context_kinds=kinds)
        fitted = await asyncio.to_thread(self._engine.fit, task)
        # Copies to write to: the tables that a fit returns may be read-only.
        self._rated.clear()
        self._fitted = Fitted(fitted.model, fitted.users.copy(), fitted.items.copy(), fitted.metrics)
        self.note = f"rank {fitted.model.rank}, {fitted.model.link}"
        if fitted.posterior.reads_context:
            self.note += ", variables"


def _context(variables: npt.ArrayLike) -> Float32s | None:
    """Return variables (n, k) of events as the context of ratings, None where there are none."""
    context = np.asarray(variables, dtype=np.float32)
    return context if context.size else None


def _with(ratings: Ratings, pair: Pair, rating: float, context: Float32s | None) -> Ratings:
    known = ratings.context
    return Ratings(
        np.append(ratings.user_row, np.int32(pair.user)),
        np.append(ratings.item_row, np.int32(pair.item)),
        np.append(ratings.value, rating),
        np.append(ratings.time, np.nan),
        None if known is None or context is None else np.concatenate([known, context]),
    )


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
