"""How good a fit is on ratings that it has not learned. Invariant: it asks the scorer that answers users."""

import math

import numpy as np
import numpy.typing as npt

from factors.model.links import NINETY
from factors.model.scale import HALF, scale_levels
from factors.model.types import Float64s, Ratings, Scale
from factors.posterior.fitted import Fitted
from factors.serving.scoring import Scorer

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# Ratings that are scored at once: each has a row of probabilities, long on a scale with many steps.
_AT_ONCE = 65_536
# Tenths of fewer ratings would be of under twenty, which say nothing of a share.
_TENTHS, _LEAST_FOR_TENTHS = 10, 200


def held_out_metrics(fitted: Fitted, ratings: Ratings) -> dict[str, float]:
    """Return `rmse`, `mae`, `log_likelihood` (nats a rating), `coverage` and `count`; NaN without a rating.

    On a scale with steps the log-likelihood is that of the step; otherwise the density's. `coverage`: the
    share of ratings within 1.6449 standard deviations of the prediction, which should be 90 %; from 200
    ratings on also that of each tenth, `coverage_tenth_1` (the smallest deviations) to `coverage_tenth_10`.
    """
    ratings = ratings.take(~np.isnan(ratings.value))
    value = ratings.value
    if len(value) == 0:
        return {"rmse": np.nan, "mae": np.nan, "log_likelihood": np.nan, "coverage": np.nan, "count": 0.0}
    scorer, scale = Scorer(fitted.posterior, fitted.items), fitted.model.scale
    levels = scale_levels(scale)
    rating, std, likelihood = np.empty(len(value)), np.empty(len(value)), np.empty(len(value))
    for start in range(0, len(value), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        some = ratings.take(part)
        pairs = (fitted.users, some.user_row, some.item_row, some.time, some.context)
        scores = scorer.score(*pairs)
        rating[part], std[part] = scores.rating, scores.std
        if levels > 1:
            likelihood[part] = step_log_likelihood(value[part], scorer.distribution(*pairs), scale)
        else:
            likelihood[part] = log_density(value[part] - scores.rating, scores.std)
    error = value - rating
    inside = np.abs(error) <= NINETY * std
    metrics = {
        "rmse": float(np.sqrt(np.mean(error * error))),
        "mae": float(np.mean(np.abs(error))),
        "log_likelihood": float(np.mean(likelihood)),
        "coverage": float(np.mean(inside)),
        "count": float(len(value)),
    }
    if len(value) >= _LEAST_FOR_TENTHS:
        tenths = np.array_split(inside[np.argsort(std, kind="stable")], _TENTHS)
        metrics |= {f"coverage_tenth_{n}": float(each.mean()) for n, each in enumerate(tenths, start=1)}
    return metrics


def step_log_likelihood(value: Float64s, probabilities: npt.NDArray[np.floating], scale: Scale) -> Float64s:
    """Return the log-likelihood of the step of each of `value` (m,), given those of all steps (m, levels)."""
    last = probabilities.shape[1] - 1
    level = np.clip(np.floor((value - scale.low) / ((scale.high - scale.low) / last) + HALF), 0, last)
    chance = np.take_along_axis(probabilities, level.astype(np.int64)[:, None], axis=1)[:, 0]
    # A step that is all but ruled out still costs a finite number of nats.
    return np.asarray(np.log(np.maximum(chance.astype(np.float64), 1e-12)))


def log_density(error: Float64s, std: Float64s) -> Float64s:
    """Return the log-density of each error (m,) of a normal with that standard deviation."""
    return np.asarray(-0.5 * (error / std) ** 2 - np.log(std) - _LOG_ROOT_TWO_PI)
