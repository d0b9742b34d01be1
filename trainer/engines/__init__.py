"""Engines: ways to fit.

Invariant: all give the same kind of `Fitted`, so no other module knows which engine it was.

An engine runs in the process of a fit only, so that what it imports stays out of the trainer's memory.
"""

from typing import Literal

import numpy as np

from factors import Factorize, FitSettings
from trainer.engines.base import Engine

EngineName = Literal["variational", "implicit", "neural"]
ENGINES: tuple[EngineName, ...] = ("variational", "implicit", "neural")


def make_engine(name: EngineName, settings: FitSettings) -> Engine:
    """Return the engine of this name. Raises `FitRefused` where it needs a library that is not installed."""
    # Each is imported where it is chosen: torch alone takes seconds and hundreds of megabytes.
    if name == "implicit":
        from trainer.engines.implicit_als import ImplicitEngine

        return ImplicitEngine(settings)
    if name == "neural":
        from trainer.engines.neural import NeuralEngine

        return NeuralEngine(settings)
    from trainer.engines.variational import VariationalEngine

    return VariationalEngine(settings)


def head_sweeps(name: EngineName, threads: int, rng: np.random.Generator) -> Factorize | None:
    """Return the sweeps of this engine for a ranking head; None where it has none of its own."""
    if name != "implicit":
        return None
    from trainer.engines.implicit_als import item_factors

    return lambda confidences, rank, ridge: item_factors(confidences, rank, ridge, threads=threads, rng=rng)
