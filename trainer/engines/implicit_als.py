"""The engine for implicit feedback: alternating least squares of the `implicit` library, published as any
other fit.

Invariant: users are folded in from their histories with exactly the items that are published, so that a
user's record is the same whether the fit or the service computes it.

What a user rated was chosen; the rating says how sure that is. The library's sweeps end in a few of our own
(`factors.engine_api.implicit_fit`), whose ridge may depend on the number of choices; the library's cannot.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from implicit.recommender_base import ModelFitError
from threadpoolctl import threadpool_limits

from factors import Feedback, FitDiverged, FitSettings, Fitted, Float32s, Float64s, Int64s, Ratings
from factors.engine_api import (
    Weighting,
    confidence_of,
    implicit_factors,
    implicit_fit,
    thinned,
    weighting_of,
)
from trainer.engines.base import FitTask, Judge, Trial, TwoFits

# The library's default.
_SWEEPS = 15
# The first grid. `alpha`: by how much more a choice at the top of the scale weighs than an item that was
# passed over (Hu, Koren and Volinsky have 40 for counts).
_ALPHAS = (0.5, 2.0, 8.0, 32.0)
# Of both sides; the moves below find what lies between.
_RIDGES = (0.3, 3.0, 10.0, 30.0)
# The best of the grid is moved by these factors, finer than the steps of the grid, as often as it gets
# better.
_MOVES = (0.6, 1.0 / 0.6)
# The ridge then grows with this power of the number of choices, between none and in proportion.
_POWER = 0.5
# More dimensions make records longer, so they must be surely better.
_RANK, _MORE_RANK = 32, 64
# Of more choices whole users are drawn, so that a decision takes minutes at most.
_MOST_TRIED = 100_000
# Ratings that fits are judged by.
_MOST_JUDGED = 2_000
# NDCG@100 decides, as in the literature (Liang et al., 2018).
_DEPTH = 100

Factors = tuple[Float32s, Float32s]


class ImplicitEngine:
    """`implicit.cpu.als.AlternatingLeastSquares`."""

    feedback: Feedback = "implicit"

    def __init__(self, settings: FitSettings) -> None:
        self._settings = settings

    def fit(self, task: FitTask) -> Fitted:
        """See `Engine.fit`."""
        ratings, start, shape = task.known, task.start, (task.n_users, task.n_items)
        # The library has threads of its own, one a user; BLAS threads under them only get in the way.
        with threadpool_limits(limits=1, user_api="blas"):
            if start is not None and self._stands(start, len(ratings.value)):
                rank, weighting = start.model.rank, weighting_of(start.model)
            else:
                (rank, weighting), start = self._choose(ratings, shape, task.rng), None
            users, items = self._sweep(replace(task, start=start), rank, weighting)
        if not (np.isfinite(items).all() and np.isfinite(users).all()):
            raise FitDiverged("implicit ALS gave factors that are not finite")
        return self._fitted(ratings, task.n_users, weighting, items)

    def trial(self, task: FitTask, held_out: Int64s) -> Trial:
        """See `Engine.trial`."""
        return TwoFits(self.fit, task, held_out)

    def judge(self, train: Ratings, test: Ratings) -> Judge:
        """See `Engine.judge`."""
        return _PlaceJudge(train, test)

    def _stands(self, start: Fitted, n_ratings: int) -> bool:
        """Return whether rank and weighting of an earlier fit stand for `n_ratings`."""
        return (
            start.model.feedback == "implicit"
            and self._settings.rank in ("auto", start.model.rank)
            and n_ratings < 1.5 * weighting_of(start.model).decided
        )

    def _choose(
        self, ratings: Ratings, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, Weighting]:
        """Return rank and weighting by NDCG on choices held out."""
        wanted, most = self._settings.rank, max(1, min(shape))
        rank = min(_RANK if wanted == "auto" else wanted, most)
        default = Weighting(_ALPHAS[1], _RIDGES[0], _POWER, decided=float(len(ratings.value)))
        part = _some_users(ratings, shape[0], rng)
        # So few hold out too few to tell.
        if len(part.user_row) < 200:
            return rank, default
        # Twice: one draw leaves too much to chance.
        draws = [rng.random(len(part.user_row)) < 0.15 for _ in range(2)]
        parts = [(part.take(~held), part.take(held)) for held in draws]
        # Of all that are tried only the factors to go on from are kept: they are as many as users and items.
        highest = -np.inf
        for alpha, ridge in product(_ALPHAS, _RIDGES):
            plain = replace(default, alpha=alpha, ridge=ridge, power=0.0)
            factors = self._swept(parts, shape, rank, plain)
            if (found := self._ndcg(parts, plain, factors).mean()) > highest:
                highest, best, begin = found, replace(plain, power=_POWER), factors
        tried = {best: self._ndcg(parts, best, begin)}
        # More rounds of moves find differences that the draws do not support.
        for _ in range(3):
            centre = best
            for alpha, ridge in product((1.0, *_MOVES), repeat=2):
                moved = replace(centre, alpha=centre.alpha * alpha, ridge=centre.ridge * ridge)
                if not any(_same(moved, other) for other in tried):
                    tried[moved] = self._ndcg(parts, moved, begin)
            best = max(tried, key=lambda weighting: tried[weighting].mean())
            if best == centre:
                break
        if wanted == "auto" and most >= _MORE_RANK:
            # More dimensions bear more ridge.
            more = replace(best, ridge=best.ridge * _MOVES[1])
            gain = self._ndcg(parts, more, self._swept(parts, shape, _MORE_RANK, more)) - tried[best]
            if gain.mean() > gain.std() / np.sqrt(len(gain)):
                return _MORE_RANK, more
        return rank, best

    def _swept(
        self, parts: list[tuple[Ratings, Ratings]], shape: tuple[int, int], rank: int, weighting: Weighting
    ) -> list[Factors]:
        """Return the library's users and items for the ratings to learn of each part."""
        found = []
        for train, _ in parts:
            als = self._library(rank, weighting, _SWEEPS, np.random.default_rng(1))
            _learn(als, self._confidences(train, weighting, shape))
            found.append((als.user_factors, als.item_factors))
        return found

    def _ndcg(
        self, parts: list[tuple[Ratings, Ratings]], weighting: Weighting, begin: list[Factors]
    ) -> Float64s:
        """Return the NDCG of each ranked user; with a power, after sweeps of our own from `begin`."""
        found = []
        for (train, test), factors in zip(parts, begin, strict=True):
            own = factors
            if weighting.power:
                own = implicit_factors(self._fitted(train, len(factors[0]), weighting, factors[1]))
            found.append(_ndcg(own, train, test))
        return np.concatenate(found)

    def _sweep(self, task: FitTask, rank: int, weighting: Weighting) -> Factors:
        """Return the library's users and items, from those of `task.start` where there is one."""
        start, shape, rng, report = task.start, (task.n_users, task.n_items), task.rng, task.report
        # From an earlier fit a few sweeps take in what is new, and rows that are new begin near 0.
        als = self._library(rank, weighting, _SWEEPS if start is None else 5, rng)
        users, items = (rng.random((size, rank), dtype=np.float32) * np.float32(0.01) for size in shape)
        if start is not None:
            for rows, earlier in zip((users, items), implicit_factors(start), strict=True):
                known = min(len(rows), len(earlier))
                rows[:known] = earlier[:known]
        chosen = self._confidences(task.known, weighting, shape)
        if not chosen.nnz:
            return users, items
        als.user_factors, als.item_factors = users, items
        _learn(als, chosen, lambda sweep, *_: report({"sweep": float(sweep + 1)}))
        users = als.recalculate_user(np.arange(len(users)), chosen)
        return np.asarray(users, dtype=np.float32), np.asarray(als.item_factors, dtype=np.float32)

    def _library(
        self, rank: int, weighting: Weighting, iterations: int, rng: np.random.Generator
    ) -> AlternatingLeastSquares:
        return _library(rank, weighting.ridge, iterations, self._settings.threads, rng)

    def _confidences(self, ratings: Ratings, weighting: Weighting, shape: tuple[int, int]) -> sp.csr_matrix:
        return _matrix(ratings, confidence_of(ratings.value, self._settings.scale, weighting.alpha), shape)

    def _fitted(self, ratings: Ratings, n_users: int, weighting: Weighting, items: Float32s) -> Fitted:
        """Return what is published, from the library's `items` (n_items, k)."""
        # The library has one ridge for all rows: two sweeps give the rows theirs.
        fitted = implicit_fit(ratings, n_users, self._settings.scale, weighting, items, sweeps=2)
        chosen = {"alpha": weighting.alpha, "ridge": weighting.ridge, "power": weighting.power}
        return replace(fitted, metrics={**fitted.metrics, **chosen})


def item_factors(
    confidences: sp.csr_matrix, rank: int, ridge: float, *, threads: int, rng: np.random.Generator
) -> Float32s:
    """Return the library's item factors (n_items, r): see `factors.Factorize`. Raises `FitDiverged`."""
    als = _library(rank, ridge, _SWEEPS, threads, rng)
    with threadpool_limits(limits=1, user_api="blas"):
        _learn(als, confidences)
    return np.asarray(als.item_factors, dtype=np.float32)


def _learn(
    als: AlternatingLeastSquares, chosen: sp.csr_matrix, callback: Callable[..., None] | None = None
) -> None:
    try:
        als.fit(chosen, show_progress=False, callback=callback)
    except ModelFitError as exc:
        raise FitDiverged("implicit ALS gave factors that are not finite") from exc


def _library(
    rank: int, ridge: float, iterations: int, threads: int, rng: np.random.Generator
) -> AlternatingLeastSquares:
    return AlternatingLeastSquares(
        factors=rank,
        regularization=ridge,
        iterations=iterations,
        num_threads=threads,
        random_state=int(rng.integers(2**31)),
    )


class _PlaceJudge:
    """A `Judge` by the mean percentile of each chosen item among all items that the user had not chosen,
    against that of popularity.
    """

    def __init__(self, train: Ratings, test: Ratings) -> None:
        # Each pair costs a score of every item.
        self._test = test.take(np.arange(min(len(test.value), _MOST_JUDGED)))
        asked = np.zeros(1 + max(int(each.user_row.max(initial=0)) for each in (train, test)), dtype=bool)
        asked[self._test.user_row] = True
        self._popularity = np.bincount(train.item_row).astype(np.float64)
        self._train = train.take(asked[train.user_row])

    def metrics(self, fitted: Fitted) -> dict[str, float]:
        """See `Judge`: mean percentiles."""
        n_items = len(fitted.items)
        popularity = np.pad(self._popularity, (0, n_items - len(self._popularity)))
        users, items = implicit_factors(fitted)
        above, among = _places(lambda user: items @ users[user], self._train, self._test, n_items)
        most_popular, _ = _places(lambda _: popularity, self._train, self._test, n_items)
        losses = {"loss": (above / among).mean(), "baseline_loss": (most_popular / among).mean()}
        # Recall@20, as in the literature (Liang et al., 2018).
        return {**losses, "held_out_recall_at_20": float((above < 20).mean())}

    def losses(self, fitted: Fitted) -> Float64s:
        """See `Judge`: percentiles, of the first ratings only."""
        users, items = implicit_factors(fitted)
        above, among = _places(lambda user: items @ users[user], self._train, self._test, len(fitted.items))
        return above / among


def _places(
    scores_of: Callable[[int], Float32s | Float64s], train: Ratings, test: Ratings, n_items: int
) -> tuple[Float64s, Float64s]:
    """Return how many of the items that the user had not chosen have a higher score than each rating of
    `test`, and among how many.
    """
    user_row, item_row = test.user_row, test.item_row
    n_users = 1 + max(int(train.user_row.max(initial=0)), int(user_row.max(initial=0)))
    seen = _matrix(train, np.ones(len(train.value), np.float32), (n_users, n_items))
    above, among = np.empty(len(user_row)), np.empty(len(user_row))
    for position, (user, item) in enumerate(zip(user_row.tolist(), item_row.tolist(), strict=True)):
        passed = np.ones(n_items, dtype=bool)
        passed[seen.indices[seen.indptr[user] : seen.indptr[user + 1]]] = False
        passed[item] = True
        scores = scores_of(user)
        ties = (scores == scores[item])[passed].sum() - 1
        above[position] = (scores > scores[item])[passed].sum() + 0.5 * ties
        among[position] = max(passed.sum() - 1, 1)
    return above, among


def _same(one: Weighting, other: Weighting) -> bool:
    return math.isclose(one.alpha, other.alpha) and math.isclose(one.ridge, other.ridge)


def _some_users(ratings: Ratings, n_users: int, rng: np.random.Generator) -> Ratings:
    """Return all ratings of so many random users as together have at most `_MOST_TRIED`; of a user with more
    than a hundredth of that, a sample.
    """
    if len(ratings.value) <= _MOST_TRIED:
        return ratings
    ratings = thinned(ratings, n_users, _MOST_TRIED // 100)
    counts = np.bincount(ratings.user_row, minlength=n_users)
    order = rng.permutation(n_users)
    taken = np.zeros(n_users, dtype=bool)
    taken[order[np.cumsum(counts[order]) <= _MOST_TRIED]] = True
    return ratings.take(taken[ratings.user_row])


def _matrix(ratings: Ratings, values: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((values.astype(np.float32), (ratings.user_row, ratings.item_row)), shape=shape)


def _ndcg(factors: Factors, train: Ratings, test: Ratings) -> Float64s:
    """Return the normalized discounted cumulative gain (u,) of each user's best items among those not chosen
    in `train`.
    """
    als = AlternatingLeastSquares(factors=factors[0].shape[1], num_threads=1)
    als.user_factors, als.item_factors = factors
    n_items = len(factors[1])
    chosen = _matrix(train, np.ones(len(train.value)), (len(factors[0]), n_items))
    users, counts = np.unique(test.user_row, return_counts=True)
    # Each user costs a score of every item.
    users, counts = users[:5_000], counts[:5_000]
    top, _ = als.recommend(users, chosen[users], N=_DEPTH)
    # The library pads a short ranking with -1; a stride of n_items + 1 keeps that apart from every item.
    wanted = np.unique(test.user_row.astype(np.int64) * (n_items + 1) + test.item_row)
    hits = np.isin(users.astype(np.int64)[:, None] * (n_items + 1) + top, wanted) & (top >= 0)
    discount = 1.0 / np.log2(2.0 + np.arange(_DEPTH))
    best = np.cumsum(discount)[np.minimum(counts, _DEPTH) - 1]
    quality = (hits @ discount[: hits.shape[1]]) / best
    return np.asarray(np.where(np.isfinite(quality), quality, 0.0))
