"""The engine for implicit feedback: alternating least squares of the `implicit` library, published as any
other fit.

Whatever was rated was chosen; its rating says how sure that is (`factors.confidence`). Items come from the
library, users are folded in from their histories with exactly these items, so that a user's record is the
same whoever computes it.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from factors import (
    FitDiverged,
    FitSettings,
    Fitted,
    Histories,
    Model,
    Ratings,
    Scale,
    fold_in_items,
    fold_in_users,
)
from factors.confidence import confidence_model, confidence_of, is_confidence
from factors.packing import item_layout, user_layout
from factors.tables import Float32s, Float64s
from trainer.engines import Report

# By how much more a choice at the top of the scale weighs than an item that was passed over, and the ridge of
# both sides: what is tried with the first of the ranks, which then vary. Hu, Koren and Volinsky have 40 for
# counts.
_ALPHAS = (0.5, 2.0, 8.0, 32.0)
_RIDGES = (0.3, 3.0, 10.0, 30.0)
_RANKS = (32, 16, 64, 128)
# Then both are moved a little.
_MOVES = (0.6, 1.7)
_HELD_OUT = 0.15
# Choices from which this is decided: of many, so many of whole users; a tenth of them is held out.
_MOST_TRIED = 300_000
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
# Where a model keeps the ridge and from how many ratings it was decided.
_CHOICE = "implicit_choice"
# Depth of the rankings by which rank, ridge and confidence are chosen.
_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Choice:
    """`rank`; `alpha`, see `factors.confidence`; `ridge` of both sides; `decided`: from so many ratings."""

    rank: int
    alpha: float
    ridge: float
    decided: float = 0.0


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
        return self._fitted(ratings, choice, users.astype(np.float64), items.astype(np.float64))

    def _stands(self, choice: Choice, n_ratings: int) -> bool:
        wanted = self._settings.rank
        return wanted in ("auto", choice.rank) and n_ratings < _DECIDE_AGAIN * choice.decided

    def _choose(self, ratings: Ratings, n_users: int, n_items: int, rng: np.random.Generator) -> Choice:
        """Rank, confidence and ridge by NDCG on choices held out."""
        n = float(len(ratings.value))
        wanted = self._settings.rank
        most = max(1, min(n_users, n_items))
        ranks = [min(rank, most) for rank in (_RANKS if wanted == "auto" else (wanted,))]
        if n < _LEAST_TRIED:
            return Choice(ranks[0], _ALPHAS[1], _RIDGES[0], n)
        part = _some_users(ratings, n_users, rng)
        unseen = rng.random(len(part.user_row)) < _HELD_OUT
        known, asked = _rows(part, ~unseen), _rows(part, unseen)
        shape = (n_users, n_items)

        def quality(choice: Choice) -> float:
            chosen = _matrix(known, choice.alpha, self._settings.scale, shape)
            als = self._library(choice, _ITERATIONS, np.random.default_rng(1))
            als.fit(chosen, show_progress=False)
            return _ndcg(als, chosen, asked.user_row, asked.item_row)

        tried = {
            choice: quality(choice)
            for choice in (Choice(ranks[0], alpha, ridge, n) for alpha in _ALPHAS for ridge in _RIDGES)
        }
        best = max(tried, key=tried.__getitem__)
        # More dimensions bear more ridge.
        more = [replace(best, ridge=ridge * best.ridge) for ridge in (1.0, _MOVES[1])]
        more += [replace(choice, rank=rank) for rank in dict.fromkeys(ranks[1:]) for choice in more]
        tried |= {choice: quality(choice) for choice in more}
        for name in ("ridge", "alpha"):
            best = max(tried, key=tried.__getitem__)
            moved = (replace(best, **{name: move * getattr(best, name)}) for move in _MOVES)
            tried |= {choice: quality(choice) for choice in moved if choice not in tried}
        return max(tried, key=tried.__getitem__)

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
        loss, baseline = ranks.mean(axis=0) if len(ranks) else (np.nan, np.nan)
        return {
            "loss": float(loss),
            "baseline_loss": float(baseline),
            "held_out_recall_at_20": found / max(len(ranks), 1),
        }

    def _fitted(self, ratings: Ratings, choice: Choice, users: Float64s, items: Float64s) -> Fitted:
        ridge = choice.ridge * np.eye(users.shape[1])
        error = 1.0 - np.einsum("ij,ij->i", users[ratings.user_row], items[ratings.item_row])
        noise = max(float(np.mean(error * error)) if len(error) else 1.0, _NOISE_FLOOR)
        model = confidence_model(
            self._settings.scale,
            alpha=choice.alpha,
            noise=noise,
            user_gram=items.T @ items + ridge,
            item_gram=users.T @ users + ridge,
        )
        model.parameters[_CHOICE] = np.array([choice.ridge, choice.decided])
        table = _item_rows(model, ratings, users, items)
        rows = fold_in_users(
            model, table, _histories(ratings.user_row, ratings.item_row, ratings, len(users))
        )
        metrics = {"noise": noise, "alpha": choice.alpha, "ridge": choice.ridge}
        return Fitted(model, rows, table, metrics)


def _choice_of(model: Model) -> Choice | None:
    """What an earlier fit was made with; None where it was another engine's."""
    if not is_confidence(model) or _CHOICE not in model.parameters:
        return None
    ridge, decided = model.parameters[_CHOICE].tolist()
    return Choice(model.rank, float(model.parameters["confidence"][0]), ridge, decided)


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


def _ndcg(
    als: AlternatingLeastSquares, known: sp.csr_matrix, user_row: np.ndarray, item_row: np.ndarray
) -> float:
    """Mean normalized discounted cumulative gain of the best items that the users have not chosen yet."""
    users, counts = np.unique(user_row, return_counts=True)
    if len(users) > _MOST_ASKED:
        users, counts = users[:_MOST_ASKED], counts[:_MOST_ASKED]
    if len(users) == 0:
        return 0.0
    top, _ = als.recommend(users, known[users], N=_DEPTH)
    width = known.shape[1] + 1
    asked = np.unique(user_row.astype(np.int64) * width + item_row)
    hits = np.isin(users.astype(np.int64)[:, None] * width + top, asked) & (top >= 0)
    discount = 1.0 / np.log2(2.0 + np.arange(_DEPTH))
    best = np.cumsum(discount)[np.minimum(counts, _DEPTH) - 1]
    quality = float(((hits @ discount[: hits.shape[1]]) / best).mean())
    return quality if np.isfinite(quality) else 0.0


def _item_rows(model: Model, ratings: Ratings, users: Float64s, items: Float64s) -> Float32s:
    """Item rows: spread and counts by fold-in from the raters, the mean the library's own."""
    layout = user_layout(model)
    raters = np.zeros((len(users), model.user_width), dtype=np.float32)
    raters[:, layout.latent] = users * ((model.scale.high - model.scale.low) or 1.0)
    table = fold_in_items(model, raters, _histories(ratings.item_row, ratings.user_row, ratings, len(items)))
    table[:, item_layout(model).latent] = items
    return table


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
        span = np.float32((start.model.scale.high - start.model.scale.low) or 1.0)
        known_users, known_items = min(n_users, len(start.users)), min(n_items, len(start.items))
        users[:known_users] = start.users[:known_users, user_layout(start.model).latent] / span
        items[:known_items] = start.items[:known_items, item_layout(start.model).latent]
    return users, items
