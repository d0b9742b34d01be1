"""Expected ratings, to choose how much they count in a list. Invariant: ratings held out are not learned."""

from collections.abc import Callable

import numpy as np

from factors.errors import FactorsError
from factors.inference.backend import NumpyBackend
from factors.inference.compiled.backend import LoopBackend, load_loops
from factors.inference.histories import Compressed
from factors.model.layout import item_layout, user_layout
from factors.model.types import Float32s, Int64s, Scale
from factors.training.initialization import initial_state
from factors.training.settings import FitSettings
from factors.training.tables import finish
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet

# A short fit without choices: its lists tell the power of the rating as well as the whole fit's do, if it has
# implicit effects as that has: they say what is liked of what is rated.
_RANK, _RIDGE, _FIRST_SWEEPS, _SWEEPS = 8, 6.0, 6, 8


def expected_ratings(
    known: Compressed,
    n_items: int,
    users: Int64s,
    scale: Scale,
    rng: np.random.Generator,
    *,
    threads: int = 1,
    compiled: bool = False,
) -> Callable[[slice], Float32s] | None:
    """Return what gives the ratings of all items by a block of the `users` (u,), expected from the ratings
    `known`: (b, n_items). None where they cannot be fitted. `compiled`: by loops.
    """
    if len(known.value) == 0:
        return None
    settings = FitSettings(scale, rank=_RANK, threads=threads)
    backend = LoopBackend(load_loops(), threads) if compiled else NumpyBackend()
    try:
        state = initial_state(TrainingSet.of(known, n_items, backend), settings, rng).run(_FIRST_SWEEPS)
        fitted = finish(state.branch(Terms("gaussian", _RIDGE, _RIDGE)).run(_SWEEPS), {})
    except FactorsError:
        return None
    own = fitted.users[users][:, user_layout(fitted.model).mean].astype(np.float32)
    items = fitted.items[:, item_layout(fitted.model).mean].astype(np.float32)
    middle = np.float32(fitted.posterior.parameters.mean)

    def expected(rows: slice) -> Float32s:
        score = own[rows, :-1] @ items[:, :-1].T + own[rows, -1:] + items[:, -1] + middle
        return np.asarray(np.clip(score, scale.low, scale.high), np.float32)

    return expected
