"""The moments of the other side's rows that a half-step reads.

Invariant: an unknown row is read as the prior of its side.
"""

from dataclasses import dataclass

import numpy as np

from factors.inference.context import ContextShifts
from factors.inference.histories import Compressed
from factors.inference.motion import means_at
from factors.inference.segments import FEW
from factors.model.columns import Columns
from factors.model.layout import (
    NO_SESSION,
    RATING_MEAN,
    REST_KEY,
    FloatTable,
    outer,
    pack,
    session_keys,
    sitting_keys,
)
from factors.model.parameters import Side
from factors.model.quantized_rows import QuantizedTable, Table
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class SideMoments:
    """Of each other row, with `f = [latent, 1]` and `b` its bias: `features` (n, d) = mean of f, `bias` (n,),
    `direct` (n, packed) = outer product of that mean, `second` (n, packed) = E[f f^T], `cross` (n, d) = E[f
    b], packed `covariance` (n, packed), `implicit_effect` (n, d).

    Of each entry of the histories: `columns` (entries,), the row here that it has, None where entry `e` has
    row `e`; `session_effect` and its `session_variance` (entries,).
    """

    features: Float64s
    bias: Float64s
    direct: Float64s
    second: Float64s
    cross: Float64s
    covariance: Float64s
    implicit_effect: Float64s
    columns: Int64s | None
    session_effect: Float64s
    session_variance: Float64s

    def rows_of(self, entry: Int64s) -> Int64s:
        """Return the row here of each `entry` (m,)."""
        return entry if self.columns is None else self.columns[entry]


def prior_rows(side: Side, n_rows: int, attributes: Columns | None = None) -> Float64s:
    """Return rows (n_rows, width) of which nothing is known but the prior, and their `attributes`. Where that
    rests on attributes the rating mean, which a row without ratings has not, is 1.
    """
    layout = side.layout
    rows = np.zeros((n_rows, layout.width))
    prior = side.cold_start or side
    rows[:, layout.mean] = prior.mean
    if attributes is not None and prior.attribute_effects is not None:
        rows[:, layout.mean] += attributes.times(prior.attribute_effects)
        rows[:, RATING_MEAN] = attributes.described
    rows[:, layout.covariance] = pack(prior.covariance)
    rows[:, layout.keys] = NO_SESSION
    rows[:, layout.variances] = side.effect_variance
    return rows


def rests_on_attributes(side: Side) -> bool:
    """Return whether what is known of a row without ratings may rest on its attributes."""
    return (side.cold_start or side).attribute_effects is not None


def match_sessions(side: Side, rows: FloatTable, index: Int64s, time: Float64s) -> tuple[Float64s, Float64s]:
    """Effect and its variance (m,) of the session of `rows[index]` at `time` (m,); 0 and the prior's where a
    row keeps none for that time.
    """
    layout = side.layout
    effect, variance = np.zeros(len(index)), np.full(len(index), side.effect_variance)
    if not side.has_sessions:
        return effect, variance
    found, keys = rows[:, layout.keys][index], session_keys(time, side.session_length)
    # Of a session that is not kept its sitting may be.
    around = [np.where(np.isfinite(keys), REST_KEY, np.nan)] if side.any_time else []
    around += [sitting_keys(keys, side.sessions_a_sitting)] if side.sitting_length else []
    for wanted in (*around, keys):
        entry, slot = np.nonzero(found == wanted[:, None])
        row = index[entry]
        effect[entry] = rows[row, layout.effects.start + slot]
        variance[entry] = rows[row, layout.variances.start + slot]
    return effect, variance


def gather_side_moments(
    side: Side, table: Table, data: Compressed, shifts: ContextShifts | None = None
) -> SideMoments:
    """Return the moments of the rows of `side` in `data`, whose entries have these `shifts`."""
    n, known = len(data.other), np.flatnonzero(data.other >= 0)
    columns: Int64s | None = None
    # Few entries, or few for the size of the table: a row for each, so that sums need no indirection.
    # Otherwise each row once, however often it is rated. A row that moves, or that is seen in contexts, is
    # another one at each entry.
    if n <= max(FEW, len(table) - 1) or side.layout.moving or shifts is not None:
        rows = _rows_at(side, table, data.other, known)
        mean = means_at(side, rows, data.time)
    else:
        rows, columns = table.expanded() if isinstance(table, QuantizedTable) else table, data.other
        if len(known) < n:
            rows = np.concatenate([rows, _prior_of(side, table)])
            columns = np.where(columns < 0, len(table), columns)
        mean = rows[:, side.layout.mean].astype(np.float64)
    effect, variance = np.zeros(n), np.zeros(n)
    if side.has_sessions:
        effect, variance = match_sessions(side, rows, np.arange(n) if columns is None else columns, data.time)
    covariance = rows[:, side.layout.covariance].astype(np.float64)
    if shifts is not None:
        shifts.move_other(side.layout, mean, covariance)
    implicit_effect = rows[:, side.layout.implicit_effect].astype(np.float64)
    features, rank = mean, side.layout.rank
    # In place of its own bias a row multiplies that of the side that is solved, with 1.
    bias = features[:, rank].copy()
    features[:, rank] = 1.0
    direct = outer(features)
    second = direct.copy()
    latent_packed = rank * (rank + 1) // 2
    second[:, :latent_packed] += covariance[:, :latent_packed]
    # E[f b] is the product of the means and the covariance of latent part and bias.
    cross = features * bias[:, None]
    cross[:, :rank] += covariance[:, latent_packed : latent_packed + rank]
    moments = (features, bias, direct, second, cross, covariance, implicit_effect)
    return SideMoments(*moments, columns, effect, variance)


def _rows_at(side: Side, table: Table, index: Int64s, known: Int64s) -> FloatTable:
    """Return the rows (n, width) at `index` (n,), of which the entries `known` are in the table."""
    if len(known) == len(index):
        return table[index]
    rows = np.repeat(_prior_of(side, table), len(index), axis=0)
    rows[known] = table[index[known]]
    return rows


def _prior_of(side: Side, table: Table) -> FloatTable:
    """Return the row (1, width) of an unknown user or item, as the table would have it."""
    prior = prior_rows(side, 1)
    if isinstance(table, QuantizedTable):
        return table.codec.decode(table.codec.encode(prior))
    return np.asarray(prior, dtype=table.dtype)
