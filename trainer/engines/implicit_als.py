"""The engine for implicit feedback: alternating least squares of the `implicit` library, published as any
other fit.

Whatever was rated was chosen; its rating says how sure that is (`factors.confidence`). Items come from the
library, users are folded in from their histories with exactly these items, so that a user's record is the
same whoever computes it.
"""

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from factors import FitDiverged, FitSettings, Fitted, Histories, Model, Ratings, fold_in_items, fold_in_users
from factors.confidence import confidence_model, confidence_of, is_confidence
from factors.packing import item_layout, user_layout
from factors.tables import Float32s, Float64s
from trainer.engines import Report

# A choice at the top of the scale weighs as much as 20 items that were passed over; near the optimum on play
# counts and ratings alike (Hu, Koren, Volinsky used 40 for counts).
_ALPHA = 20.0
_REGULARIZATION = 0.05
_RANK = 32
_ITERATIONS = 15
# Warm, a few sweeps take in what is new.
_WARM_ITERATIONS = 5
_NOISE_FLOOR = 1e-4
# Pairs that are ranked to judge a fit: each costs a score of every item.
_JUDGED = 2_000
_TOP = 20


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
        rank = self._rank(n_users, n_items)
        alpha, scale = _ALPHA, self._settings.scale
        chosen = sp.csr_matrix(
            (
                confidence_of(ratings.value, scale, alpha).astype(np.float32),
                (ratings.user_row, ratings.item_row),
            ),
            shape=(n_users, n_items),
        )
        warm = start is not None and is_confidence(start.model) and start.model.rank == rank
        # The library has threads of its own, one a user; BLAS threads under them only get in the way.
        with threadpool_limits(limits=1, user_api="blas"):
            users, items = self._alternate(chosen, rank, start if warm else None, rng, report)
        if not (np.isfinite(items).all() and np.isfinite(users).all()):
            raise FitDiverged("implicit ALS gave factors that are not finite")
        return self._fitted(ratings, users.astype(np.float64), items.astype(np.float64))

    def _alternate(
        self, chosen: sp.csr_matrix, rank: int, start: Fitted | None, rng: np.random.Generator, report: Report
    ) -> tuple[Float32s, Float32s]:
        als = AlternatingLeastSquares(
            factors=rank,
            regularization=_REGULARIZATION,
            iterations=_ITERATIONS if start is None else _WARM_ITERATIONS,
            num_threads=self._settings.threads,
            random_state=int(rng.integers(2**31)),
        )
        users, items = _beginning(start, rank, *chosen.shape, rng=rng)
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

    def _rank(self, n_users: int, n_items: int) -> int:
        wanted = _RANK if self._settings.rank == "auto" else self._settings.rank
        return max(1, min(wanted, n_users, n_items))

    def _fitted(self, ratings: Ratings, users: Float64s, items: Float64s) -> Fitted:
        ridge = _REGULARIZATION * np.eye(users.shape[1])
        error = 1.0 - np.einsum("ij,ij->i", users[ratings.user_row], items[ratings.item_row])
        noise = max(float(np.mean(error * error)) if len(error) else 1.0, _NOISE_FLOOR)
        model = confidence_model(
            self._settings.scale,
            alpha=_ALPHA,
            noise=noise,
            user_gram=items.T @ items + ridge,
            item_gram=users.T @ users + ridge,
        )
        table = _item_rows(model, ratings, users, items)
        rows = fold_in_users(
            model, table, _histories(ratings.user_row, ratings.item_row, ratings, len(users))
        )
        return Fitted(model, rows, table, {"noise": noise})


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
