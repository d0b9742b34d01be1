"""Fold-in of implicit feedback: weighted least squares against everything that was not chosen (Hu, Koren,
Volinsky, 2008).

Invariant: a row is the exact minimiser for its own history, so that folding in gives what the fit's half-step
gives.

Whoever chose an item wanted it (preference 1) with confidence `c = 1 + alpha s`, where `s` from 0 to 1 is
where the rating stands on the scale; what was not chosen is a 0 with confidence 1. With the other side's
factors `Y`, its Gram matrix, the noise `v` and the ridge `r` of a row with `n` choices, that row has

    A = Y^T Y + r I + sum (c - 1) y y^T       precision = A / v       mean = A^-1 sum c y
    r = ridge * ((n + 1) / (typical n + 1)) ^ power

which is a Gaussian posterior with prior precision `(Y^T Y + r I) / v`. With a power above 0 rows of many
choices bear more ridge (Rendle et al., 2022, in whose iALS it decides how good the rankings are). The score
on the scale is `low + range * x . y`: user rows hold `range * x`, item rows `y`, biases are 0. A model is of
this kind if it has the parameter `confidence`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from factors.inference.histories import Compressed, compress
from factors.inference.side_moments import prior_rows
from factors.model.layout import COUNT, RATING_MEAN, Layout, outer, pack, unpack
from factors.model.parameters import Parameters, Side, SideName, from_model, to_model
from factors.model.quantized_rows import item_codec
from factors.model.scale import scale_range
from factors.model.types import Float32s, Float64s, Histories, Model, Scale

_BLOCK_ROWS = 2048
# Biases are 0 and known to be: a variance that no score notices, and whose inverse is finite.
_BIAS_VARIANCE = 1e-12


def is_implicit(model: Model) -> bool:
    """Whether `model` learns from implicit feedback."""
    return "confidence" in model.parameters


def confidence_of(values: Float64s, scale: Scale, alpha: float) -> Float64s:
    """Confidence (n,) of choices that were rated `values`."""
    span = scale.high - scale.low
    strength = np.ones(len(values)) if span <= 0 else np.clip((values - scale.low) / span, 0.0, 1.0)
    return np.asarray(1.0 + alpha * strength)


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a row minimises. `alpha`: see `confidence_of`; `ridge`, `power`: see above; `user_count`,
    `item_count`: the typical number of choices of a row of either side.
    """

    alpha: float
    ridge: float
    power: float = 0.0
    user_count: float = 0.0
    item_count: float = 0.0

    def ridges(self, name: SideName, counts: npt.NDArray[np.integer]) -> Float64s:
        """The ridge (b,) of rows of side `name` with `counts` (b,) choices."""
        typical = self.user_count if name == "user" else self.item_count
        return np.asarray(self.ridge * ((counts + 1.0) / (typical + 1.0)) ** self.power)


def implicit_model(
    scale: Scale, weighting: Weighting, *, noise: float, user_gram: Float64s, item_gram: Float64s
) -> Model:
    """The model of a fit. `user_gram` (k, k): `Y^T Y` over the items; `item_gram`: the same over the users.

    `noise`: variance of a preference round its score.
    """
    layout = Layout(len(user_gram), 0)
    span = scale_range(scale)
    user, item = (weighting.ridges(name, np.zeros(1, dtype=np.int64))[0] for name in ("user", "item"))
    identity = np.eye(len(user_gram))
    parameters = Parameters(
        link="gaussian",
        scale=scale,
        mean=scale.low,
        noise=noise * span**2,
        users=_side(layout, user_gram + user * identity, noise, span),
        items=_side(layout, item_gram + item * identity, noise, 1.0),
    )
    model = to_model(parameters)
    counts = weighting.user_count, weighting.item_count
    model.parameters["confidence"] = np.array(
        [noise, weighting.alpha, weighting.ridge, weighting.power, *counts]
    )
    model.parameters["user_gram"] = user_gram
    model.parameters["item_gram"] = item_gram
    return model


def weighting_of(model: Model) -> Weighting:
    """What the rows of `model` minimise."""
    return Weighting(*model.parameters["confidence"][1:].tolist())


def fold_in(model: Model, name: SideName, table: Float32s, histories: Histories) -> Float32s:
    """Rows (b, width) of side `name` from b histories and the `table` of the other side, those of items as
    they are stored. Unknown rows count as no choice.
    """
    parameters = from_model(model)
    own, other = parameters.side(name)
    data = compress(histories, len(table))
    factors, index, confidence = _terms(model, parameters, name, table, data)
    unit = scale_range(model.scale) if name == "user" else 1.0
    noise = float(model.parameters["confidence"][0])
    gram, diagonal = model.parameters[f"{name}_gram"], np.arange(model.rank)
    known = np.bincount(data.row[data.other >= 0], minlength=data.rows)
    ridges = weighting_of(model).ridges(name, known)
    result = prior_rows(own, data.rows)
    second = outer(factors)
    for start in range(0, data.rows, _BLOCK_ROWS):
        indptr = data.indptr[start : start + _BLOCK_ROWS + 1]
        part = slice(int(indptr[0]), int(indptr[-1]))
        shape = (len(indptr) - 1, len(factors))
        weights, columns = confidence[part], index[part]
        # An unknown row has confidence 0 and the column of a known one: it adds nothing.
        extra = sp.csr_array((np.maximum(weights - 1.0, 0.0), columns, indptr - indptr[0]), shape=shape)
        chosen = sp.csr_array((weights, columns, indptr - indptr[0]), shape=shape)
        precision = unpack(extra @ second, other.layout.rank) + gram
        precision[:, diagonal, diagonal] += ridges[start : start + shape[0], None]
        covariance = np.asarray(np.linalg.inv(precision), np.float64)
        mean = np.einsum("bij,bj->bi", covariance, chosen @ factors)
        spread: Float64s = unit**2 * noise * covariance
        _write(own, result[start : start + shape[0]], unit * mean, spread)
    result[:, COUNT] = counts = data.counts
    sums = np.bincount(data.row, data.value, minlength=data.rows)
    result[:, RATING_MEAN] = sums / np.maximum(counts, 1)
    return result.astype(np.float32) if name == "user" else item_codec(parameters).encode(result)


def entry_terms(model: Model, items: Float32s, data: Compressed) -> Float64s:
    """What each entry of one user's history adds to the linear term, (n, k + 1), in units of the user's
    row.
    """
    parameters = from_model(model)
    factors, index, confidence = _terms(model, parameters, "user", items, data)
    terms = np.zeros((len(index), factors.shape[1] + 1))
    # The covariance in the row carries range^2 v, its mean only the range.
    scaled = confidence / (scale_range(model.scale) * float(model.parameters["confidence"][0]))
    terms[:, :-1] = scaled[:, None] * factors[index]
    return terms


def _terms(
    model: Model, parameters: Parameters, name: SideName, table: Float32s, data: Compressed
) -> tuple[Float64s, np.ndarray, Float64s]:
    """Factors of the other rows that are needed, and of each entry its row among them and its confidence."""
    _, other = parameters.side(name)
    unit = 1.0 if name == "user" else scale_range(model.scale)
    known = data.other >= 0
    distinct, compact = np.unique(data.other[known], return_inverse=True)
    factors = table[distinct][:, other.layout.latent].astype(np.float64) / unit
    if len(distinct) == 0:
        factors = np.zeros((1, other.layout.rank))
    index = np.zeros(len(data.other), dtype=np.int64)
    index[known] = compact
    confidence = np.where(known, confidence_of(data.value, model.scale, weighting_of(model).alpha), 0.0)
    return factors, index, confidence


def _write(side: Side, rows: Float64s, mean: Float64s, covariance: Float64s) -> None:
    layout = side.layout
    rows[:, layout.latent] = mean
    full = np.zeros((len(mean), layout.dim, layout.dim))
    full[:, :-1, :-1] = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    full[:, -1, -1] = side.covariance[-1, -1]
    rows[:, layout.covariance] = pack(full)


def _side(layout: Layout, gram: Float64s, noise: float, unit: float) -> Side:
    covariance = np.zeros((layout.dim, layout.dim))
    latent = np.linalg.inv(gram) * noise * unit**2
    covariance[:-1, :-1] = 0.5 * (latent + latent.T)
    covariance[-1, -1] = _BIAS_VARIANCE * unit**2
    precision = np.zeros_like(covariance)
    precision[:-1, :-1] = gram / (noise * unit**2)
    precision[-1, -1] = 1.0 / covariance[-1, -1]
    return Side(layout, np.zeros(layout.dim), covariance, precision)
