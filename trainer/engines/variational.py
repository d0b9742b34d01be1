"""The default engine.

Variational ALS of `factors`, judged by the error of its ratings against a bias model.
"""

import math

import numpy as np

from factors import FitSettings, Fitted, Float64s, Ratings, Scorer, fit, held_out_metrics
from trainer.engines import Report, compared

# Ratings of a user or item that the bias baseline adds at 0: with fewer own ratings a mean is mostly noise.
_SHRINKAGE = 5.0


class VariationalEngine:
    """`factors.fit`."""

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

        def progress(sweep: int, metrics: dict[str, float]) -> None:
            report({"sweep": float(sweep), **metrics})

        return fit(
            ratings, n_users, n_items, settings=self._settings, rng=rng, start=start, progress=progress
        )

    def held_out(self, fitted: Fitted, known: Ratings, unseen: Ratings) -> dict[str, float]:
        """Root mean square error of both."""
        metrics = held_out_metrics(fitted, unseen)
        scorer = Scorer(fitted.posterior, fitted.items)
        scores = scorer.score(fitted.users, unseen.user_row, unseen.item_row, unseen.time)
        own, baseline = unseen.value - scores.rating, bias_errors(known, unseen)
        kept = {f"held_out_{name}": value for name, value in metrics.items() if math.isfinite(value)}
        return {**kept, **compared(own * own, baseline * baseline, root=True)}


def bias_errors(known: Ratings, unseen: Ratings) -> Float64s:
    """Errors (n,) on `unseen` of mean + item bias + user bias, each shrunk, learned from `known`."""
    mean = float(known.value.mean()) if len(known.value) else 0.0
    n_items = 1 + max(int(known.item_row.max(initial=0)), int(unseen.item_row.max(initial=0)))
    n_users = 1 + max(int(known.user_row.max(initial=0)), int(unseen.user_row.max(initial=0)))
    item = _shrunk_means(known.item_row, known.value - mean, n_items)
    user = _shrunk_means(known.user_row, known.value - mean - item[known.item_row], n_users)
    return np.asarray(unseen.value - (mean + item[unseen.item_row] + user[unseen.user_row]))


def _shrunk_means(rows: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    total = np.bincount(rows, weights=values, minlength=size)
    return np.asarray(total / (np.bincount(rows, minlength=size) + _SHRINKAGE))
