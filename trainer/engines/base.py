"""What every engine has: the task that it is given, its two methods, and how its loss is told."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from factors import Fitted, Float64s, Ratings

Report = Callable[[dict[str, float]], None]


def _report_nothing(_metrics: dict[str, float]) -> None:
    """Let the figures of a sweep go."""


@dataclass(frozen=True, slots=True)
class FitTask:
    """What an engine fits: `ratings` of `n_users` x `n_items`.

    `start`: an earlier fit to go on from, in which users and items have the same rows but there may be fewer
    of them. `report` is called with the figures of each sweep.
    """

    ratings: Ratings
    n_users: int
    n_items: int
    rng: np.random.Generator
    start: Fitted | None = None
    report: Report = _report_nothing


class Engine(Protocol):
    """One way to fit."""

    def fit(self, task: FitTask) -> Fitted:
        """Return the fit of `task`. Raises `FitRefused` and `FitDiverged`."""
        ...

    def held_out(self, fitted: Fitted, train: Ratings, test: Ratings) -> dict[str, float]:
        """Return how good `fitted`, which learned `train`, is on `test`.

        The figures of `compared`, where the baseline needs no factors; further figures are for people to
        read.
        """
        ...


def compared(own: Float64s, baseline: Float64s, *, root: bool) -> dict[str, float]:
    """Return `loss` and `baseline_loss`, the means (`root`: their square roots) of the losses (n,) of each
    test rating, and `loss_ratio_error`, the standard error of the logarithm of their ratio (delta method).
    """
    if len(own) == 0:
        return {"loss": math.nan, "baseline_loss": math.nan}
    means = float(own.mean()), float(baseline.mean())
    # Both are losses of the same ratings: what makes a rating hard for both cancels out.
    parts = own / (means[0] or 1.0) - baseline / (means[1] or 1.0)
    error = float(parts.std()) / math.sqrt(len(own))
    if not root:
        return {"loss": means[0], "baseline_loss": means[1], "loss_ratio_error": error}
    loss, baseline_loss = map(math.sqrt, means)
    # The logarithm of a root is half the logarithm.
    return {"loss": loss, "baseline_loss": baseline_loss, "loss_ratio_error": 0.5 * error}
