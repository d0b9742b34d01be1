"""The engine for implicit feedback: alternating least squares of the `implicit` library, published as any
other fit.

Whatever was rated was chosen; its rating says how sure that is (`factors.inference.implicit_feedback`). The
library's sweeps end in a few of our own, whose ridge may depend on how much was chosen, which the
library has not. Users are folded in from their histories with exactly the items that are published, so that
a user's record is the same whoever computes it.
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from factors import (
    FitDiverged,
    FitSettings,
    Fitted,
    Float32s,
    Float64s,
    Histories,
    Model,
    Ratings,
    Scale,
    posterior_of,
)
from factors.inference.implicit_feedback import (
    ImplicitPosterior,
    Weighting,
    confidence_of,
    implicit_model,
)
from factors.model.layout import Layout, item_layout, stored_width, user_layout
from trainer.engines import Report, compared

# By how much more a choice at the top of the scale weighs than an item that was passed over, and the ridge of
# both sides. Hu, Koren and Volinsky have 40 for counts.
_ALPHAS = (0.5, 2.0, 8.0, 32.0)
_RIDGES = (0.3, 3.0, 10.0, 30.0)
# The best of them is moved by these, with a ridge that grows with this power of the number of choices.
_MOVES = (0.6, 1.0 / 0.6)
_ROUNDS = 3
_POWER = 0.5
_OWN_SWEEPS = 2
# More dimensions make records longer, so they must be surely better.
_RANK, _MORE_RANK = 32, 64
# Choices are held out so many times, each time such a part: one draw leaves too much to chance.
_DRAWS = 2
_HELD_OUT = 0.15
# Choices from which this is decided: of many, so many of whole users; a tenth of them is held out.
_MOST_TRIED = 100_000
_LEAST_TRIED = 200
_MOST_ASKED = 5_000
# A choice stands until there are so many times the ratings.
_DECIDE_AGAIN = 1.5
_ITERATIONS = 15
# Warm, a few sweeps take in what is new.
_WARM_ITERATIONS = 5
_NOISE_FLOOR = 1e-4
# Pairs that are ranked to judge a fit: each costs a score of every item.
_JUDGED = 2_000
_TOP = 20
# Where a model keeps from how many ratings its weighting was decided.
_CHOICE = "implicit_choice"
# Depth of the rankings by which rank, ridge and confidence are chosen.
_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """`rank`; `alpha`, `ridge`, `power`: see `factors.inference.implicit_feedback`; `decided`: from so many
    ratings.
    """

    rank: int
    alpha: float
    ridge: float
    decided: float = 0.0
    power: float = 0.0


class ImplicitEngine:
    """`implicit.cpu.als.AlternatingLeastSquares`."""

    def __init__(self, settings: FitSettings) -> None:
        self._settings = settings

    def fit(
        self,
        ratings: Ratings,
        n_users: int,
        n_items: int,
        *,
        rng: np.random.Generator,
        start: Fitted | None,
        report: Report,
    ) -> Fitted:
        """See `Engine.fit`."""
        # The library has threads of its own, one a user; BLAS threads under them only get in the way.
        with threadpool_limits(limits=1, user_api="blas"):
            earlier = None if start is None else _choice_of(start.model)
            if earlier is not None and self._stands(earlier, len(ratings.value)):
                choice = earlier
            else:
                choice, start = self._choose(ratings, n_users, n_items, rng), None
            chosen = _matrix(ratings, choice.alpha, self._settings.scale, (n_users, n_items))
            users, items = self._alternate(chosen, choice, start, rng, report)
        if not (np.isfinite(items).all() and np.isfinite(users).all()):
            raise FitDiverged("implicit ALS gave factors that are not finite")
        return self._fitted(ratings, choice, users, items)

    def _stands(self, choice: Choice, n_ratings: int) -> bool:
        wanted = self._settings.rank
        return wanted in ("auto", choice.rank) and n_ratings < _DECIDE_AGAIN * choice.decided

    def _choose(self, ratings: Ratings, n_users: int, n_items: int, rng: np.random.Generator) -> Choice:
        """Rank, confidence and ridge by NDCG on choices held out."""
        n = float(len(ratings.value))
        wanted = self._settings.rank
        most = max(1, min(n_users, n_items))
        rank = min(_RANK if wanted == "auto" else wanted, most)
        part = _some_users(ratings, n_users, rng)
        if len(part.user_row) < _LEAST_TRIED:
            return Choice(rank, _ALPHAS[1], _RIDGES[0], n, _POWER)
        draws = [rng.random(len(part.user_row)) < _HELD_OUT for _ in range(_DRAWS)]
        parts = [(_rows(part, ~unseen), _rows(part, unseen)) for unseen in draws]

        def swept(choice: Choice) -> list[tuple[Float32s, Float32s]]:
            """The library's users and items for each draw."""
            found = []
            for known, _ in parts:
                als = self._library(choice, _ITERATIONS, np.random.default_rng(1))
                chosen = _matrix(known, choice.alpha, self._settings.scale, (n_users, n_items))
                als.fit(chosen, show_progress=False)
                found.append((als.user_factors, als.item_factors))
            return found

        def quality(choice: Choice, begin: list[tuple[Float32s, Float32s]]) -> Float64s:
            """NDCG of each user asked for, the sweeps of our own going on from `begin`."""
            found = []
            for (known, asked), factors in zip(parts, begin, strict=True):
                own = _factors(self._fitted(known, choice, *factors)) if choice.power else factors
                found.append(_ndcg(own, known, asked))
            return np.concatenate(found)

        # Of all that are tried only the factors to go on from are kept: they are as many as users and items.
        highest = -np.inf
        for plain in (Choice(rank, alpha, ridge, n) for alpha in _ALPHAS for ridge in _RIDGES):
            factors = swept(plain)
            if (found := quality(plain, factors).mean()) > highest:
                highest, best, begin = found, replace(plain, power=_POWER), factors
        tried = {best: quality(best, begin)}
        for _ in range(_ROUNDS):
            centre = best
            for alpha, ridge in product((1.0, *_MOVES), repeat=2):
                moved = replace(centre, alpha=centre.alpha * alpha, ridge=centre.ridge * ridge)
                if not any(_same(moved, other) for other in tried):
                    tried[moved] = quality(moved, begin)
            best = max(tried, key=lambda choice: tried[choice].mean())
            if best == centre:
                break
        if wanted == "auto" and most >= _MORE_RANK:
            # More dimensions bear more ridge.
            more = replace(best, rank=_MORE_RANK, ridge=best.ridge * _MOVES[1])
            gain = quality(more, swept(more)) - tried[best]
            if gain.mean() > gain.std() / np.sqrt(len(gain)):
                best = more
        return best

    def _library(self, choice: Choice, iterations: int, rng: np.random.Generator) -> AlternatingLeastSquares:
        return AlternatingLeastSquares(
            factors=choice.rank,
            regularization=choice.ridge,
            iterations=iterations,
            num_threads=self._settings.threads,
            random_state=int(rng.integers(2**31)),
        )

    def _alternate(
        self,
        chosen: sp.csr_matrix,
        choice: Choice,
        start: Fitted | None,
        rng: np.random.Generator,
        report: Report,
    ) -> tuple[Float32s, Float32s]:
        als = self._library(choice, _ITERATIONS if start is None else _WARM_ITERATIONS, rng)
        users, items = _beginning(start, choice.rank, *chosen.shape, rng=rng)
        if not chosen.nnz:
            return users, items
        als.user_factors, als.item_factors = users, items
        als.fit(chosen, show_progress=False, callback=lambda sweep, *_: report({"sweep": float(sweep + 1)}))
        users = als.recalculate_user(np.arange(len(users)), chosen)
        return np.asarray(users, dtype=np.float32), np.asarray(als.item_factors, dtype=np.float32)

    def held_out(self, fitted: Fitted, known: Ratings, unseen: Ratings) -> dict[str, float]:
        """Mean percentile of the unseen choices among all items not yet chosen, against that of
        popularity.
        """
        sample = slice(0, _JUDGED)
        user_row, item_row = unseen.user_row[sample], unseen.item_row[sample]
        n_items = len(fitted.items)
        popularity = np.bincount(known.item_row, minlength=n_items).astype(np.float64)
        seen = sp.csr_matrix(
            (np.ones(len(known.value)), (known.user_row, known.item_row)), shape=(len(fitted.users), n_items)
        )
        users = fitted.users[:, user_layout(fitted.model).latent]
        items = fitted.items[:, item_layout(fitted.model).latent]
        ranks = np.empty((len(user_row), 2))
        found = 0
        for position, (user, item) in enumerate(zip(user_row.tolist(), item_row.tolist(), strict=True)):
            passed = np.ones(n_items, dtype=bool)
            passed[seen.indices[seen.indptr[user] : seen.indptr[user + 1]]] = False
            passed[item] = True
            for column, scores in enumerate((items @ users[user], popularity)):
                above = (scores > scores[item])[passed].sum() + 0.5 * (
                    (scores == scores[item])[passed].sum() - 1
                )
                ranks[position, column] = above / max(passed.sum() - 1, 1)
                found += column == 0 and above < _TOP
        losses = compared(ranks[:, 0], ranks[:, 1], root=False)
        return {**losses, "held_out_recall_at_20": found / max(len(ranks), 1)}

    def _fitted(self, ratings: Ratings, choice: Choice, users: Float32s, items: Float32s) -> Fitted:
        """What is published, from the library's `users` (n_users, k) and `items` (n_items, k)."""
        scale, layout = self._settings.scale, Layout(choice.rank, 0)
        by_user = _histories(ratings.user_row, ratings.item_row, ratings, len(users))
        by_item = _histories(ratings.item_row, ratings.user_row, ratings, len(items))
        weighting = Weighting(
            choice.alpha, choice.ridge, choice.power, _typical_count(by_user), _typical_count(by_item)
        )
        span = np.float32((scale.high - scale.low) or 1.0)
        user_rows = np.zeros((len(users), layout.width), np.float32)
        item_rows = np.zeros((len(items), stored_width(layout)), np.float32)
        user_rows[:, layout.latent], item_rows[:, layout.latent] = users * span, items

        def model() -> Model:
            of_users = user_rows[:, layout.latent].astype(np.float64) / span
            of_items = item_rows[:, layout.latent].astype(np.float64)
            return implicit_model(scale, weighting, noise=noise, users=of_users, items=of_items)

        noise = 1.0
        for _ in range(_OWN_SWEEPS):
            user_rows = posterior_of(model()).fold_in_users(item_rows, by_user)
            noise = _noise(ratings, user_rows[:, layout.latent] / span, item_rows[:, layout.latent])
            item_rows = posterior_of(model()).fold_in_items(user_rows, by_item)
        published = model()
        published.parameters[_CHOICE] = np.array([choice.decided])
        metrics = {"noise": noise, "alpha": choice.alpha, "ridge": choice.ridge, "power": choice.power}
        return Fitted(
            published, posterior_of(published).fold_in_users(item_rows, by_user), item_rows, metrics
        )


def _typical_count(histories: Histories) -> float:
    counts = np.diff(histories.offsets)
    return float(counts.sum() / max((counts > 0).sum(), 1))


def _noise(ratings: Ratings, users: Float32s, items: Float32s) -> float:
    error = 1.0 - np.einsum("ij,ij->i", users[ratings.user_row], items[ratings.item_row])
    return max(float(np.mean(error * error)) if len(error) else 1.0, _NOISE_FLOOR)


def _factors(fitted: Fitted) -> tuple[Float32s, Float32s]:
    """Users and items (n, k) as the library has them."""
    span = np.float32((fitted.model.scale.high - fitted.model.scale.low) or 1.0)
    users = fitted.users[:, user_layout(fitted.model).latent] / span
    return users, np.ascontiguousarray(fitted.items[:, item_layout(fitted.model).latent])


def _same(one: Choice, other: Choice) -> bool:
    return math.isclose(one.alpha, other.alpha) and math.isclose(one.ridge, other.ridge)


def _choice_of(model: Model) -> Choice | None:
    """What an earlier fit was made with; None where it was another engine's."""
    if model.feedback != "implicit" or _CHOICE not in model.parameters:
        return None
    (decided,) = model.parameters[_CHOICE].tolist()
    weighting = ImplicitPosterior(model).weighting
    return Choice(model.rank, weighting.alpha, weighting.ridge, decided, weighting.power)


def _rows(ratings: Ratings, rows: np.ndarray) -> Ratings:
    return Ratings(ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows])


def _some_users(ratings: Ratings, n_users: int, rng: np.random.Generator) -> Ratings:
    """All ratings of so many users as together have at most `_MOST_TRIED`."""
    if len(ratings.value) <= _MOST_TRIED:
        return ratings
    counts = np.bincount(ratings.user_row, minlength=n_users)
    order = rng.permutation(n_users)
    taken = np.zeros(n_users, dtype=bool)
    taken[order[np.cumsum(counts[order]) <= _MOST_TRIED]] = True
    return _rows(ratings, taken[ratings.user_row])


def _matrix(ratings: Ratings, alpha: float, scale: Scale, shape: tuple[int, int]) -> sp.csr_matrix:
    confidence = confidence_of(ratings.value, scale, alpha).astype(np.float32)
    return sp.csr_matrix((confidence, (ratings.user_row, ratings.item_row)), shape=shape)


def _ndcg(factors: tuple[Float32s, Float32s], known: Ratings, asked: Ratings) -> Float64s:
    """Normalized discounted cumulative gain (u,) of each user's best items that he has not chosen yet."""
    als = AlternatingLeastSquares(factors=factors[0].shape[1], num_threads=1)
    als.user_factors, als.item_factors = factors
    shape = len(factors[0]), len(factors[1])
    chosen = sp.csr_matrix(
        (np.ones(len(known.value), dtype=np.float32), (known.user_row, known.item_row)), shape=shape
    )
    users, counts = np.unique(asked.user_row, return_counts=True)
    users, counts = users[:_MOST_ASKED], counts[:_MOST_ASKED]
    top, _ = als.recommend(users, chosen[users], N=_DEPTH)
    wanted = np.unique(asked.user_row.astype(np.int64) * (shape[1] + 1) + asked.item_row)
    hits = np.isin(users.astype(np.int64)[:, None] * (shape[1] + 1) + top, wanted) & (top >= 0)
    discount = 1.0 / np.log2(2.0 + np.arange(_DEPTH))
    best = np.cumsum(discount)[np.minimum(counts, _DEPTH) - 1]
    quality = (hits @ discount[: hits.shape[1]]) / best
    return np.asarray(np.where(np.isfinite(quality), quality, 0.0))


def _histories(row: np.ndarray, other: np.ndarray, ratings: Ratings, n_rows: int) -> Histories:
    order = np.argsort(row, kind="stable")
    offsets = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=n_rows), out=offsets[1:])
    return Histories(offsets, other[order], ratings.value[order], ratings.time[order])


def _beginning(
    start: Fitted | None, rank: int, n_users: int, n_items: int, *, rng: np.random.Generator
) -> tuple[Float32s, Float32s]:
    """Where to begin: the rows of an earlier fit, and near 0 for who and what came since."""
    users = rng.random((n_users, rank), dtype=np.float32) * np.float32(0.01)
    items = rng.random((n_items, rank), dtype=np.float32) * np.float32(0.01)
    if start is not None:
        for rows, earlier in zip((users, items), _factors(start), strict=True):
            known = min(len(rows), len(earlier))
            rows[:known] = earlier[:known]
    return users, items
