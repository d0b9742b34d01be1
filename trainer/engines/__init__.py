"""Engines: ways to fit, all of which give the same kind of `Fitted`. Invariant.

Nothing outside knows which one it was. An engine runs in the process of a fit only, so that what it needs to
import stays out of the trainer's memory.
"""

import math
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from factors import FitSettings, Fitted, Float64s, Ratings

EngineName = Literal["variational", "implicit", "neural"]
ENGINES: tuple[EngineName, ...] = ("variational", "implicit", "neural")

Report = Callable[[dict[str, float]], None]


class Engine(Protocol):
    """One way to fit."""

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
        """Fit.

        `start` is an earlier fit with the same users first and perhaps fewer of them, and fewer items. Raises
        `FitRefused` and `FitDiverged`.
        """
        ...

    def held_out(self, fitted: Fitted, known: Ratings, unseen: Ratings) -> dict[str, float]:
        """How good `fitted`, which learned `known`, is on `unseen`.

        What `compared` gives, with the loss of what needs no factors as the baseline; others are for people
        to read.
        """
        ...


def compared(own: Float64s, baseline: Float64s, *, root: bool) -> dict[str, float]:
    """`loss` and `baseline_loss`, the means (`root`: their square roots) of the losses (n,) of each unseen
    rating, and `loss_ratio_error`, the standard error of the logarithm of their ratio (the delta method).
    """
    if len(own) == 0:
        return {"loss": math.nan, "baseline_loss": math.nan}
    means = float(own.mean()), float(baseline.mean())
    # Both are of the same ratings: what makes a rating hard for both cancels out.
    parts = own / (means[0] or 1.0) - baseline / (means[1] or 1.0)
    error = float(parts.std()) / math.sqrt(len(own))
    if not root:
        return {"loss": means[0], "baseline_loss": means[1], "loss_ratio_error": error}
    loss, baseline_loss = map(math.sqrt, means)
    return {"loss": loss, "baseline_loss": baseline_loss, "loss_ratio_error": 0.5 * error}


def make_engine(name: EngineName, settings: FitSettings) -> Engine:
    """The engine of this name. Raises `FitRefused` where it needs a library that is not installed."""
    if name == "implicit":
        from trainer.engines.implicit_als import ImplicitEngine

        return ImplicitEngine(settings)
    if name == "neural":
        from trainer.engines.neural import NeuralEngine

        return NeuralEngine(settings)
    from trainer.engines.variational import VariationalEngine

    return VariationalEngine(settings)
