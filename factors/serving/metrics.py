"""How good a fit is on ratings that it has not learned. Invariant: it asks the scorer that answers users."""

import math

import numpy as np

from factors.model.scale import scale_levels
from factors.model.std_calibration import NINETY
from factors.model.types import Float64s, Ratings
from factors.posterior.fitted import Fitted
from factors.serving.scoring import Scorer

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# Ratings that are scored at once: each has a row of probabilities, long on a scale with many steps.
_AT_ONCE = 65_536


def held_out_metrics(fitted: Fitted, ratings: Ratings) -> dict[str, float]:
    """Return `rmse`, `mae`, `log_likelihood` (nats a rating), `coverage` and `count`; NaN without a rating.

    On a scale with steps the log-likelihood is that of the step; otherwise the density's. `coverage`: the
    share of ratings within 1.6449 standard deviations of the prediction, which should be 90 %.
    """
    keep = ~np.isnan(ratings.value)
    value, time = ratings.value[keep], ratings.time[keep]
    user, item = ratings.user_row[keep], ratings.item_row[keep]
    if len(value) == 0:
        return {"rmse": np.nan, "mae": np.nan, "log_likelihood": np.nan, "coverage": np.nan, "count": 0.0}
    scorer, scale = Scorer(fitted.posterior, fitted.items), fitted.model.scale
    levels = scale_levels(scale)
    rating, std, chance = np.empty(len(value)), np.empty(len(value)), np.empty(len(value))
    for start in range(0, len(value), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        pairs = (fitted.users, user[part], item[part], time[part])
        scores = scorer.score(*pairs)
        rating[part], std[part] = scores.rating, scores.std
        if levels > 1:
            step = (scale.high - scale.low) / (levels - 1)
            level = np.clip(np.rint((value[part] - scale.low) / step), 0, levels - 1).astype(np.int64)
            chance[part] = scorer.distribution(*pairs)[np.arange(len(level)), level]
    error = value - rating
    if levels > 1:
        # A step that is all but ruled out still costs a finite number of nats.
        likelihood: Float64s = np.log(np.maximum(chance, 1e-12))
    else:
        likelihood = np.asarray(-0.5 * (error / std) ** 2 - np.log(std) - _LOG_ROOT_TWO_PI)
    return {
        "rmse": float(np.sqrt(np.mean(error * error))),
        "mae": float(np.mean(np.abs(error))),
        "log_likelihood": float(np.mean(likelihood)),
        "coverage": float(np.mean(np.abs(error) <= NINETY * std)),
        "count": float(len(value)),
    }
