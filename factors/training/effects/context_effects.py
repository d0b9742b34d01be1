"""Context effects: how the taste of all users shifts and turns with the context of a rating.

Invariant: they are learned from what the users' own posteriors leave of the ratings, and of fields that say
nothing nothing is left.

With `c` the columns of a rating's context, `f = [q, 1]` and `b` of its item, `w` and `t` precision and value
of its site (`ordinal`), the effects `W` (columns, d) are the ridge regression of `t - E[b + x . f]` on
`c (x) f` with weights `w`, the uncertainty of the item included in `E[f f^T]`: the M-step of variational EM
for a model whose users are at `x + c W`. The prior of the effects of a column is the users' own, `N(0, S /
a)`, its latent part and its bias with a precision `a` each for every field; these are the ones of highest
evidence (MacKay, 1992: automatic relevance determination by groups), found along with the sweeps.
"""

from collections.abc import Iterable

import numpy as np

from factors.model.context import ContextEffects
from factors.model.layout import triangle, unpack
from factors.model.parameters import Parameters
from factors.model.types import Float32s, Float64s, Int64s
from factors.training.leave_one_out import StepEntries

# Multiplications that a sweep may spend on the normal equations: a part of a second of a core.
_MOST_WORK = 5e8
# Numbers of entries, their rows or products of two columns, that are in memory at once: 8 MB each.
_NUMBERS = 1 << 20
# Steps of the fixed point a sweep; the sweeps go on where it stopped.
_ROUNDS = 5
# Precisions of effects, relative to the users' own: beyond them nothing is left, or nothing is held back.
_PRECISIONS = 1e-6, 1e8


def regression_size(effects: ContextEffects) -> int:
    """Return how many ratings the regression of these effects may look at."""
    width, dim = effects.effects.shape
    pairs = width * (width + 1) * dim * (dim + 1) / 4
    return int(np.clip(_MOST_WORK / pairs, 10_000, 300_000))


def part_size(effects: ContextEffects, row_width: int) -> int:
    """Return how many ratings whose rows have so many numbers are looked at at once."""
    width = len(effects.effects)
    return max(1, _NUMBERS // max(width * (width + 1) // 2, row_width))


def learn_context(
    parameters: Parameters, parts: Iterable[tuple[StepEntries, Float64s, Float32s]], n_ratings: int
) -> ContextEffects | None:
    """Return effects learned anew from a sample of `n_ratings`, in parts: entries (m,) of the users'
    half-step, whose items have the rows (m, width) and whose contexts are (m, fields).
    """
    if parameters.context is None:
        return None
    encoding, effects = parameters.context.encoding, parameters.context.effects
    width, dim = effects.shape
    rows, others = np.tril_indices(width)
    pull, products, seen = np.zeros((width, dim)), np.zeros((len(rows), dim * (dim + 1) // 2)), 0
    for users, items, context in parts:
        columns = encoding.encode(context)
        weight, rest, second = _site_moments(parameters, users, items)
        pull += columns.T @ (weight[:, None] * rest)
        second *= weight[:, None]
        products += (columns[:, rows] * columns[:, others]).T @ second
        seen += len(weight)
    # Each entry of the sample stands for as many.
    scale = n_ratings / max(seen, 1)
    blocks = np.zeros((width, width, dim, dim))
    blocks[rows, others] = blocks[others, rows] = scale * unpack(products, dim)
    matrix = blocks.transpose(0, 2, 1, 3).reshape(width * dim, width * dim)
    prior = _Prior.of(parameters, encoding.fields)
    return ContextEffects(
        encoding, prior.regression(matrix, matrix @ effects.ravel() + scale * pull.ravel(), effects)
    )


def _site_moments(
    parameters: Parameters, users: StepEntries, items: Float64s
) -> tuple[Float64s, Float64s, Float64s]:
    """Return of each entry the weight (m,), `E[f (t - b - x . f)]` (m, d) and packed `E[f f^T]`."""
    layout, sites, entries = parameters.items.layout, users.step.sites, users.entries
    rank, at = layout.rank, users.rows()[:, layout.mean].copy()
    weight = sites.weight[entries].astype(np.float64)
    # Less the mean of all and the item's session, as a site is.
    target = sites.linear[entries] / weight
    timed, session = users.timed()
    target[timed] -= users.step.posterior.effects.mean[session]
    features, bias = items[:, layout.mean].copy(), items[:, layout.bias]
    features[:, rank] = 1.0
    covariance = items[:, layout.covariance]
    latent_packed = rank * (rank + 1) // 2
    rest = features * (target - bias - np.einsum("md,md->m", at, features))[:, None]
    at[:, rank] = 1.0
    rest -= np.einsum("mde,me->md", unpack(covariance, layout.dim), at) * (np.arange(layout.dim) < rank)
    rows, columns, _ = triangle(layout.dim)
    second = features[:, rows] * features[:, columns]
    second[:, :latent_packed] += covariance[:, :latent_packed]
    return weight, rest, second


class _Prior:
    """Precisions of effects by group: `group` (width, d) of each, and `unit`, the precision (width * d,
    width * d) of all where each group has the precision 1.
    """

    def __init__(self, group: Int64s, unit: Float64s) -> None:
        self._group = group.ravel()
        self._unit = unit
        self._sizes = np.bincount(self._group)

    @staticmethod
    def of(parameters: Parameters, fields: Float64s) -> "_Prior":
        """Return those of columns of these `fields` (width,)."""
        dim = parameters.users.layout.dim
        number = np.unique(fields, return_inverse=True)[1]
        group = np.repeat(2 * number[:, None], dim, axis=1)
        group[:, -1] += 1
        one = np.zeros((dim, dim))
        one[:-1, :-1] = np.linalg.inv(parameters.users.covariance[:-1, :-1])
        # The biases of users may be all alike where their contexts are not.
        one[-1, -1] = 1.0 / parameters.noise
        return _Prior(group, np.kron(np.eye(len(fields)), one).astype(np.float64))

    def regression(self, matrix: Float64s, linear: Float64s, effects: Float64s) -> Float64s:
        """Return the effects of highest posterior density under the precisions of highest evidence, which are
        looked for from those that `effects` speak for.
        """
        known = effects.ravel()
        precision = np.ones(len(self._sizes))
        if known.any():
            precision = self._bounded(self._sizes, self._squares(known))
        for _ in range(_ROUNDS):
            prior = self._unit * precision[self._group][:, None]
            covariance = np.linalg.inv(matrix + prior)
            known = covariance @ linear
            # How many of a group the ratings determine.
            left = np.bincount(self._group, np.einsum("ij,ji->i", covariance, prior))
            precision = self._bounded(np.maximum(self._sizes - left, 1e-9), self._squares(known))
        return np.asarray(known.reshape(effects.shape))

    def _squares(self, effects: Float64s) -> Float64s:
        return np.bincount(self._group, effects * (self._unit @ effects)).astype(np.float64)

    @staticmethod
    def _bounded(count: Float64s | Int64s, squares: Float64s) -> Float64s:
        return np.clip(count / np.maximum(squares, 1e-300), *_PRECISIONS)
