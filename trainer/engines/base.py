"""What every engine has: the task that it is given, its methods, and how two fits are compared by them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from factors import Columns, ContextKind, Feedback, Fitted, Float64s, Int32s, Int64s, Ratings, SideName

Report = Callable[[dict[str, float]], None]


def _report_nothing(_metrics: dict[str, float]) -> None:
    """Let the figures of a sweep go."""


@dataclass(frozen=True, slots=True)
class FitTask:
    """What an engine fits: `ratings` of `n_users` x `n_items`; those whose value is NaN are left out.

    `start`: an earlier fit to go on from, in which users and items have the same rows but there may be fewer
    of them; `continuation`: in at most so many sweeps, None for until it has settled. `report` is called with
    the figures of each sweep. `attributes`: of the sides that have any. `context_kinds`: of the fields of the
    context of `ratings`, where they have any. `has_read` is called by an engine that reads its `ratings` once
    when it has.
    """

    ratings: Ratings
    n_users: int
    n_items: int
    rng: np.random.Generator
    start: Fitted | None = None
    report: Report = _report_nothing
    attributes: Mapping[SideName, Columns] = field(default_factory=dict)
    context_kinds: tuple[ContextKind, ...] = ()
    continuation: int | None = None
    has_read: Callable[[], None] | None = None

    @property
    def known(self) -> Ratings:
        """The ratings without those that are left out."""
        return self.ratings.take(~np.isnan(self.ratings.value))


class Trial(Protocol):
    """A fit that holds ratings out."""

    def fitted(self) -> Fitted:
        """Return the fit without them, in which the users that they are of are as they are served."""
        ...

    def complete(self) -> Fitted:
        """Return the fit of all ratings, which goes on from this one. Called once."""
        ...


class TwoFits:
    """A `Trial` as two fits, the second of which starts from the first."""

    def __init__(self, fit: Callable[[FitTask], Fitted], task: FitTask, held_out: Int64s) -> None:
        self._fit, self._task = fit, task
        value = task.ratings.value.copy()
        value[held_out] = np.nan
        self._first = fit(replace(task, ratings=replace(task.ratings, value=value)))

    def fitted(self) -> Fitted:
        """See `Trial`."""
        return self._first

    def complete(self) -> Fitted:
        """See `Trial`."""
        return self._fit(replace(self._task, start=self._first))


class Judge(Protocol):
    """Tells how good fits are on ratings that they have not learned. It keeps no others than it needs."""

    def metrics(self, fitted: Fitted) -> dict[str, float]:
        """Return how good `fitted` is: `loss`, `baseline_loss` (that of a baseline without factors), and
        further figures for people to read.
        """
        ...

    def losses(self, fitted: Fitted) -> Float64s:
        """Return the loss of each of the ratings, or of as many of the first as can be afforded."""
        ...


class Engine(Protocol):
    """One way to fit, from `feedback` of this kind."""

    feedback: Feedback

    def fit(self, task: FitTask) -> Fitted:
        """Return the fit of `task`. Raises `FitRefused` and `FitDiverged`."""
        ...

    def trial(self, task: FitTask, held_out: Int64s) -> Trial:
        """Return a fit of `task` that holds out the ratings at these positions. Raises as `fit` does."""
        ...

    def judge(self, train: Ratings, test: Ratings) -> Judge:
        """Return how fits that have learned `train` are judged by `test`."""
        ...


def compared(own: Float64s, other: Float64s, user_row: Int32s) -> dict[str, float]:
    """Return `live_ratio`, the mean of the losses `own` (n,) over that of `other` (n,), of the same ratings
    by the users `user_row` (n,), and `live_ratio_error`, the standard error of its logarithm (delta method).
    """
    # Of ratings that are all equal a fit may have no loss at all.
    means = max(float(own.mean()), 1e-12), max(float(other.mean()), 1e-12)
    # What makes a rating hard for both cancels out. Errors of one user are alike, so each user counts as one
    # draw: a single account with many ratings makes the ratio uncertain, not certain.
    parts = np.bincount(user_row, own / means[0] - other / means[1])
    error = math.sqrt(float(parts @ parts)) / len(own)
    return {"live_ratio": means[0] / means[1], "live_ratio_error": error}
