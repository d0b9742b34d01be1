"""For authors of fitting engines: ratings made ready, and an engine's items made a fit that can be served.

Invariant: the users of a fit that is made here are folded in with exactly its items, so a user's row is the
same whether the fit, the service or a rebuild computes it.

An engine learns its items in its own way. `explicit_fit` takes them as points, with the prior of the users
that they were learned with; `implicit_fit` takes them as factors of implicit feedback. Both find covariances,
priors and noise with the half-steps of this package.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.errors import FitDiverged
from factors.inference.backend import set_matrix
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import entry_errors, half_step
from factors.inference.histories import Compressed, compress_pairs
from factors.inference.side_moments import prior_rows
from factors.model.layout import COUNT, Layout, item_layout, stored_width, user_layout
from factors.model.parameters import Parameters, from_model, to_model
from factors.model.quantized_rows import QuantizedTable
from factors.model.scale import scale_range
from factors.model.types import Float32s, Float64s, Ratings, Scale
from factors.posterior.fitted import Fitted, posterior_of
from factors.posterior.implicit_feedback import Weighting, confidence_of, implicit_model, weighting_of
from factors.training.fit import prepare
from factors.training.priors import learn_side, prior_fit, start_parameters

__all__ = [
    "Compressed",
    "ItemPoints",
    "Weighting",
    "confidence_of",
    "explicit_fit",
    "implicit_factors",
    "implicit_fit",
    "initial_points",
    "initial_std",
    "item_width",
    "points_of",
    "prepare",
    "prior_fit",
    "scale_range",
    "thinned",
    "user_rows",
    "vector_columns",
    "weighting_of",
]


def vector_columns(rank: int) -> slice:
    """Return the columns of `[latent, bias]` in a user row and in a stored item row."""
    return Layout(rank, 0).mean


def item_width(rank: int) -> int:
    """Return the width of a stored item row without session effects, in words of 32 bits."""
    return stored_width(Layout(rank, 0))


@dataclass(frozen=True, slots=True)
class ItemPoints:
    """Items without uncertainty and the prior of the users that goes with them, for `(rating - mean) / unit`.

    `vectors` (n_items, d): `[latent, bias]` of each item; `implicit_effects` (n_items, d): what having rated
    it adds to a user's prior mean; `user_mean` (d,) and `user_covariance` (d, d): that prior; `noise`:
    variance of a rating round its score.
    """

    mean: float
    unit: float
    vectors: Float64s
    implicit_effects: Float64s
    user_mean: Float64s
    user_covariance: Float64s
    noise: float


def initial_points(rank: int, n_items: int, mean: float, unit: float, rng: np.random.Generator) -> ItemPoints:
    """Return items in random directions with bias 0, and a broad prior."""
    broad = _broad(rank)
    # The dimensions start alike, and only random directions tell them apart; the bias is one of a kind.
    vectors = rng.standard_normal((n_items, rank + 1)) * initial_std(rank)
    vectors[:, -1] = 0.0
    return ItemPoints(
        mean, unit, vectors, np.zeros_like(vectors), broad.users.mean, broad.users.covariance, broad.noise
    )


def thinned(ratings: Ratings, n_users: int, most: int) -> Ratings:
    """Return the ratings, of a user with more than `most` a sample of so many, each pair once."""
    columns = (ratings.user_row, ratings.item_row, ratings.value, ratings.time)
    return ratings.take(compress_pairs(*columns, n_users).thinned(0, most).source)


def initial_std(rank: int) -> Float64s:
    """Return the standard deviations (d,) of `initial_points`, and of users and items by their prior."""
    return np.sqrt(np.diag(_broad(rank).users.covariance))


def points_of(fitted: Fitted, unit: float, begin: ItemPoints) -> ItemPoints:
    """Return the rated items and the priors of an earlier fit to ratings, in units of `unit`; items that it
    does not know are those of `begin`.
    """
    parameters, layout = from_model(fitted.model), item_layout(fitted.model)
    rows = fitted.posterior.item_codec.decode(fitted.items[: len(begin.vectors)]).astype(np.float64)
    # Items without ratings are the prior there, all alike: no directions to go on from.
    rated = np.flatnonzero(rows[:, COUNT] > 0)
    vectors, effects = begin.vectors.copy(), begin.implicit_effects.copy()
    vectors[rated] = rows[rated, layout.mean] / _bias_unit(layout.rank, unit)
    effects[rated] = rows[rated, layout.implicit_effect] / unit
    users = parameters.users
    return ItemPoints(
        *(parameters.mean, unit, vectors, effects),
        *(users.mean / unit, users.covariance / unit**2, parameters.noise / unit**2),
    )


def explicit_fit(points: ItemPoints, by_user: Compressed, by_item: Compressed, scale: Scale) -> Fitted:
    """Return the fit of the same ratings by user and by item, with the rated items at `points`.

    Covariances of items, priors and noise are learned by half-steps between which the items return to their
    points. `metrics` has the noise. Raises `FitDiverged` where a row is not finite.
    """
    parameters = _in_rating_units(points, scale)
    layout = parameters.items.layout
    rated = by_item.counts > 0
    means = points.vectors[rated] * _bias_unit(layout.rank, points.unit)
    # An item without ratings is the prior: the engine has nothing to say of it.
    effects = np.where(rated[:, None], points.implicit_effects * points.unit, 0.0)
    item_rows = prior_rows(parameters.items, by_item.rows)
    item_rows[:, COUNT] = by_item.counts
    item_rows[rated, layout.mean] = means
    item_rows[:, layout.implicit_effect] = effects
    parameters = replace(parameters, items=learn_side(parameters.items, item_rows))
    # The effects stay as the engine has them, and so does what they add to each user's prior mean.
    shifts = np.asarray(set_matrix(by_user, len(effects)) @ effects)
    # Ratings that are all equal leave no error, and a noise of 0 has no inverse.
    noise_floor = (1e-3 * scale_range(scale)) ** 2
    # The users' covariances depend on those of the items, these on the users', and the priors on both: after
    # four rounds they have settled.
    for _ in range(4):
        step = half_step(HalfStepInput.of(parameters, "user", item_rows, by_user))
        item_rows = half_step(HalfStepInput.of(parameters, "item", step.rows, by_item)).rows
        item_rows[rated, layout.mean] = means
        # A half-step leaves the effects of its own rows 0.
        item_rows[:, layout.implicit_effect] = effects
        square, _ = entry_errors(HalfStepInput.of(parameters, "user", item_rows, by_user), step)
        parameters = replace(
            parameters,
            noise=max(float(square.mean()), noise_floor),
            users=learn_side(parameters.users, step.rows, shifts),
            items=learn_side(parameters.items, item_rows),
        )
    posterior = posterior_of(to_model(parameters))
    # With the items as they are stored, which is what every later fold-in has of them.
    table = posterior.item_codec.encode(item_rows)
    rows = posterior.fold_in_users(table, by_user.thinned().histories())
    if not (posterior.item_codec.all_finite(table) and np.isfinite(rows).all()):
        raise FitDiverged("the engine gave items whose rows are not finite")
    return Fitted(posterior.model, rows, table, {"noise": parameters.noise})


def implicit_fit(
    ratings: Ratings,
    n_users: int,
    scale: Scale,
    weighting: Weighting,
    items: Float32s,
    *,
    sweeps: int,
) -> Fitted:
    """Return the fit of implicit feedback after `sweeps` exact half-steps of either side, from the factors
    `items` (n_items, k).

    The typical counts of `weighting` become those of `ratings`. `metrics` has the noise.
    """
    by_user = compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, n_users)
    by_item = by_user.by_other(len(items))
    weighting = replace(weighting, user_count=_typical(by_user), item_count=_typical(by_item))
    of_users, of_items = by_user.thinned().histories(), by_item.histories()
    rank = items.shape[1]
    users: Float32s = np.zeros((n_users, rank), np.float32)
    # A fold-in of implicit feedback reads the factors of the other side alone: the rest may be 0 at first.
    item_rows: Float32s = np.zeros((len(items), item_width(rank)), np.float32)
    item_rows[:, Layout(rank, 0).latent] = items
    noise = 1.0
    for _ in range(sweeps):
        model = implicit_model(scale, weighting, noise=noise, users=users, items=items)
        fitted = Fitted(model, posterior_of(model).fold_in_users(item_rows, of_users), item_rows)
        users, _ = implicit_factors(fitted)
        noise = _preference_noise(ratings, users, items)
        model = implicit_model(scale, weighting, noise=noise, users=users, items=items)
        item_rows = posterior_of(model).fold_in_items(fitted.users, of_items)
        _, items = implicit_factors(replace(fitted, items=item_rows))
    # The Gram matrix of a model is that of its items: users are folded in once more, with the last ones.
    model = implicit_model(scale, weighting, noise=noise, users=users, items=items)
    return Fitted(model, posterior_of(model).fold_in_users(item_rows, of_users), item_rows, {"noise": noise})


def implicit_factors(fitted: Fitted) -> tuple[Float32s, Float32s]:
    """Return the factors of users (n_users, k) and items (n_items, k) of a fit of implicit feedback, whose
    products are preferences.
    """
    users = fitted.users[:, user_layout(fitted.model).latent] / np.float32(scale_range(fitted.model.scale))
    return users, np.ascontiguousarray(fitted.items[:, item_layout(fitted.model).latent])


def user_rows(fitted: Fitted, by_user: Compressed) -> Float32s:
    """Return the rows of users from all of `by_user`, however long, to measure by what a part costs."""
    parameters, codec = fitted.posterior.parameters, fitted.posterior.item_codec
    table = QuantizedTable(fitted.items, codec)
    rows = half_step(HalfStepInput.of(parameters, "user", table, by_user)).rows
    effect = parameters.users.layout.implicit_effect
    rows[:, effect] = fitted.users[:, effect]
    return rows.astype(np.float32)


def _broad(rank: int) -> Parameters:
    """Return priors for ratings with mean 0 and variance 1."""
    return start_parameters(Scale(-1.0, 1.0), rank, 0.0, 1.0)


def _bias_unit(rank: int, unit: float) -> Float64s:
    """Return the units (d,) of an item's `[latent, bias]`: users carry the unit of the ratings, so that of an
    item only the bias has one.
    """
    return np.append(np.ones(rank), unit)


def _in_rating_units(points: ItemPoints, scale: Scale) -> Parameters:
    rank, unit = points.vectors.shape[1] - 1, points.unit
    broad, bias_unit = _broad(rank), _bias_unit(rank, unit)
    user_covariance = points.user_covariance * unit**2
    item_covariance = broad.items.covariance * np.outer(bias_unit, bias_unit)
    return replace(
        broad,
        scale=scale,
        mean=points.mean,
        noise=points.noise * unit**2,
        users=broad.users.with_prior(points.user_mean * unit, user_covariance),
        items=broad.items.with_prior(broad.items.mean, item_covariance),
    )


def _typical(choices: Compressed) -> float:
    """Return the mean count of the rows that have a choice."""
    return float(choices.counts.sum() / max((choices.counts > 0).sum(), 1))


def _preference_noise(ratings: Ratings, users: Float32s, items: Float32s) -> float:
    """Return the mean squared error of the preference 1 of what was chosen."""
    error = 1.0 - np.einsum("ij,ij->i", users[ratings.user_row], items[ratings.item_row])
    # A fit of few choices can meet all of them exactly, and a noise of 0 has no inverse.
    return max(float(np.mean(error * error)) if len(error) else 1.0, 1e-4)
