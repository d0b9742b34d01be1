"""Expected ratings, to choose how much they count in a list. Invariant: ratings held out are not learned."""

import numpy as np

from factors.errors import FactorsError
from factors.inference.histories import Compressed
from factors.model.layout import item_layout, user_layout
from factors.model.types import Float32s, Int64s, Ratings, Scale
from factors.training.fit import fit
from factors.training.settings import FitSettings

# A short fit without choices: its lists tell the power of the rating as well as the whole fit's do.
_RANK, _SWEEPS = 8, 8


def expected_ratings(
    known: Compressed, n_items: int, users: Int64s, scale: Scale, rng: np.random.Generator
) -> Float32s | None:
    """Return the ratings of all items by `users` (u,), expected from the ratings `known`: (u, n_items), None
    where they cannot be fitted.
    """
    ratings = Ratings(known.row.astype(np.int32), known.other.astype(np.int32), known.value, known.time)
    plain = FitSettings(
        scale, rank=_RANK, link="gaussian", implicit_effects=False, session_effects=False, sweeps=_SWEEPS
    )
    try:
        fitted = fit(ratings, known.rows, n_items, settings=plain, rng=rng)
    except FactorsError:
        return None
    own = fitted.users[users][:, user_layout(fitted.model).mean].astype(np.float32)
    items = fitted.items[:, item_layout(fitted.model).mean].astype(np.float32)
    score = own[:, :-1] @ items[:, :-1].T + own[:, -1:] + items[:, -1]
    score += np.float32(fitted.posterior.parameters.mean)
    return np.asarray(np.clip(score, scale.low, scale.high), np.float32)
