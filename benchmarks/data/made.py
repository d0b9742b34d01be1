"""Ratings drawn from a world of a known rank, and what those can know of them who know that world.

Invariant: a world is a function of its rank, its size and the seed. Who knows all of it uses no rating; who
knows one side learns the other from the training ratings alone.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtr, ndtri

from evaluation.offline.data import DataSet
from evaluation.question import Answer, Array, Predicted, Question, Rows, no_probabilities
from factors import Float32s, Int64s, Ratings, Scale, SideName, scale_levels

SCALE, SLIDER = Scale(0.5, 5.0, 0.5), Scale(-10.0, 10.0)
# About as ratings of movies are: of 1.07 round the middle, 0.75 that no model can know.
MIDDLE, USER_STD, ITEM_STD, TASTE_STD, NOISE_STD = 3.5, 0.4, 0.5, 0.5, 0.75
# On a slider what is liked well enough is put next to the end: tanh of so many times the score.
BEND = 1.2
# As many ratings a user as MovieLens has; more items the more there is of it, by the root.
RATINGS_OF_USER, ITEMS_PER_ROOT, LEAST_ROWS = 100, 6, 100
YEAR_S, BEGAN_S = 3.15e7, 1.5e9  # ratings come evenly over a year from 2017 on
# Ratings of one session err alike by as much, and come a minute apart.
SESSION_STD, MINUTE_S = 0.4, 60.0
PAIRS_AT_ONCE = 65_536  # probabilities of 10 steps take 5 MB
SOLVED_AT_ONCE = 1_024  # matrices of 40 dimensions take 14 MB
# The middles of so many parts of a normal density, each as likely as any other.
_PARTS = ndtri((np.arange(64) + 0.5) / 64)


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

    def answer(self, question: Question, *, knows: SideName | None = None) -> Answer:
        """Predict by the true parameters, or by those of one side and the posterior of the other:
        expectation and deviation of a rating, probability of each step.
        """
        began = time.process_time()
        if knows is None:
            score, variance = self.world.scores(question.test_user, question.test_item), None
            note = f"rank {self.world.tastes.shape[1]}, the parameters that the ratings were drawn from"
        else:
            score, variance = self._learned(question, knows)
            note = f"the true parameters of {knows}s, and what ratings say of the rest to who knows these"
        rating, std, probabilities = self._moments(score, variance)
        seconds = time.process_time() - began
        return Answer(Predicted(rating, std, probabilities, note=note), seconds, float("nan"))

    def expected(self, user: Rows, item: Rows) -> Array:
        """Return the expectations of the ratings of pairs (m,), by the true parameters."""
        return self._moments(self.world.scores(user, item))[0]

    def _moments(self, score: Array, variance: Array | None = None) -> tuple[Array, Array, Float32s]:
        """Return expectation and deviation of ratings (m,), and the probability of each step (m, k), of
        scores that are known up to their `variance`.
        """
        scale, n = self.data.scale, len(score)
        deviation = np.full(n, NOISE_STD) if variance is None else np.sqrt(NOISE_STD**2 + variance)
        rating, square = np.empty(n), np.empty(n)
        levels = np.linspace(scale.low, scale.high, scale_levels(scale))
        probabilities = np.empty((n, len(levels)), dtype=np.float32) if len(levels) else no_probabilities()
        # The rating is the nearest step; those at the ends take all that lies beyond them.
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        for start in range(0, n, PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            mean, std = score[part, None], deviation[part, None]
            if len(levels):
                share, value = np.diff(ndtr((edges - mean) / std), axis=1), levels
                probabilities[part] = share
                rating[part], square[part] = share @ value, share @ value**2
            else:
                found = on_slider(mean + std * _PARTS)
                rating[part], square[part] = found.mean(axis=1), (found**2).mean(axis=1)
        return rating, np.sqrt(np.maximum(square - rating**2, 1e-12)), probabilities

    def _learned(self, question: Question, knows: SideName) -> tuple[Array, Array]:
        """Return mean and variance of the scores of the pairs that are asked: linear regressions, as if no
        rating were cut off at an end of the scale.
        """
        world, k, step = self.world, self.world.tastes.shape[1], self.data.scale.step or 0.0
        given, test = (question.train_user, question.train_item), (question.test_user, question.test_item)
        if knows == "item":
            bias, table, std, n_rows = world.item_bias, world.traits, USER_STD, question.n_users
            (row, known), (asked, of) = given, test
        else:
            bias, table, std, n_rows = world.user_bias, world.tastes, ITEM_STD, question.n_items
            (known, row), (of, asked) = given, test
        noise = NOISE_STD**2 + step**2 / 12
        known_rows = np.hstack([np.ones((len(table), 1)), table])
        scaled = known_rows / np.sqrt(noise)
        squares = (scaled[:, :, None] * scaled[:, None, :]).reshape(len(table), -1)
        prior = np.diag(np.append(1 / std**2, np.full(k, k**0.5 / TASTE_STD)))
        rest, shape = (question.train_value - MIDDLE - bias[known]) / noise, (n_rows, len(table))
        count, total = (csr_array((each, (row, known)), shape) for each in (np.ones(len(row)), rest))
        mean, variance = np.empty(len(asked)), np.empty(len(asked))
        order = np.argsort(asked, kind="stable")
        for start in range(0, n_rows, SOLVED_AT_ONCE):
            some = slice(start, start + SOLVED_AT_ONCE)
            matrices = np.linalg.inv((count[some] @ squares).reshape(-1, k + 1, k + 1) + prior)
            solved = np.einsum("nij,nj->ni", matrices, total[some] @ known_rows)
            edges = np.searchsorted(asked, [some.start, some.stop], sorter=order)
            pairs = order[edges[0] : edges[1]]
            at, rows = asked[pairs] - start, known_rows[of[pairs]]
            mean[pairs] = np.einsum("nk,nk->n", solved[at], rows)
            variance[pairs] = np.einsum("ni,nij,nj->n", rows, matrices[at], rows)
        return MIDDLE + bias[of] + mean, variance


def on_slider(score: Array) -> Array:
    """Return where on a slider those are put who have this score."""
    return np.asarray(SLIDER.high * np.tanh(BEND * (score - MIDDLE)))


def draw(
    n_ratings: int, rank: int, *, seed: int, slider: bool = False, a_session: int = 0, name: str = ""
) -> MadeSet:
    """Return a set of about `n_ratings` ratings in half stars, or on a slider, no pair twice; items are
    popular and users busy as in life. With `a_session` users rate in sessions of so many ratings on average.
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
    at = BEGAN_S + np.sort(rng.uniform(0, YEAR_S, len(user)))
    if a_session:
        session, at = in_sessions(user, a_session, rng)
        value += rng.normal(0, SESSION_STD, len(user))[session]
    value = on_slider(value) if slider else np.clip(np.rint(value / step) * step, SCALE.low, SCALE.high)
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), value, at)
    name = f"{name or f'made-{rank}'}, {len(user):,} ratings"
    return MadeSet(DataSet(name, ratings, n_users, n_items, SLIDER if slider else SCALE), world)


def in_sessions(user: Rows, a_session: int, rng: np.random.Generator) -> tuple[Int64s, Array]:
    """Return session and time of the ratings (n,) of each `user`, `a_session` ratings in one on average."""
    order = np.argsort(user, kind="stable")
    first = np.diff(user[order], prepend=-1) != 0
    first |= rng.random(len(user)) < 1.0 / a_session
    session, place = np.empty(len(user), dtype=np.int64), np.arange(len(user))
    session[order] = np.cumsum(first) - 1
    began, since = BEGAN_S + rng.uniform(0, YEAR_S, len(user)), np.empty(len(user))
    since[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return session, began[session] + MINUTE_S * since
