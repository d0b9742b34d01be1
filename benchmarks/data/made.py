"""Ratings with steps, drawn from a world of a known rank, and that world as an engine that knows it all.

Invariant: a world is a function of its rank, its size and the seed; its own predictions use no rating.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from evaluation.offline.data import DataSet
from evaluation.question import Answer, Array, Predicted, Question, Rows
from factors import Float32s, Ratings, Scale, scale_levels

SCALE = Scale(0.5, 5.0, 0.5)
# About as ratings of movies are: of 1.07 round the middle, 0.75 that no model can know.
MIDDLE, USER_STD, ITEM_STD, TASTE_STD, NOISE_STD = 3.5, 0.4, 0.5, 0.5, 0.75
# As many ratings a user as MovieLens has; more items the more there is of it, by the root.
RATINGS_OF_USER, ITEMS_PER_ROOT, LEAST_ROWS = 100, 6, 100
YEAR_S, BEGAN_S = 3.15e7, 1.5e9  # ratings come evenly over a year from 2017 on
PAIRS_AT_ONCE = 65_536  # probabilities of 10 steps take 5 MB


@dataclass(frozen=True, slots=True)
class World:
    """What ratings are drawn from: `user_bias` (n_users,), `item_bias` (n_items,), `tastes` (n_users, k),
    `traits` (n_items, k).
    """

    user_bias: Array
    item_bias: Array
    tastes: Float32s
    traits: Float32s

    def scores(self, user: Rows, item: Rows) -> Array:
        """Return what the ratings of pairs scatter round, (m,)."""
        latent = np.einsum("nk,nk->n", self.tastes[user], self.traits[item])
        return np.asarray(MIDDLE + self.user_bias[user] + self.item_bias[item] + latent)


@dataclass(frozen=True, slots=True)
class MadeSet:
    """`data`: ratings that were drawn from `world`."""

    data: DataSet
    world: World

    def answer(self, question: Question) -> Answer:
        """Predict by the true parameters: expectation and deviation of a rating, probability of each step."""
        began = time.process_time()
        levels, probabilities = self._probabilities(question.test_user, question.test_item)
        rating = probabilities @ levels
        std = np.sqrt(np.maximum(probabilities @ levels**2 - rating**2, 1e-12))
        note = f"rank {self.world.tastes.shape[1]}, the parameters that the ratings were drawn from"
        seconds = time.process_time() - began
        return Answer(Predicted(rating, std, probabilities, note=note), seconds, float("nan"))

    def expected(self, user: Rows, item: Rows) -> Array:
        """Return the expectations of the ratings of pairs (m,), by the true parameters."""
        levels, probabilities = self._probabilities(user, item)
        return np.asarray(probabilities @ levels)

    def _probabilities(self, user: Rows, item: Rows) -> tuple[Array, Float32s]:
        """Return the steps of the scale (k,), and the probability of each for pairs (m, k)."""
        scale, n = self.data.scale, len(user)
        levels = np.linspace(scale.low, scale.high, scale_levels(scale))
        # The rating is the nearest step; those at the ends take all that lies beyond them.
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        probabilities = np.empty((n, len(levels)), dtype=np.float32)
        for start in range(0, n, PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            score = self.world.scores(user[part], item[part])
            probabilities[part] = np.diff(ndtr((edges - score[:, None]) / NOISE_STD), axis=1)
        return levels, probabilities


def draw(n_ratings: int, rank: int, *, seed: int) -> MadeSet:
    """Return a set of about `n_ratings` ratings, no pair twice; items are popular and users busy as in
    life.
    """
    rng = np.random.default_rng(seed)
    n_users = max(LEAST_ROWS, n_ratings // RATINGS_OF_USER)
    n_items = max(LEAST_ROWS, round(n_ratings**0.5 * ITEMS_PER_ROOT))
    share = float(np.sqrt(TASTE_STD / rank**0.5))
    tastes = (share * rng.standard_normal((n_users, rank))).astype(np.float32)
    traits = (share * rng.standard_normal((n_items, rank))).astype(np.float32)
    busy = np.cumsum(rng.lognormal(0, 1, n_users))
    popular = np.cumsum((np.arange(n_items) + 20.0) ** -0.8)
    # Twice as many as wanted: of a busy user and a popular item many pairs come again.
    user, item = (
        np.searchsorted(sums, rng.random(2 * n_ratings) * sums[-1], side="right").clip(0, len(sums) - 1)
        for sums in (busy, popular)
    )
    pairs = np.unique(user * n_items + item)
    rng.shuffle(pairs)
    user, item = np.divmod(pairs[:n_ratings], n_items)
    biases = rng.normal(0, USER_STD, n_users), rng.normal(0, ITEM_STD, n_items)
    world = World(*biases, tastes, traits)
    step = SCALE.step or 1.0
    value = world.scores(user, item) + rng.normal(0, NOISE_STD, len(user))
    value = np.clip(np.rint(value / step) * step, SCALE.low, SCALE.high)
    at = BEGAN_S + np.sort(rng.uniform(0, YEAR_S, len(user)))
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), value, at)
    return MadeSet(DataSet(f"made-{rank}, {len(user):,} ratings", ratings, n_users, n_items, SCALE), world)
