"""Matrix factorization with biases by alternating least squares: the lecture's method for explicit ratings.

score(u, i) = mean + b_u + b_i + p_u . q_i, minimizing the squared error of the known ratings plus a ridge on
all parameters.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from environment.client import KnownRatings, Pair
from evaluation.players.baselines import LocalPlayer, clip
from evaluation.players.table import Floats, RatingTable

RANK = 3  # the dimension of the lecture's world
# Half decades round 1; the ridge is chosen on held-out ratings, so that none is tuned to a certain world.
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT = 0.1  # share of the history on which the ridge is chosen
SWEEPS = 20  # from random components; on the lecture's world the error has settled after five to ten
REFIT_SWEEPS = 3  # from where the last fit ended
REFIT_RATINGS = 100  # in between only the rows of the ratings move; all take 1 ms on the lecture's world


@dataclass(slots=True)
class Factors:
    """`user` (n_users, RANK + 1) and `item` (n_items, RANK + 1): latent components, then the bias. Updated in
    place.
    """

    mean: float
    user: Floats
    item: Floats

    def scores(self) -> Floats:
        """Return all scores, (n_users, n_items)."""
        biases = self.user[:, RANK, None] + self.item[None, :, RANK]
        return np.asarray(self.mean + biases + self.user[:, :RANK] @ self.item[:, :RANK].T)


def initial(values: Floats, seen: Floats, seed: int) -> Factors:
    """Return small random components and no biases."""
    # Not zeros: they are a saddle that no sweep leaves.
    random = np.random.default_rng(seed)
    factors = [np.zeros((rows, RANK + 1)) for rows in values.shape]
    for side in factors:
        side[:, :RANK] = random.normal(0.0, 0.1, (len(side), RANK))
    mean = values.sum() / max(seen.sum(), 1.0) if seen.any() else 3.0
    return Factors(float(mean), factors[0], factors[1])


def sweep(factors: Factors, values: Floats, seen: Floats, ridge: float) -> None:
    """Solve for all users with the items as they are, then for all items."""
    solve(factors.user, factors.item, values, seen, mean=factors.mean, ridge=ridge)
    solve(factors.item, factors.user, values.T, seen.T, mean=factors.mean, ridge=ridge)


def solve(target: Floats, other: Floats, values: Floats, seen: Floats, *, mean: float, ridge: float) -> None:
    """Ridge regression of each row of `target` (b, RANK + 1) on `other` (n, RANK + 1); `values`, `seen` are
    (b, n). `target` is changed.
    """
    design = other.copy()
    # The target's bias meets a 1; the bias of the other side is known and taken off the values.
    design[:, RANK] = 1.0
    residual = values - (mean + other[:, RANK]) * seen
    # One matrix product gives the normal matrices of all rows: each is the sum of outer products it has seen.
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    gram = (seen @ products).reshape(-1, RANK + 1, RANK + 1) + ridge * np.eye(RANK + 1)
    target[:] = np.linalg.solve(gram, (residual @ design)[:, :, None])[:, :, 0]


def fit(values: Floats, seen: Floats, seed: int) -> tuple[Factors, float]:
    """Choose the ridge on held-out ratings, then fit to all. Return the factors and the ridge."""
    held_out = seen * (np.random.default_rng(seed).random(seen.shape) < HELD_OUT)
    errors = []
    for ridge in RIDGES:
        trial = initial(values * (1.0 - held_out), seen - held_out, seed)
        for _ in range(SWEEPS):
            sweep(trial, values * (1.0 - held_out), seen - held_out, ridge)
        errors.append(float(((np.clip(trial.scores(), 1.0, 5.0) - values) ** 2 * held_out).sum()))
    # Without any held-out rating there are hardly any others: the strongest ridge.
    ridge = RIDGES[int(np.argmin(errors))] if held_out.any() else RIDGES[-1]
    factors = initial(values, seen, seed)
    for _ in range(SWEEPS):
        sweep(factors, values, seen, ridge)
    return factors, ridge


class AlsPlayer(LocalPlayer):
    """Each rating solves for its user and its item again; a few sweeps over all follow now and then."""

    _table: RatingTable
    _factors: Factors
    ridge: float

    def __init__(self, seed: int) -> None:
        self._seed = seed

    async def prepare(self, history: KnownRatings) -> None:
        """Fit to the history, in a thread."""
        self._table = RatingTable(history)
        self._new_ratings = 0
        self._factors, self.ridge = await asyncio.to_thread(
            fit, self._table.values, self._table.seen, self._seed
        )

    async def predict(self, pair: Pair) -> float:
        """Return the clipped score; an unknown user or item counts with zero components."""
        user, item = pair.user, pair.item
        user_row = self._factors.user[user] if user < len(self._factors.user) else np.zeros(RANK + 1)
        item_row = self._factors.item[item] if item < len(self._factors.item) else np.zeros(RANK + 1)
        return clip(self._factors.mean + user_row[RANK] + item_row[RANK] + user_row[:RANK] @ item_row[:RANK])

    async def learn(self, pair: Pair, rating: float) -> None:
        """Solve for this user and this item; after `REFIT_RATINGS` for all."""
        user, item = pair.user, pair.item
        self._table.add(user, item, rating)
        values, seen, factors = self._table.values, self._table.seen, self._factors
        factors.user = np.pad(factors.user, ((0, len(values) - len(factors.user)), (0, 0)))
        factors.item = np.pad(factors.item, ((0, values.shape[1] - len(factors.item)), (0, 0)))
        row, column = slice(user, user + 1), slice(item, item + 1)
        solve(factors.user[row], factors.item, values[row], seen[row], mean=factors.mean, ridge=self.ridge)
        solve(
            factors.item[column],
            factors.user,
            values.T[column],
            seen.T[column],
            mean=factors.mean,
            ridge=self.ridge,
        )
        self._new_ratings += 1
        if self._new_ratings % REFIT_RATINGS == 0:
            await asyncio.to_thread(self._refit)

    def _refit(self) -> None:
        self._factors.mean = self._table.mean()
        for _ in range(REFIT_SWEEPS):
            sweep(self._factors, self._table.values, self._table.seen, self.ridge)
