"""The neural engine: items by a network, users by its Bayesian last layer, published as any other fit.

Invariant: the user rows are what a fold-in gives with the item rows, however the network came to these.
Torch is imported here only, in the process of a fit.
"""

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from factors import Feedback, FitDiverged, FitRefused, FitSettings, Fitted, Float64s, Int64s, Ratings
from factors.engine_api import (
    Compressed,
    explicit_fit,
    initial_points,
    points_of,
    prepare,
    prior_fit,
    scale_range,
)
from trainer.engines.base import FitTask, Judge, Trial, TwoFits
from trainer.engines.variational import RatingJudge, VariationalEngine

MISSING = "the neural engine needs torch: pip install foldin[neural]"


class NeuralEngine:
    """A network trained through the fold-in (`trainer.engines.network`)."""

    feedback: Feedback = "explicit"

    def __init__(self, settings: FitSettings) -> None:
        """Raises `FitRefused` where torch is not installed."""
        try:
            self._torch: Any = import_module("torch")
        except ImportError as exc:
            raise FitRefused(MISSING) from exc
        self._settings = settings

    def fit(self, task: FitTask) -> Fitted:
        """See `Engine.fit`."""
        by_user = prepare(task.ratings, task.n_users, task.n_items, self._settings)
        if len(by_user.value) == 0:
            return prior_fit(replace(self._settings, link="gaussian"), task.n_users, task.n_items)
        # So few leave nothing for a network to learn.
        if len(by_user.value) < 100:
            engine = VariationalEngine(replace(self._settings, link="gaussian"))
            return engine.fit(replace(task, start=None))
        self._torch.set_num_threads(self._settings.threads)
        with threadpool_limits(limits=self._settings.threads, user_api="blas"):
            return self._fit(by_user, task)

    def trial(self, task: FitTask, held_out: Int64s) -> Trial:
        """See `Engine.trial`."""
        return TwoFits(self.fit, task, held_out)

    def judge(self, train: Ratings, test: Ratings) -> Judge:
        """See `Engine.judge`: as the default engine is judged."""
        return RatingJudge(train, test)

    def _fit(self, by_user: Compressed, task: FitTask) -> Fitted:
        from trainer.engines.network import train

        scale, by_item, start = self._settings.scale, by_user.by_other(task.n_items), task.start
        # As the default engine has it below a million ratings.
        rank = 8 if self._settings.rank == "auto" else self._settings.rank
        # The network works in units of the deviation of the ratings, whatever the scale.
        unit = max(float(by_user.value.std()), 1e-3 * scale_range(scale))
        begin = initial_points(rank, task.n_items, float(by_user.value.mean()), unit, task.rng)
        warm = start is not None and _continues(start, rank, self._settings)
        if warm and start is not None:
            begin = points_of(start, unit, begin)
        try:
            inputs = _item_inputs(by_item, begin.mean, unit)
            points, loss = train(by_user, inputs, begin, warm=warm, rng=task.rng, report=task.report)
        except self._torch.linalg.LinAlgError as exc:
            raise FitDiverged(f"the network gave features that cannot be solved: {exc}") from exc
        arrays = (points.vectors, points.implicit_effects, points.user_mean, points.user_covariance)
        if not (math.isfinite(loss) and all(np.isfinite(array).all() for array in arrays)):
            raise FitDiverged("the network gave features that are not finite")
        fitted = explicit_fit(points, by_user, by_item, scale)
        return replace(fitted, metrics={"loss": loss, **fitted.metrics})


def _continues(start: Fitted, rank: int, settings: FitSettings) -> bool:
    model = start.model
    kind = (model.feedback, model.link, model.rank, model.scale)
    return kind == ("explicit", "gaussian", rank, settings.scale)


def _item_inputs(by_item: Compressed, mean: float, unit: float) -> Float64s:
    """Return what the network reads of each item (n_items, 3): log count, mean and deviation of its
    ratings.
    """
    counts = by_item.counts.astype(np.float64)
    deviation = (by_item.value - mean) / unit
    total = np.bincount(by_item.row, deviation, by_item.rows)
    square = np.bincount(by_item.row, deviation * deviation, by_item.rows)
    # Five ratings at the mean besides an item's own, as in the bias baseline.
    shrunk = total / (counts + 5.0)
    variance = (square + 5.0 * float(np.mean(deviation**2))) / (counts + 5.0) - shrunk**2
    # A fifth of the logarithm is about as large as the other two.
    return np.column_stack([np.log1p(counts) / 5.0, shrunk, np.sqrt(np.maximum(variance, 0.0))])
