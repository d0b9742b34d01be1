"""The same mathematics in slow, readable loops: what the fast kernels are tested against, and nothing else.

Invariant: no line here is shared with a kernel but the layout of a row and the derivatives of the ordinal
link.
"""

import math

import numpy as np

from factors import posterior_of
from factors.inference.ordinal import EntryScores, Sites, fold_in_damping, level_bounds, ordinal_sites
from factors.model.layout import COUNT, session_keys
from factors.model.links import link_of
from factors.model.parameters import Parameters, Side, SideName, from_model
from factors.model.scale import rating_levels
from factors.model.types import Float32s, Float64s, Model

STEPS = 60


def matrix_of(side: Side, row: Float64s) -> Float64s:
    """The covariance (d, d) of a row."""
    dim = side.layout.dim
    packed = row[side.layout.covariance]
    matrix = np.zeros((dim, dim))
    position = 0
    for i in range(dim):
        for j in range(i + 1):
            matrix[i, j] = matrix[j, i] = packed[position]
            position += 1
    return matrix


def prior_row(side: Side) -> Float64s:
    """The row of an unknown user or item."""
    layout = side.layout
    row = np.zeros(layout.width)
    prior = side.cold_start or side
    row[layout.mean] = prior.mean
    position = layout.covariance.start
    for i in range(layout.dim):
        for j in range(i + 1):
            row[position] = prior.covariance[i, j]
            position += 1
    row[layout.keys] = -1.0
    row[layout.variances] = side.session_variance + side.sitting_variance
    return row


def session_of(side: Side, row: Float64s, time: float) -> tuple[float, float]:
    """Effect and variance of the session of `row` at `time`."""
    if side.session_variance > 0:
        key = float(session_keys(np.array([time]), side.session_length)[0])
        # The session itself, or else the sitting that it would be in.
        for wanted in (key, sitting_of(side, key)):
            for slot in range(side.layout.slots):
                if row[side.layout.keys][slot] == wanted:
                    return float(row[side.layout.effects][slot]), float(row[side.layout.variances][slot])
    return 0.0, side.session_variance + side.sitting_variance


def sitting_of(side: Side, key: float) -> float:
    """Key of the sitting of the session of this `key`."""
    if not side.sitting_length or math.isnan(key):
        return math.nan
    return -2.0 - key // (side.sitting_length / side.session_length)


def latent(model: Model, user: Float32s, item: Float32s, time: float = math.nan) -> tuple[float, float]:
    """Mean and variance of the score of one pair."""
    parameters = from_model(model)
    u, i = user.astype(np.float64), posterior_of(model).item_codec.decode(item[None])[0].astype(np.float64)
    layout = parameters.users.layout
    x, y = u[layout.mean], i[layout.mean]
    S, T = matrix_of(parameters.users, u), matrix_of(parameters.items, i)
    f, g = np.append(x[:-1], 1.0), np.append(y[:-1], 1.0)
    mean = parameters.mean + x[-1] + y[-1] + float(x[:-1] @ y[:-1])
    variance = float(g @ S @ g + f @ T @ f + np.trace(S[:-1, :-1] @ T[:-1, :-1]))
    for side, row in ((parameters.users, u), (parameters.items, i)):
        effect, spread = session_of(side, row, time)
        mean, variance = mean + effect, variance + spread
    return mean, variance


def score(model: Model, user: Float32s, item: Float32s, time: float = math.nan) -> tuple[float, float]:
    """Rating and standard deviation of one pair."""
    mean, variance = latent(model, user, item, time)
    parameters = from_model(model)
    rating, std = link_of(parameters).rating_moments(np.array([mean]), np.array([variance]))
    n, m = 1.0 + float(user[COUNT]), 1.0 + float(item[COUNT])
    exponent = float(np.array([1.0, math.log(n), math.log(m), 1.0 / n, 1.0 / m]) @ parameters.std_calibration)
    return float(rating[0]), float(std[0]) * math.exp(exponent)


def fold_in(
    model: Model,
    name: SideName,
    table: Float32s,
    *,
    other_row: list[int],
    value: list[float],
    time: list[float],
) -> tuple[Float64s, Float64s]:
    """Posterior mean (d,) and covariance (d, d) of one row; its session effects are solved jointly, as
    further unknowns, and dropped.
    """
    parameters = from_model(model)
    own, other = parameters.side(name)
    if name == "user":
        table = posterior_of(model).item_codec.decode(table)
    last: dict[int, tuple[float, float]] = {}
    for item, rating, when in zip(other_row, value, time, strict=True):
        last[item] = (rating, when)
    entries = [(item, *last[item]) for item in sorted(last) if not math.isnan(last[item][0])]
    rows = [table[r].astype(np.float64) if 0 <= r < len(table) else prior_row(other) for r, _, _ in entries]
    keys = [float(session_keys(np.array([when]), own.session_length)[0]) for _, _, when in entries]
    timed = own.session_variance > 0 and own.layout.slots > 0
    sessions = sorted({key for key in keys if not math.isnan(key)}) if timed else []
    dim, size = own.layout.dim, own.layout.dim + len(sessions)
    prior = np.zeros(size)
    prior[:dim] = own.mean
    for row in rows:
        effect = row[other.layout.implicit_effect]
        if own.cold_start is not None and not effect.any():
            effect = own.cold_start.effect
        prior[:dim] += effect / math.sqrt(len(rows))
    prior_precision = np.zeros((size, size))
    prior_precision[:dim, :dim] = own.precision
    sittings = np.array([sitting_of(own, key) for key in sessions])
    effects = own.session_variance * np.eye(len(sessions))
    effects += own.sitting_variance * (sittings[:, None] == sittings)
    prior_precision[dim:, dim:] = np.linalg.inv(effects)
    offsets = [
        parameters.mean + session_of(other, row, e[2])[0] for row, e in zip(rows, entries, strict=True)
    ]
    features = []
    for row, key in zip(rows, keys, strict=True):
        feature = np.zeros(size)
        feature[: dim - 1], feature[dim - 1] = row[other.layout.latent], 1.0
        if key in sessions:
            feature[dim + sessions.index(key)] = 1.0
        features.append(feature)
    mean: Float64s = prior
    covariance: Float64s = np.asarray(np.linalg.inv(prior_precision), dtype=np.float64)
    sites: list[Sites] | None = None
    for _ in range(STEPS if parameters.link == "ordinal" else 1):
        sites = [
            _site(
                parameters,
                other,
                row=rows[j],
                feature=features[j],
                entry=entries[j],
                offset=offsets[j],
                posterior=(mean, covariance),
                dim=dim,
                before=None if sites is None else sites[j],
            )
            for j in range(len(rows))
        ]
        precision, linear = prior_precision.copy(), prior_precision @ prior
        for row, feature, site in zip(rows, features, sites, strict=True):
            spread = matrix_of(other, row)
            second = np.outer(feature, feature)
            second[: dim - 1, : dim - 1] += spread[:-1, :-1]
            cross = feature * row[other.layout.bias]
            cross[: dim - 1] += spread[:-1, -1]
            precision += site.weight[0] * second
            linear += site.linear[0] * feature - site.weight[0] * cross
        covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        mean = covariance @ linear
    return mean[:dim], covariance[:dim, :dim]


def _site(
    parameters: Parameters,
    other: Side,
    *,
    row: Float64s,
    feature: Float64s,
    entry: tuple[int, float, float],
    offset: float,
    posterior: tuple[Float64s, Float64s],
    dim: int,
    before: Sites | None,
) -> Sites:
    """The site of one rating."""
    value = np.array([entry[1]])
    if parameters.link == "gaussian":
        weight = np.array([1.0 / parameters.noise])
        return Sites(weight, weight * (value - offset), value, value)
    mean, covariance = posterior
    spread = matrix_of(other, row)
    shape = np.append(mean[: dim - 1], 1.0)
    rest = shape @ spread @ shape + np.trace(covariance[: dim - 1, : dim - 1] @ spread[:-1, :-1])
    scores = EntryScores(
        np.array([feature @ mean + row[other.layout.bias] + offset]),
        np.array([feature @ covariance @ feature]),
        np.array([rest + session_of(other, row, entry[2])[1]]),
        np.array([offset]),
    )
    damping = fold_in_damping(parameters.cuts, parameters.noise)
    bounds = level_bounds(parameters.cuts, rating_levels(parameters.scale, value))
    return ordinal_sites(bounds, parameters.noise, scores, before, damping=damping)
