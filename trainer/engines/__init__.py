"""Engines: ways to fit, all of which give the same kind of `Fitted`. Invariant.

Nothing outside knows which one it was. An engine runs in the process of a fit only, so that what it needs to
import stays out of the trainer's memory.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from factors import FitSettings, Fitted, Ratings

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

        `loss` and `baseline_loss` (of what needs no factors) are better the lower; others are for people to
        read.
        """
        ...


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
