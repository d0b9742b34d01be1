"""Priors: where a fit starts, what it learns from the posteriors (empirical Bayes), and the fit to no
ratings.

Invariant: a covariance is always positive definite, however few rows there are to learn it from.
"""

import math
from dataclasses import replace

import numpy as np

from factors.model.layout import COUNT, Layout, unpack
from factors.model.parameters import Parameters, Side, to_model
from factors.model.scale import scale_range
from factors.model.types import Float64s, Model, Scale
from factors.posterior.fitted import Fitted, posterior_of
from factors.training.settings import FitSettings

# A model of no data has no use for latent dimensions, but its rows need a layout.
_RANK_WITHOUT_DATA = 1


def uniform_variance(scale: Scale) -> float:
    """Return the variance of a uniform rating: as broad as ratings on this scale can be without being two
    camps."""
    return (scale.high - scale.low) ** 2 / 12.0


def start_variance(scale: Scale, value: Float64s) -> float:
    """Return the variance of these ratings (n,), n > 0, and two pseudo-ratings: a few that agree prove
    little."""
    return float((len(value) * value.var() + 2.0 * uniform_variance(scale)) / (len(value) + 2.0))


def start_parameters(scale: Scale, rank: int, mean: float, variance: float) -> Parameters:
    """Return Gaussian priors for ratings of this `mean` and `variance`: a half of it noise, a quarter biases,
    a quarter latent.
    """
    # Ratings that all agree still leave a prior to learn from.
    variance = max(variance, (1e-3 * scale_range(scale)) ** 2)
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
    rank = _RANK_WITHOUT_DATA if settings.rank == "auto" else settings.rank
    return to_model(start_parameters(scale, rank, 0.5 * (scale.low + scale.high), uniform_variance(scale)))


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
    scatter = (
        deviation.T @ deviation + unpack(rows[rated][:, layout.covariance].sum(axis=0)[None], layout.dim)[0]
    )
    covariance = shrunk_covariance(scatter, n, side.covariance)
    return replace(side, mean=mean, covariance=covariance, precision=np.asarray(np.linalg.inv(covariance)))


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
