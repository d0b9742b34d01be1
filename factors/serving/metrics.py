"""How good a fit is on ratings that it has not seen. Invariant: asks the same scorer that answers users."""

import math

import numpy as np
from scipy.special import ndtri

from factors.inference.fold_in import Fitted
from factors.model.scale import scale_levels
from factors.model.types import Float64s, Ratings
from factors.serving.scoring import Scorer

_NINETY = float(ndtri(0.95))
_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def held_out_metrics(fitted: Fitted, ratings: Ratings) -> dict[str, float]:
    """`rmse`, `mae`, `log_likelihood` (nats a rating), `coverage` and `count`; NaN if there is no rating.

    On a scale with steps the log-likelihood is that of the step; otherwise the density's. `coverage`: the
    share of ratings within 1.6449 standard deviations of what was predicted, which should be 90 %.
    """
    keep = ~np.isnan(ratings.value)
    value, time = ratings.value[keep], ratings.time[keep]
    user, item = ratings.user_row[keep], ratings.item_row[keep]
    if len(value) == 0:
        return {"rmse": np.nan, "mae": np.nan, "log_likelihood": np.nan, "coverage": np.nan, "count": 0.0}
    scorer = Scorer(fitted.posterior, fitted.items)
    parts = [slice(start, start + 65536) for start in range(0, len(value), 65536)]
    scores = [scorer.score(fitted.users, user[part], item[part], time[part]) for part in parts]
    rating = np.concatenate([part.rating for part in scores])
    std = np.concatenate([part.std for part in scores])
    error = value - rating
    levels = scale_levels(fitted.model.scale)
    if levels > 1:
        scale = fitted.model.scale
        step = (scale.high - scale.low) / (levels - 1)
        level = np.clip(np.rint((value - scale.low) / step), 0, levels - 1).astype(np.int64)
        chance = np.concatenate(
            [
                np.take_along_axis(
                    scorer.distribution(fitted.users, user[part], item[part], time[part]),
                    level[part, None],
                    axis=1,
                )[:, 0]
                for part in parts
            ]
        )
        likelihood: Float64s = np.log(np.maximum(chance, 1e-12))
    else:
        likelihood = np.asarray(-0.5 * (error / std) ** 2 - np.log(std) - _LOG_ROOT_TWO_PI)
    return {
        "rmse": float(np.sqrt(np.mean(error * error))),
        "mae": float(np.mean(np.abs(error))),
        "log_likelihood": float(np.mean(likelihood)),
        "coverage": float(np.mean(np.abs(error) <= _NINETY * std)),
        "count": float(len(value)),
    }
