"""Implicit feedback: weighted least squares against all that was not chosen (Hu, Koren, Volinsky, 2008).

Invariant: a row is the exact minimiser for its own history, so that folding in gives what the fit's half-step
gives.

A user who chose an item wanted it (preference 1) with confidence `c = 1 + alpha s`, where `s` from 0 to 1 is
the position of the rating on the scale; an item that was not chosen is a 0 with confidence 1. With the
factors `Y` of the other side, its Gram matrix, the noise `v` and the ridge `r` of a row with `n` choices,
that row has

    A = Y^T Y + r I + sum (c - 1) y y^T       precision = A / v       mean = A^-1 sum c y
    r = ridge * ((n + 1) / (typical n + 1)) ^ power

which is a Gaussian posterior with prior precision `(Y^T Y + r I) / v`. With a power above 0 rows of many
choices bear more ridge (Rendle et al., 2022, in whose iALS it decides how good the rankings are). The score
on the scale is `low + range * x . y`: user rows hold `range * x`, item rows `y`, biases are 0.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from factors.inference.backend import HalfStepBackend
from factors.inference.histories import Compressed, compress
from factors.inference.side_moments import prior_rows
from factors.model.columns import Columns
from factors.model.layout import COUNT, RATING_MEAN, Layout, outer, pack, unpack
from factors.model.parameters import Parameters, Side, SideName, to_model
from factors.model.scale import scale_range
from factors.model.types import Float32s, Float64s, Histories, Int64s, Model, Scale
from factors.posterior.posterior_model import PosteriorModel

# Rows whose normal matrices are in memory at once: 70 MB at rank 64.
_BLOCK_ROWS = 2048
# A stored name: models that are live keep it.
_DECIDED = "implicit_choice"


@dataclass(frozen=True, slots=True)
class Weighting:
    """What a row minimises: `alpha`, `ridge` and `power` of above, and how many choices a typical user and a
    typical item have. `decided`: number of ratings by which the first three were chosen, 0 if unknown.
    """

    alpha: float
    ridge: float
    power: float = 0.0
    user_count: float = 0.0
    item_count: float = 0.0
    decided: float = 0.0

    def ridges(self, name: SideName, counts: npt.NDArray[np.integer]) -> Float64s:
        """Return the ridge (b,) of rows of side `name` with `counts` (b,) choices."""
        typical = self.user_count if name == "user" else self.item_count
        return np.asarray(self.ridge * ((counts + 1.0) / (typical + 1.0)) ** self.power)


def confidence_of(values: Float64s, scale: Scale, alpha: float) -> Float64s:
    """Return the confidence (n,) of choices with the ratings `values`."""
    span = scale.high - scale.low
    strength = np.ones(len(values)) if span <= 0 else np.clip((values - scale.low) / span, 0.0, 1.0)
    return np.asarray(1.0 + alpha * strength)


def weighting_of(model: Model) -> Weighting:
    """Return what the rows of an implicit `model` minimise."""
    # A model of an early version does not say.
    decided = float(model.parameters.get(_DECIDED, np.zeros(1))[0])
    return replace(Weighting(*model.parameters["confidence"][1:].tolist()), decided=decided)


def implicit_model(
    scale: Scale,
    weighting: Weighting,
    *,
    noise: float,
    users: Float32s,
    items: Float32s,
) -> Model:
    """Return the model of a fit that gave the factors `users` (n_users, k) and `items` (n_items, k).

    `noise`: variance of a preference round its score.
    """
    rank = items.shape[1]
    layout, span = Layout(rank, 0), scale_range(scale)
    # In double precision: these are sums over a whole table.
    user_gram, item_gram = (table.T @ table for table in (items.astype(np.float64), users.astype(np.float64)))
    none = np.zeros(1, dtype=np.int64)
    user_ridge, item_ridge = (weighting.ridges(name, none)[0] * np.eye(rank) for name in ("user", "item"))
    model = to_model(
        Parameters(
            link="gaussian",
            scale=scale,
            mean=scale.low,
            noise=noise * span**2,
            users=_side(layout, user_gram + user_ridge, noise, span),
            items=_side(layout, item_gram + item_ridge, noise, 1.0),
        )
    )
    counts = weighting.user_count, weighting.item_count
    model.parameters["confidence"] = np.array(
        [noise, weighting.alpha, weighting.ridge, weighting.power, *counts]
    )
    model.parameters["user_gram"] = user_gram
    model.parameters["item_gram"] = item_gram
    model.parameters[_DECIDED] = np.array([weighting.decided])
    return model


class ImplicitPosterior(PosteriorModel):
    """Users and items fitted to implicit feedback. Rows have no implicit effects and no session effects."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._noise = float(model.parameters["confidence"][0])
        self.weighting = weighting_of(model)
        self._range = scale_range(model.scale)

    def keeps_time(self, user: Float32s, time: float) -> bool:
        """See `PosteriorModel.keeps_time`: time plays no part."""
        del user, time
        return True

    def entry_terms(
        self, items: Float32s, data: Compressed, current: Float32s | None, attributes: Columns | None = None
    ) -> tuple[Float64s, Float64s]:
        """See `PosteriorModel.entry_terms`."""
        del current, attributes
        factors, index, confidence = self._choices("user", items, data)
        terms = np.zeros((len(index), factors.shape[1] + 1))
        # The covariance of a user's row is in units of range^2 noise, its mean in units of the range.
        terms[:, :-1] = (confidence / (self._range * self._noise))[:, None] * factors[index]
        return terms, np.zeros_like(terms)

    def _rows(
        self,
        name: SideName,
        table: Float32s,
        histories: Histories,
        current: Float32s | None,
        at: float | None,
        *,
        attributes: Columns | None,
        backend: HalfStepBackend | None,
    ) -> Float64s:
        # An unknown other row is no choice. Neither earlier rows, times nor attributes play a part.
        del current, at, attributes, backend
        own, _ = self.parameters.side(name)
        rank, unit = own.layout.rank, self._range if name == "user" else 1.0
        data = compress(histories, len(table), whole=name == "item")
        factors, index, confidence = self._choices(name, table, data)
        known = np.bincount(data.row[data.other >= 0], minlength=data.rows)
        ridges = self.weighting.ridges(name, known)
        gram, diagonal = self.model.parameters[f"{name}_gram"], np.arange(rank)
        result, second = prior_rows(own, data.rows), outer(factors)
        for start in range(0, data.rows, _BLOCK_ROWS):
            indptr = data.indptr[start : start + _BLOCK_ROWS + 1]
            part = slice(int(indptr[0]), int(indptr[-1]))
            rows = slice(start, start + len(indptr) - 1)
            shape = (len(indptr) - 1, len(factors))
            weights, columns = confidence[part], index[part]
            # An unknown row has confidence 0 and the column of a known one: it adds nothing.
            extra = sp.csr_array((np.maximum(weights - 1.0, 0.0), columns, indptr - indptr[0]), shape=shape)
            chosen = sp.csr_array((weights, columns, indptr - indptr[0]), shape=shape)
            precision = unpack(extra @ second, rank) + gram
            precision[:, diagonal, diagonal] += ridges[rows, None]
            covariance = np.asarray(np.linalg.inv(precision), np.float64)
            mean = np.einsum("bij,bj->bi", covariance, chosen @ factors)
            _write(own, result[rows], unit * mean, unit**2 * self._noise * covariance)
        # An unknown item is no choice, but the user did rate it.
        result[:, COUNT] = data.counts
        sums = np.bincount(data.row, data.value, minlength=data.rows)
        result[:, RATING_MEAN] = sums / np.maximum(data.counts, 1)
        return result

    def _choices(
        self, name: SideName, table: Float32s, data: Compressed
    ) -> tuple[Float64s, Int64s, Float64s]:
        """Return the factors of the other rows that are needed, and of each entry its row among these and its
        confidence.
        """
        _, other = self.parameters.side(name)
        unit = 1.0 if name == "user" else self._range
        known = data.other >= 0
        distinct, compact = np.unique(data.other[known], return_inverse=True)
        factors = table[distinct][:, other.layout.latent].astype(np.float64) / unit
        if len(distinct) == 0:
            factors = np.zeros((1, other.layout.rank))
        index = np.zeros(len(data.other), dtype=np.int64)
        index[known] = compact
        confidence = np.where(known, confidence_of(data.value, self.model.scale, self.weighting.alpha), 0.0)
        return factors, index, confidence


def _write(side: Side, rows: Float64s, mean: Float64s, covariance: Float64s) -> None:
    layout = side.layout
    rows[:, layout.latent] = mean
    full = np.zeros((len(mean), layout.dim, layout.dim))
    # An inverse is symmetric only up to rounding; packed rows hold one triangle.
    full[:, :-1, :-1] = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    full[:, -1, -1] = side.covariance[-1, -1]
    rows[:, layout.covariance] = pack(full)


def _side(layout: Layout, gram: Float64s, noise: float, unit: float) -> Side:
    covariance = np.zeros((layout.dim, layout.dim))
    latent = np.linalg.inv(gram) * noise * unit**2
    covariance[:-1, :-1] = 0.5 * (latent + latent.T)
    # Biases are known to be 0: a variance that no score notices, and whose inverse is finite.
    covariance[-1, -1] = 1e-12 * unit**2
    precision = np.zeros_like(covariance)
    precision[:-1, :-1] = gram / (noise * unit**2)
    precision[-1, -1] = 1.0 / covariance[-1, -1]
    return Side(layout, np.zeros(layout.dim), covariance, precision)
