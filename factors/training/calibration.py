"""Standard deviations that hold what they promise, learned from ratings held out of the training set.

Invariant: of held-out ratings, about nine in ten lie within 1.6449 standard deviations of the prediction, of
users and items with few ratings as well as with many.

Two corrections. `variance_scale` multiplies the variance of the latent rating, noise included, so that the
held-out ratings are likeliest: it makes up for what the posteriors leave out. `std_calibration` is the `c` by
which the standard deviation of the rating is then multiplied with `exp(c . f)`, `f` being a smooth function
of the counts of both rows. `c` is the quantile regression (Koenker and Bassett, 1978) of `log(|error| /
(1.6449 std))` at 0.9, under a Gaussian prior (its loss is an asymmetric Laplace likelihood; Yu and Moyeed,
2001): ratings come in steps, so that no standard deviation gives such intervals by itself. Rows of few
ratings are made from those of many, by folding in a random part of a history.
"""

import math
from dataclasses import replace

import numpy as np

from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import half_step
from factors.inference.histories import Rows, compress_pairs
from factors.inference.pair_moments import PairMoments
from factors.model.layout import COUNT
from factors.model.links import NINETY, calibration_features, link_of
from factors.model.parameters import STD_TERMS, Parameters, SideName
from factors.model.quantized_rows import item_codec
from factors.model.scale import scale_levels
from factors.model.types import Float64s, Ratings
from factors.training.priors import learn_cold_start
from factors.training.sweep import State

_VARIANCE_SCALES = np.exp(np.linspace(math.log(0.5), math.log(2.5), 17))
# Prior deviation of the numbers `c`, in units of log deviations: counts matter little unless ratings say so.
_PRIOR = np.array([1.0, 0.2, 0.2, 0.5, 0.5])
# Rows that are made short at once: ten ratings each, of which each takes 2 KB while it is folded in.
_ROWS_AT_ONCE = 512


def calibrate(state: State, held_out: Ratings, rng: np.random.Generator) -> tuple[float, Float64s]:
    """Return `variance_scale` and `std_calibration` for `state`, which has not seen what is `held_out`."""
    n = len(held_out.value)
    parameters = replace(state.parameters, variance_scale=1.0, std_calibration=np.zeros(STD_TERMS))
    # So few ratings say nothing of a quantile: deviations stay as they are.
    if n < 50:
        return 1.0, parameters.std_calibration
    training = state.training
    parameters = learn_cold_start(
        parameters, state.user_rows, state.item_rows, training.by_user, training.attributes
    )
    items = item_codec(parameters).encode(state.item_rows)
    value = held_out.value
    user: Rows = held_out.user_row
    item: Rows = held_out.item_row
    mean, variance, _ = PairMoments(parameters, items).moments(
        state.user_rows, user, item, held_out.time, held_out.context
    )
    parameters = replace(parameters, variance_scale=_best_variance_scale(parameters, value, mean, variance))
    parts = [(value, mean, variance, state.user_rows[user, COUNT], items[item, COUNT])]
    # Few rows of a fit have few ratings, but new ones will: histories are cut short and folded in.
    for short_users, short_items in ((True, False), (False, True), (True, True)):
        # Each costs one or two fold-ins.
        some = held_out.take(rng.permutation(n)[:1_500])
        own, others, each = state.user_rows, items, np.arange(len(some.value))
        user, item = some.user_row, some.item_row
        if short_users:
            own, user = _shortened(parameters, "user", state, user, rng), each
        if short_items:
            short, item = _shortened(parameters, "item", state, item, rng), each
            others = item_codec(parameters).encode(short)
        mean, variance, _ = PairMoments(parameters, others).moments(own, user, item, some.time, some.context)
        parts.append((some.value, mean, variance, own[user, COUNT], others[item, COUNT]))
    value, mean, variance, user_count, item_count = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    rating, std = link_of(parameters).rating_moments(mean, variance)
    ratio = np.abs(value - rating) / (NINETY * std)
    # All rows made short together count half as much as rows as they are, at most.
    weight = np.ones(len(ratio))
    weight[n:] = min(1.0, 0.5 * n / (len(ratio) - n))
    features = calibration_features(np.stack([user_count, item_count])).T
    target = np.log(np.maximum(ratio, 1e-4))
    std_calibration = _quantile_regression(features, target, weight)
    return parameters.variance_scale, std_calibration


def _best_variance_scale(
    parameters: Parameters, value: Float64s, mean: Float64s, variance: Float64s
) -> float:
    if scale_levels(parameters.scale) == 1:
        return 1.0
    tried = (replace(parameters, variance_scale=float(factor)) for factor in _VARIANCE_SCALES)
    scores = [float(link_of(one).log_likelihoods(value, mean, variance).mean()) for one in tried]
    return float(_VARIANCE_SCALES[int(np.argmax(scores))])


def _shortened(
    parameters: Parameters,
    name: SideName,
    state: State,
    rows: Rows,
    rng: np.random.Generator,
) -> Float64s:
    """Return `rows` (m,) folded in from random parts of their histories, as if they were new: (m, width)."""
    data, table = state.training.side(name), state.item_rows if name == "user" else state.user_rows
    # As many rows at each step of a doubling, more or less.
    wanted = np.minimum(rng.choice((0, 1, 2, 3, 5, 8, 13, 20, 40), len(rows)), data.counts[rows])
    entry = np.concatenate(
        [
            data.indptr[row] + rng.permutation(int(data.counts[row]))[:n]
            for row, n in zip(rows.tolist(), wanted.tolist(), strict=True)
        ]
    ).astype(np.int64)
    new = np.ones(len(rows), dtype=np.bool_)
    short = compress_pairs(
        np.repeat(np.arange(len(rows)), wanted),
        data.other[entry],
        data.value[entry],
        data.time[entry],
        len(rows),
        context=None if data.context is None else data.context[entry],
    )
    columns = state.training.attributes.get(name)
    attributes = None if columns is None else columns.take(rows)
    found: list[Float64s] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, len(rows)))
        given = None if attributes is None else attributes.take(np.arange(part.start, part.stop))
        inputs = HalfStepInput.of(parameters, name, table, short.part(part), new=new[part], attributes=given)
        found.append(half_step(inputs).rows)
    return np.concatenate(found)


def _quantile_regression(features: Float64s, target: Float64s, weight: Float64s) -> Float64s:
    """Return the `c` (f,) for which `features @ c` is the 0.9 quantile of `target` (n,), whose entries have
    the `weight` (n,), by Newton steps.
    """
    # The loss of a quantile has a kink, which a Newton step cannot take: rounded over a twentieth of a log
    # deviation.
    share, smoothing = 0.9, 0.05
    found = np.zeros(features.shape[1])
    found[0] = float(np.quantile(target, share))

    def loss(at: Float64s) -> float:
        rest = target - features @ at
        check = share * rest + smoothing * np.logaddexp(0.0, -rest / smoothing)
        return float(weight @ check) / width + 0.5 * float(np.sum((at / _PRIOR) ** 2))

    rest = target - found[0]
    width = max(float(np.average(np.where(rest > 0, share, share - 1.0) * rest, weights=weight)), 1e-3)
    for _ in range(50):
        rest = target - features @ found
        below = 1.0 / (1.0 + np.exp(np.clip(rest / smoothing, -500.0, 500.0)))
        gradient = features.T @ (weight * (below - share)) / width + found / _PRIOR**2
        # The floor keeps the steps finite where no rating is near the quantile.
        curvature = weight * np.maximum(below * (1.0 - below), 0.01) / (smoothing * width)
        hessian = (features * curvature[:, None]).T @ features + np.diag(1.0 / _PRIOR**2)
        step = -np.linalg.solve(hessian, gradient)
        before, size = loss(found), 1.0
        # Far from the quantile a whole step may go too far.
        while size > 1e-4 and loss(found + size * step) > before:
            size *= 0.5
        found = found + size * step
        if np.abs(size * step).max() < 1e-5:
            break
    return found
