"""Priors: where a fit starts, what it learns from the posteriors (empirical Bayes), those of rows that come
after it, and the fit to no ratings.

Invariant: a covariance is always positive definite, however few rows there are to learn it from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from factors.inference.histories import Compressed
from factors.model.columns import Columns
from factors.model.layout import COUNT, FloatTable, Layout, unpack
from factors.model.parameters import ColdStart, Parameters, Side, SideName, to_model
from factors.model.scale import MOST_LEVELS, scale_levels, scale_range
from factors.model.types import Float64s, Int64s, Model, Scale
from factors.posterior.fitted import Fitted, posterior_of
from factors.training.effects.attribute_effects import AttributeEffects
from factors.training.settings import FitSettings
from factors.training.training_set import random_entries

# Ratings whose rows are looked at together: a table of their means is 8 MB at rank 64.
_AT_ONCE = 1 << 14


def uniform_variance(scale: Scale) -> float:
    """Return the variance of a uniform rating: as broad as ratings on this scale can be without being two
    camps."""
    return (scale.high - scale.low) ** 2 / 12.0


def least_variance(scale: Scale) -> float:
    """Return what ratings that all agree still leave, so that there is a prior to learn from."""
    return (1e-3 * scale_range(scale)) ** 2


def spanned(scale: Scale, value: FloatTable) -> Scale:
    """Return the part of a scale of many values or without steps that ratings speak of: what they span, and
    what so many uniform ones leave beyond them; of few values, all of it.
    """
    if len(value) == 0 or 0 < scale_levels(scale) <= MOST_LEVELS:
        return scale
    low, high = float(value.min()), float(value.max())
    beyond = 2.0 / (len(value) + 1.0)
    return replace(scale, low=low + beyond * (scale.low - low), high=high + beyond * (scale.high - high))


def start_parameters(scale: Scale, rank: int, mean: float, variance: float) -> Parameters:
    """Return Gaussian priors for ratings of this `mean` and `variance`: a half of it noise, a quarter biases,
    a quarter latent.
    """
    layout = Layout(rank, 0)
    # Both sides have it, and `rank` products of the two are summed.
    latent = math.sqrt(0.25 * variance / rank)
    covariance = np.diag(np.append(np.full(rank, latent), 0.125 * variance))
    side = Side(layout, np.zeros(rank + 1), covariance, np.linalg.inv(covariance))
    return Parameters("gaussian", scale, mean, 0.5 * variance, side, side)


def prior_model(settings: FitSettings) -> Model:
    """Return a model for no data: middle of the scale, broad priors, so that folding in learns biases from
    the first rating.
    """
    scale = settings.scale
    # Without data there is no use for latent dimensions, but rows need a layout.
    rank = 1 if settings.rank == "auto" else settings.rank
    variance = max(uniform_variance(scale), least_variance(scale))
    return to_model(start_parameters(scale, rank, 0.5 * (scale.low + scale.high), variance))


def prior_fit(settings: FitSettings, n_users: int, n_items: int) -> Fitted:
    """Return the fit to no ratings: every row is the prior."""
    posterior = posterior_of(prior_model(settings))
    users = np.repeat(posterior.prior_user[None], n_users, axis=0)
    return Fitted(posterior.model, users, np.repeat(posterior.prior_item[None], n_items, axis=0))


def learn_side(side: Side, rows: Float64s, offsets: Float64s | float = 0.0) -> Side:
    """Return `side` with the prior mean and covariance that its posterior `rows` (n, width) speak for.

    Rows without ratings say nothing. `offsets` (n, d): prior mean of each row beyond the side's mean.
    """
    layout = side.layout
    rated = rows[:, COUNT] > 0
    n = int(rated.sum())
    if n == 0:
        return side
    deviation = rows[:, layout.mean] - offsets
    # The old mean counts as one further row.
    mean = (deviation[rated].sum(axis=0) + side.mean) / (n + 1.0)
    deviation = deviation[rated] - mean
    # No copy of the rows, which are as much as the ratings.
    covariances = rated.astype(np.float64) @ rows[:, layout.covariance]
    scatter = deviation.T @ deviation + unpack(covariances[None], layout.dim)[0]
    return side.with_prior(mean, shrunk_covariance(scatter, n, side.covariance))


def shrunk_covariance(scatter: Float64s, n: float, before: Float64s) -> Float64s:
    """Return the covariance (d, d) that `n` rows with this `scatter` (d, d) speak for; the one `before`
    counts as a tenth of d + 1 further rows (an inverse Wishart prior), so that few rows move it little.
    """
    dim = len(before)
    strength = 0.1 * (dim + 1.0)
    covariance = (scatter + strength * before) / (n + strength)
    covariance = 0.5 * (covariance + covariance.T)
    # Rounding must not make it singular.
    covariance += 1e-9 * np.trace(covariance) / dim * np.eye(dim)
    return covariance


def learn_cold_start(
    parameters: Parameters,
    user_rows: Float64s,
    item_rows: Float64s,
    by_user: Compressed,
    attributes: Mapping[SideName, Columns],
) -> Parameters:
    """Return `parameters` with the priors of rows that come after a fit (`factors.inference.cold_start`),
    from the rows (both float64), their `attributes`, and the ratings of that fit alone.
    """
    users, items = parameters.users, parameters.items
    # `M` has a number for each dimension: so many ratings know it.
    entries = random_entries(len(by_user.value), 200_000)
    user = np.searchsorted(by_user.indptr, entries, side="right") - 1
    item = by_user.other[entries]
    of_user = _RatedSide(users, user_rows, user, attributes.get("user"))
    of_item = _RatedSide(items, item_rows, item, attributes.get("item"))
    new_users = None
    # Without implicit effects nothing in a user's row tells whether it is new: then all count as known.
    if items.implicit_ridge > 0:
        once = (user_rows[:, COUNT] > 0).astype(np.float64)
        new_users = _cold_start(of_user, of_item, once, parameters.noise)
    # Each item counts as often as it was rated, for so often it will be asked for.
    new_items = _cold_start(of_item, of_user, item_rows[:, COUNT], parameters.noise)
    return replace(
        parameters, users=replace(users, cold_start=new_users), items=replace(items, cold_start=new_items)
    )


@dataclass(frozen=True, slots=True)
class _RatedSide:
    """A `side` of a fit, its `rows`, and the row of each rating that is looked at, `index` (m,); and the
    `attributes` of the rows, None for none.
    """

    side: Side
    rows: Float64s
    index: Int64s
    attributes: Columns | None


def _cold_start(own: _RatedSide, other: _RatedSide, weight: Float64s, noise: float) -> ColdStart | None:
    """Return the prior of new rows of `own`, whose rows count with `weight` (n,); None without ratings."""
    side, count, other_count = own.side, own.rows[:, COUNT], other.rows[:, COUNT]
    total = count.sum()
    if total <= 0:
        return None
    mean = weight @ own.rows[:, side.layout.mean] / weight.sum()
    dim, m = side.layout.dim, len(own.index)
    gram, told = np.zeros((dim, dim)), np.zeros(dim)
    for start in range(0, m, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        features = other.rows[other.index[part], other.side.layout.mean]
        features[:, -1] = 1.0
        deviations = own.rows[own.index[part], side.layout.mean] - mean
        gram += features.T @ features
        told += features.T @ np.einsum("nd,nd->n", features, deviations)
    # Of a sample of the ratings each stands for several.
    mean = mean + np.linalg.solve(gram + noise * m / total * side.precision, told)
    covariance, described = _scatter(side, own.rows, mean, weight), None
    if own.attributes is not None and own.attributes.width:
        described = _described(own, own.attributes, mean, covariance)
    if own.attributes is not None and described is not None:
        covariance = _scatter(side, own.rows, mean + own.attributes.times(described), weight)
    effect = other_count @ other.rows[:, other.side.layout.implicit_effect] / max(other_count.sum(), 1.0)
    # The count behind an average rating, by its square root, which implicit effects are divided by.
    typical = float((count @ np.sqrt(count)) / total) ** 2
    precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return ColdStart(mean, effect, typical, covariance, precision, described)


def _described(own: _RatedSide, attributes: Columns, mean: Float64s, covariance: Float64s) -> Float64s | None:
    """Return effects (c, d) of the attributes of a row of which nothing else is known, None where rows that
    are left out say that they have none.
    """
    layout, count = own.side.layout, own.rows[:, COUNT]
    precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    regression, deviations = AttributeEffects(attributes, count > 0), own.rows[:, layout.mean] - mean
    if not regression.helps(deviations, precision):
        return None
    return regression.learn(deviations, precision)


def _scatter(side: Side, rows: Float64s, mean: Float64s, weight: Float64s) -> Float64s:
    """Return the covariance (d, d) of the posteriors in `rows` (n, width) round `mean` (d,) or (n, d)."""
    layout = side.layout
    total = float(weight.sum())
    deviation = rows[:, layout.mean] - mean
    scatter = (weight[:, None] * deviation).T @ deviation
    scatter += unpack((weight @ rows[:, layout.covariance])[None], layout.dim)[0]
    # So many rows of equal weight say as much.
    n = total * total / float(weight @ weight)
    return shrunk_covariance(n * scatter / total, n, side.covariance)
