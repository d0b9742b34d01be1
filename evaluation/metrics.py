"""Figures of predictions against held-out ratings.

Invariant: one rule each. A 90 % interval holds a rating if and only if |rating - prediction| <= 1.6449 std;
there is no allowance for the steps of a scale.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from evaluation.question import Array, Predicted
from factors import Scale, log_density, scale_levels, step_log_likelihood

INTERVAL = 1.6449  # standard deviations on each side of a central 90 % interval of a normal
# Central intervals of the curve of reliability: every tenth, and the wide ones that people use.
NOMINAL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# A point of the curve of the error begins at each of these numbers of ratings that a user had given before.
COUNT_EDGES = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
CURVE_POINTS = 20  # of the curve along time
LEAST_OF_A_POINT = 20  # ratings; the RMSE of fewer is noise
LEAST_PROBABILITY = 1e-12  # keeps one impossible rating from making the mean infinite
LEAST_STD = 1e-12  # a std of 0 would divide by 0
Deciles = tuple[tuple[float, ...], tuple[float, ...]]
NO_DECILES: Deciles = ((), ())


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one answer, under the names that a `Line` has; NaN where the engine lacks what is needed.

    `deciles`: of the user's count, `std_deciles`: of the predicted deviation; `curve`: (ratings known, RMSE)
    points; `reliability`: share inside the central interval of each of
    `NOMINAL`.
    """

    rmse: float
    mae: float
    log_likelihood: float
    coverage: float
    deciles: tuple[float, ...]
    decile_known: tuple[float, ...]
    reliability: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    std_deciles: tuple[float, ...]
    decile_std: tuple[float, ...]


def inside(error: Array, std: Array) -> npt.NDArray[np.bool_]:
    """Return which predictions have the true rating in their 90 % interval, (m,)."""
    return np.asarray(np.abs(error) <= INTERVAL * std)


def figures(
    predicted: Predicted, truth: Array, known: npt.NDArray[np.int64], scale: Scale, *, sequential: bool
) -> Figures:
    """Return the figures of predictions (m,) of `truth` (m,), whose users had `known` (m,) ratings before.

    `sequential`: the predictions were made in this order, so the curve goes along them instead of `known`.
    """
    error = truth - predicted.rating
    deciles = by_std = NO_DECILES
    coverage = float("nan")
    reliability: tuple[float, ...] = ()
    if len(predicted.std):
        held = inside(error, predicted.std)
        coverage, deciles = float(held.mean()), coverage_by(known, held)
        by_std = coverage_by(predicted.std, held)
        distance = np.abs(error) / np.maximum(predicted.std, LEAST_STD)
        widths = ndtri(0.5 + 0.5 * np.array(NOMINAL))
        reliability = tuple(float((distance <= width).mean()) for width in widths.tolist())
    curve = _curve_along(error) if sequential else _curve_by_count(error, known)
    return Figures(
        rmse=float(np.sqrt(np.mean(error**2))),
        mae=float(np.mean(np.abs(error))),
        log_likelihood=log_likelihood(predicted, truth, scale),
        coverage=coverage,
        deciles=deciles[0],
        decile_known=deciles[1],
        reliability=reliability,
        curve=curve,
        std_deciles=by_std[0],
        decile_std=by_std[1],
    )


def coverage_by(number: Array | npt.NDArray[np.int64], held: npt.NDArray[np.bool_]) -> Deciles:
    """Return the share of `held` (m,) in each tenth by `number` (m,), lowest first, and the mean of that."""
    order = np.argsort(number, kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    held_there, means = ([float(of[part].mean()) for part in parts] for of in (held, number))
    return tuple(held_there), tuple(means)


def log_likelihood(predicted: Predicted, truth: Array, scale: Scale) -> float:
    """Return the mean log-likelihood of a rating, in nats: of its step where the scale has steps, of the
    density otherwise; NaN without a std.
    """
    levels = scale_levels(scale)
    if levels > 1 and predicted.probabilities.size:
        return float(step_log_likelihood(truth, predicted.probabilities, scale).mean())
    if not len(predicted.std):
        return float("nan")
    std = np.maximum(predicted.std, LEAST_STD)
    if levels < 2:
        return float(log_density(truth - predicted.rating, std).mean())
    # Rating and std alone stand for a normal: its mass around the step counts, at the ends all beyond it.
    half = 0.5 * (scale.high - scale.low) / (levels - 1)
    upper = np.where(truth >= scale.high - half, np.inf, truth + half)
    lower = np.where(truth <= scale.low + half, -np.inf, truth - half)
    probability = ndtr((upper - predicted.rating) / std) - ndtr((lower - predicted.rating) / std)
    return float(np.log(np.maximum(probability, LEAST_PROBABILITY)).mean())


def _curve_by_count(error: Array, known: npt.NDArray[np.int64]) -> tuple[tuple[float, float], ...]:
    edge = np.searchsorted(COUNT_EDGES, known, side="right") - 1
    points = []
    for j in range(len(COUNT_EDGES)):
        part = error[edge == j]
        if len(part) >= LEAST_OF_A_POINT:
            points.append((float(known[edge == j].mean()), float(np.sqrt(np.mean(part**2)))))
    return tuple(points)


def _curve_along(error: Array) -> tuple[tuple[float, float], ...]:
    parts = [part for part in np.array_split(np.arange(len(error)), CURVE_POINTS) if len(part)]
    return tuple((float(part[-1] + 1), float(np.sqrt(np.mean(error[part] ** 2)))) for part in parts)
