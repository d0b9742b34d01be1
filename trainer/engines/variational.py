"""The default engine: variational ALS of `factors`, judged by the error of its ratings against a bias model.

Invariant: engine and baseline are judged on the same ratings, which neither has learned.
"""

import math

import numpy as np

from factors import (
    Feedback,
    FitOptions,
    FitSettings,
    Fitted,
    Float64s,
    Int64s,
    Ratings,
    Scorer,
    TrialFit,
    fit,
    fit_biases,
    held_out_metrics,
)
from trainer.engines.base import FitTask, Judge, Trial


class VariationalEngine:
    """`factors.fit`."""

    feedback: Feedback = "explicit"

    def __init__(self, settings: FitSettings) -> None:
        self._settings = settings

    def fit(self, task: FitTask) -> Fitted:
        """See `Engine.fit`."""
        return fit(task.ratings, task.n_users, task.n_items, **self._options(task))

    def trial(self, task: FitTask, held_out: Int64s) -> Trial:
        """See `Engine.trial`."""
        return TrialFit(task.ratings, task.n_users, task.n_items, held_out, **self._options(task))

    def _options(self, task: FitTask) -> FitOptions:
        return FitOptions(
            settings=self._settings,
            rng=task.rng,
            start=task.start,
            continuation=task.continuation,
            progress=lambda sweep, metrics: task.report({"sweep": float(sweep), **metrics}),
            attributes=task.attributes,
            context_kinds=task.context_kinds,
            has_read=task.has_read,
        )

    def judge(self, train: Ratings, test: Ratings) -> Judge:
        """See `Engine.judge`: root mean square errors, and squared errors."""
        return RatingJudge(train, test)


class RatingJudge:
    """A `Judge` by the error of ratings, against that of a bias model."""

    def __init__(self, train: Ratings, test: Ratings) -> None:
        self._test, self._baseline = test, bias_errors(train, test) ** 2

    def metrics(self, fitted: Fitted) -> dict[str, float]:
        """See `Judge`: root mean square errors."""
        metrics = held_out_metrics(fitted, self._test)
        own, baseline = self.losses(fitted), self._baseline
        losses = {"loss": math.sqrt(own.mean()), "baseline_loss": math.sqrt(baseline.mean())}
        kept = {f"held_out_{name}": value for name, value in metrics.items() if math.isfinite(value)}
        return {**kept, **losses}

    def losses(self, fitted: Fitted) -> Float64s:
        """See `Judge`: squared errors."""
        test, scorer = self._test, Scorer(fitted.posterior, fitted.items)
        scores = scorer.score(fitted.users, test.user_row, test.item_row, test.time, test.context)
        return np.asarray((test.value - scores.rating) ** 2)


def bias_errors(train: Ratings, test: Ratings) -> Float64s:
    """Return the errors (n,) on `test` of mean + item bias + user bias, each shrunk, learned from `train`."""
    n_items = 1 + max(int(train.item_row.max(initial=0)), int(test.item_row.max(initial=0)))
    n_users = 1 + max(int(train.user_row.max(initial=0)), int(test.user_row.max(initial=0)))
    # With fewer than about five ratings of its own a mean is mostly noise.
    biases = fit_biases(train, n_users, n_items, user_ridge=5.0, item_ridge=5.0, rounds=1)
    return np.asarray(test.value - biases.predict(test.user_row, test.item_row))
