"""Matrix factorization with biases by alternating least squares: the lecture's own method for explicit
ratings.

score(u, i) = mean + b_u + b_i + p_u . q_i, minimizing the squared error of the known ratings plus a ridge on
all parameters. The ridge is chosen on a tenth of the history, so no constant is tuned to a certain world.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from environment.client import History
from evaluation.players.baselines import LocalPlayer, clip
from evaluation.players.table import Floats, RatingTable

RANK = 3
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
SWEEPS = 20
REFIT_SWEEPS = 3  # from where the last fit ended
REFIT_RATINGS = 100
HELD_OUT = 0.1


@dataclass(slots=True)
class Factors:
    """`user` (n_users, RANK + 1) and `item` (n_items, RANK + 1): latent components, then the bias. Updated in
    place.
    """

    mean: float
    user: Floats
    item: Floats

    def scores(self) -> Floats:
        """All scores, (n_users, n_items)."""
        biases = self.user[:, RANK, None] + self.item[None, :, RANK]
        return np.asarray(self.mean + biases + self.user[:, :RANK] @ self.item[:, :RANK].T)


def initial(values: Floats, seen: Floats, seed: int) -> Factors:
    """Small random components, no biases. Zero components would be a saddle that no sweep leaves."""
    random = np.random.default_rng(seed)
    factors = [np.zeros((rows, RANK + 1)) for rows in values.shape]
    for side in factors:
        side[:, :RANK] = random.normal(0.0, 0.1, (len(side), RANK))
    mean = values.sum() / max(seen.sum(), 1.0) if seen.any() else 3.0
    return Factors(float(mean), factors[0], factors[1])


def sweep(factors: Factors, values: Floats, seen: Floats, ridge: float) -> None:
    """All users given the items, then all items given the users."""
    solve(factors.user, factors.item, values, seen, mean=factors.mean, ridge=ridge)
    solve(factors.item, factors.user, values.T, seen.T, mean=factors.mean, ridge=ridge)


def solve(target: Floats, given: Floats, values: Floats, seen: Floats, *, mean: float, ridge: float) -> None:
    """Ridge regression of each row of `target` (b, RANK + 1) on `given` (n, RANK + 1); `values`, `seen` are
    (b, n).
    """
    design = given.copy()
    design[:, RANK] = 1.0
    left = values - (mean + given[:, RANK]) * seen
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    gram = (seen @ products).reshape(-1, RANK + 1, RANK + 1) + ridge * np.eye(RANK + 1)
    target[:] = np.linalg.solve(gram, (left @ design)[:, :, None])[:, :, 0]


def fit(values: Floats, seen: Floats, seed: int) -> tuple[Factors, float]:
    """Choose the ridge on held-out ratings, then fit to all. Returns the factors and the ridge."""
    held_out = seen * (np.random.default_rng(seed).random(seen.shape) < HELD_OUT)
    errors = []
    for ridge in RIDGES:
        trial = initial(values * (1.0 - held_out), seen - held_out, seed)
        for _ in range(SWEEPS):
            sweep(trial, values * (1.0 - held_out), seen - held_out, ridge)
        errors.append(float(((np.clip(trial.scores(), 1.0, 5.0) - values) ** 2 * held_out).sum()))
    ridge = RIDGES[int(np.argmin(errors))] if held_out.any() else RIDGES[-1]
    factors = initial(values, seen, seed)
    for _ in range(SWEEPS):
        sweep(factors, values, seen, ridge)
    return factors, ridge


class AlsPlayer(LocalPlayer):
    """Each rating re-solves its user and its item at once; a few sweeps over everything follow every 100
    ratings.
    """

    _table: RatingTable
    _factors: Factors
    _ridge: float

    def __init__(self, seed: int) -> None:
        self._seed = seed

    async def prepare(self, history: History) -> None:
        """Fit to the history, in a thread."""
        self._table = RatingTable(history)
        self._new_ratings = 0
        self._factors, self._ridge = await asyncio.to_thread(
            fit, self._table.values, self._table.seen, self._seed
        )

    async def predict(self, user: int, item: int) -> float:
        """A user or item that is unknown counts with zero components."""
        user_row = self._factors.user[user] if user < len(self._factors.user) else np.zeros(RANK + 1)
        item_row = self._factors.item[item] if item < len(self._factors.item) else np.zeros(RANK + 1)
        return clip(self._factors.mean + user_row[RANK] + item_row[RANK] + user_row[:RANK] @ item_row[:RANK])

    async def learn(self, user: int, item: int, rating: float) -> None:
        """Solve for this user and this item; now and then for all."""
        self._table.add(user, item, rating)
        values, seen, factors = self._table.values, self._table.seen, self._factors
        factors.user = np.pad(factors.user, ((0, len(values) - len(factors.user)), (0, 0)))
        factors.item = np.pad(factors.item, ((0, values.shape[1] - len(factors.item)), (0, 0)))
        row, column = slice(user, user + 1), slice(item, item + 1)
        solve(factors.user[row], factors.item, values[row], seen[row], mean=factors.mean, ridge=self._ridge)
        solve(
            factors.item[column],
            factors.user,
            values.T[column],
            seen.T[column],
            mean=factors.mean,
            ridge=self._ridge,
        )
        self._new_ratings += 1
        if self._new_ratings % REFIT_RATINGS == 0:
            await asyncio.to_thread(self._refit)

    def _refit(self) -> None:
        self._factors.mean = self._table.mean()
        for _ in range(REFIT_SWEEPS):
            sweep(self._factors, self._table.values, self._table.seen, self._ridge)
