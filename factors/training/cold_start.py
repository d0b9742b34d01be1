"""The priors of rows that come after a fit (`factors.inference.cold_start`), learned when it ends.

Invariant: they are learned from the rows and ratings of the fit alone.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.inference.histories import Compressed
from factors.model.layout import COUNT, unpack
from factors.model.parameters import ColdStart, Parameters, Side
from factors.model.types import Float64s, Int64s
from factors.training.priors import shrunk_covariance

# Ratings from which `M` is learned: it has a number for each dimension.
_RATINGS = 200_000


def learn_cold_start(
    parameters: Parameters, user_rows: Float64s, item_rows: Float64s, ratings: Compressed
) -> Parameters:
    """Return `parameters` with the priors of new rows, from the rows of a fit (both float64) and its
    `ratings`, by user.
    """
    users, items = parameters.users, parameters.items
    entries = np.arange(0, len(ratings.value), max(1, len(ratings.value) // _RATINGS))
    user = np.searchsorted(ratings.indptr, entries, side="right") - 1
    item = ratings.other[entries]
    noise = parameters.noise
    # Without implicit effects nothing in a user's row tells whether it is new: then all count as known.
    of_users = None
    if items.implicit_ridge > 0:
        once = (user_rows[:, COUNT] > 0).astype(np.float64)
        of_users = _cold_start(_Fitted(users, user_rows, user), _Fitted(items, item_rows, item), once, noise)
    # Each item counts as often as it was rated, for so often it will be asked for.
    each = item_rows[:, COUNT]
    of_items = _cold_start(_Fitted(items, item_rows, item), _Fitted(users, user_rows, user), each, noise)
    return replace(
        parameters, users=replace(users, cold_start=of_users), items=replace(items, cold_start=of_items)
    )


def without_cold_start(parameters: Parameters) -> Parameters:
    """Return `parameters` for a fit, in which every row is seen."""
    users, items = replace(parameters.users, cold_start=None), replace(parameters.items, cold_start=None)
    return replace(parameters, users=users, items=items)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A `side` of a fit, its `rows`, and the row of each rating that is looked at, `index` (m,)."""

    side: Side
    rows: Float64s
    index: Int64s


def _cold_start(own: _Fitted, other: _Fitted, weight: Float64s, noise: float) -> ColdStart | None:
    """Return the prior of new rows of `own`, whose rows count with `weight` (n,); None without ratings."""
    side, count, other_count = own.side, own.rows[:, COUNT], other.rows[:, COUNT]
    total = count.sum()
    if total <= 0:
        return None
    mean = weight @ own.rows[:, side.layout.mean] / weight.sum()
    features = other.rows[:, other.side.layout.mean][other.index]
    features[:, -1] = 1.0
    apart = np.einsum("nd,nd->n", features, own.rows[:, side.layout.mean][own.index] - mean)
    # Of a sample of the ratings each stands for several.
    unit = noise * len(apart) / total
    mean = mean + np.linalg.solve(features.T @ features + unit * side.precision, features.T @ apart)
    covariance = _scatter(side, own.rows, mean, weight)
    effect = other_count @ other.rows[:, other.side.layout.implicit_effect] / max(other_count.sum(), 1.0)
    # The count behind an average rating, by its square root, which implicit effects are divided by.
    typical = float((count @ np.sqrt(count)) / total) ** 2
    precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return ColdStart(mean, effect, typical, covariance, precision)


def _scatter(side: Side, rows: Float64s, mean: Float64s, weight: Float64s) -> Float64s:
    """Return the covariance (d, d) of the posteriors in `rows` (n, width) round `mean` (d,)."""
    layout = side.layout
    total = float(weight.sum())
    deviation = rows[:, layout.mean] - mean
    scatter = (weight[:, None] * deviation).T @ deviation
    scatter += unpack((weight @ rows[:, layout.covariance])[None], layout.dim)[0]
    # So many rows of equal weight say as much.
    n = total * total / float(weight @ weight)
    return shrunk_covariance(n * scatter / total, n, side.covariance)
