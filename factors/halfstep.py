"""One half-step of variational ALS: the posteriors of one side given the other. Both the fit and the fold-in
are this.

Invariant: a row depends on its own history, the other table and the parameters alone, so that folding in from
a full history gives what the batch gives.

With `f = [latent, 1]` and `b` the bias of an other row, the posterior of `x` (dimension d) has, for ratings
`y`,

    precision = P + w sum E[f f^T]                    linear term = P m + w sum (f (y - mu) - E[f b])

where `P`, `m` are prior precision and mean and `w` the inverse noise variance (Lim and Teh, 2007, with full
covariances and biases inside). `m` has the mean of the other rows' set effects times the square root of their
count (Koren, 2008). An effect `N(0, t)` per period of a row is marginalised: with `a = w sum f`, `n = w count
+ 1/t`, `s = w sum (y - mu - b)` over the period, the precision loses `a a^T / n` and the linear term `a s /
n` (a Schur complement).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from factors.histories import Compressed, Periods, group_periods
from factors.packing import (
    COUNT,
    NO_PERIOD,
    RATING_MEAN,
    FloatTable,
    outer,
    pack,
    period_keys,
    triangle,
    unpack,
)
from factors.parameters import Parameters, Side, SideName
from factors.tables import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Others:
    """What a half-step reads of each other row: `features` (n, d) = `[latent, 1]`, `bias` (n,), `second` (n,
    packed) = E[f f^T], `cross` (n, d) = E[f b], `set_effect` (n, d); and of each entry: `period_effect`
    (entries,)."""

    features: Float64s
    bias: Float64s
    second: Float64s
    cross: Float64s
    set_effect: Float64s
    period_effect: Float64s


def prior_rows(side: Side, n_rows: int) -> Float64s:
    """Rows (n_rows, width) that say what is known of someone unknown."""
    layout = side.layout
    rows = np.zeros((n_rows, layout.width))
    rows[:, layout.mean] = side.mean
    rows[:, layout.covariance] = pack(side.covariance)
    rows[:, layout.keys] = NO_PERIOD
    rows[:, layout.variances] = side.period_variance
    return rows


def read_others(side: Side, rows: FloatTable, period_effect: Float64s) -> Others:
    """The part of `rows` (n, width) of `side` that the half-step of the other side reads."""
    layout = side.layout
    rank = layout.rank
    features = rows[:, layout.mean].astype(np.float64)
    bias = features[:, rank].copy()
    features[:, rank] = 1.0
    covariance = rows[:, layout.covariance].astype(np.float64)
    second = outer(features)
    latent_packed = rank * (rank + 1) // 2
    second[:, :latent_packed] += covariance[:, :latent_packed]
    cross = features * bias[:, None]
    cross[:, :rank] += covariance[:, latent_packed : latent_packed + rank]
    return Others(features, bias, second, cross, rows[:, layout.set_effect].astype(np.float64), period_effect)


def period_effects(side: Side, rows: FloatTable, index: Int64s, time: Float64s) -> Float64s:
    """Effects (n,) of the periods of `rows[index]` at `time`; 0 where the row has none for that time."""
    layout = side.layout
    if layout.slots == 0 or side.period_variance <= 0:
        return np.zeros(len(index))
    keys = period_keys(time, side.period)
    match = rows[index, layout.keys] == keys[:, None]
    return np.asarray(np.where(match, rows[index, layout.effects], 0.0).sum(axis=1, dtype=np.float64))


def gather_others(side: Side, table: FloatTable, data: Compressed) -> tuple[Others, Int64s]:
    """What the half-step reads of the other rows in `data`, and where each entry of `data` finds its row in
    there.
    """
    # Few entries of a large table: read these alone. Otherwise each row once, however often it is rated.
    known = np.flatnonzero(data.other >= 0)
    if len(data.other) < len(table) or len(table) == 0:
        rows: FloatTable = prior_rows(side, len(data.other)).astype(table.dtype)
        rows[known] = table[data.other[known]]
        index = np.arange(len(data.other))
    else:
        rows, index = table, data.other
        if len(known) < len(index):
            rows = np.concatenate([table, prior_rows(side, 1).astype(table.dtype)])
            index = np.where(index < 0, len(table), index)
    return read_others(side, rows, period_effects(side, rows, index, data.time)), index


def half_step(
    parameters: Parameters,
    name: SideName,
    table: FloatTable,
    data: Compressed,
    *,
    periods: Periods | None = None,
    block_rows: int = 8192,
) -> Float64s:
    """Posterior rows (b, width) of side `name` from its histories `data` and the `table` (n, width) of the
    other side.

    `periods`: the groups of `data` where the caller has them already. The set effect of the rows is left 0.
    """
    own, other = parameters.side(name)
    if own.period_variance > 0 and own.layout.slots and periods is None:
        periods = group_periods(data, own.period)
    others, index = gather_others(other, table, data)
    target = data.value - parameters.mean - others.period_effect
    result = prior_rows(own, data.rows)
    for start in range(0, data.rows, block_rows):
        _solve_block(
            parameters,
            own=own,
            others=others,
            index=index,
            target=target,
            data=data,
            periods=periods,
            result=result,
            start=start,
            stop=start + block_rows,
        )
    return result


def _solve_block(
    parameters: Parameters,
    *,
    own: Side,
    others: Others,
    index: Int64s,
    target: Float64s,
    data: Compressed,
    periods: Periods | None,
    result: Float64s,
    start: int,
    stop: int,
) -> None:
    layout = own.layout
    indptr = data.indptr[start : stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    indptr = indptr - indptr[0]
    counts = np.diff(indptr)
    weight = 1.0 / parameters.noise
    columns, y = index[entries], target[entries]
    shape = (len(counts), len(others.bias))
    ones = sp.csr_array((np.ones(len(columns)), columns, indptr), shape=shape)
    valued = sp.csr_array((y, columns, indptr), shape=shape)
    prior_mean = own.mean + (ones @ others.set_effect) / np.sqrt(np.maximum(counts, 1))[:, None]
    precision = own.precision + weight * unpack(ones @ others.second, layout.dim)
    linear = prior_mean @ own.precision + weight * (valued @ others.features - ones @ others.cross)
    groups = _Groups.of(
        periods,
        own,
        others=others,
        index=index,
        target=target,
        weight=weight,
        start=start,
        stop=start + len(counts),
    )
    if groups is not None:
        precision -= unpack(
            groups.per_row(outer(groups.load) / groups.scale[:, None], len(counts)), layout.dim
        )
        linear -= groups.per_row(groups.load * (groups.sum / groups.scale)[:, None], len(counts))
    covariance = np.linalg.inv(precision)
    mean = np.einsum("bij,bj->bi", covariance, linear)
    rows = result[start : start + len(counts)]
    rows[:, COUNT] = counts
    sums = np.bincount(np.repeat(np.arange(len(counts)), counts), data.value[entries], len(counts))
    rows[:, RATING_MEAN] = sums / np.maximum(counts, 1)
    rows[:, layout.mean] = mean
    packed = pack(0.5 * (covariance + covariance.transpose(0, 2, 1)))
    rows[:, layout.covariance] = packed
    if groups is not None:
        groups.write(own, rows, mean, packed)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The periods of one block of rows. `row` (g,) within the block, `key` (g,); `load` (g, d), `scale`,
    `sum` (g,) are `a`, `n`, `s` of the module's docstring."""

    row: Int64s
    key: Float64s
    load: Float64s
    scale: Float64s
    sum: Float64s

    @staticmethod
    def of(
        periods: Periods | None,
        own: Side,
        *,
        others: Others,
        index: Int64s,
        target: Float64s,
        weight: float,
        start: int,
        stop: int,
    ) -> "_Groups | None":
        if periods is None or own.period_variance <= 0:
            return None
        first, last = np.searchsorted(periods.row, [start, stop])
        if first == last:
            return None
        low, high = np.searchsorted(periods.group, [first, last])
        entry, group = periods.entry[low:high], periods.group[low:high] - first
        n_groups = int(last - first)
        columns = index[entry]
        members = sp.csr_array(
            (np.ones(len(entry)), columns, np.searchsorted(group, np.arange(n_groups + 1))),
            shape=(n_groups, len(others.bias)),
        )
        residual = np.bincount(group, target[entry] - others.bias[columns], n_groups)
        return _Groups(
            periods.row[first:last] - start,
            periods.key[first:last],
            np.asarray(weight * (members @ others.features)),
            weight * np.bincount(group, minlength=n_groups).astype(np.float64) + 1.0 / own.period_variance,
            np.asarray(weight * residual, dtype=np.float64),
        )

    def per_row(self, values: Float64s, n_rows: int) -> Float64s:
        """Sums (n_rows, ...) of `values` (g, ...) over the groups of each row."""
        indptr = np.searchsorted(self.row, np.arange(n_rows + 1))
        sums = sp.csr_array(
            (np.ones(len(self.row)), np.arange(len(self.row)), indptr), shape=(n_rows, len(self.row))
        )
        return np.asarray(sums @ values)

    def write(self, own: Side, rows: Float64s, mean: Float64s, packed: Float64s) -> None:
        """The latest periods of each row, as many as it has slots for, newest first."""
        layout = own.layout
        effect = (self.sum - np.einsum("gd,gd->g", self.load, mean[self.row])) / self.scale
        spread = (outer(self.load) * packed[self.row]) @ triangle(layout.dim)[2]
        variance = 1.0 / self.scale + spread / self.scale**2
        last = np.searchsorted(self.row, self.row, side="right")
        slot = last - 1 - np.arange(len(self.row))
        kept = slot < layout.slots
        where = self.row[kept], slot[kept]
        rows[:, layout.keys][where] = self.key[kept]
        rows[:, layout.effects][where] = effect[kept]
        rows[:, layout.variances][where] = variance[kept]


def entry_terms(
    parameters: Parameters, own: Side, others: Others, index: Int64s, data: Compressed
) -> tuple[Float64s, Float64s]:
    """What each entry of one history adds to the linear term beyond what the prior mean foretells, and to
    that mean.

    Both (n, d). With `S` the posterior covariance: posterior mean = side mean + sum of the second + S sum of
    the first.
    """
    dim = own.layout.dim
    weight = 1.0 / parameters.noise
    y = data.value - parameters.mean - others.period_effect
    features, bias = others.features[index], others.bias[index]
    set_terms = others.set_effect[index] / np.sqrt(max(len(index), 1))
    prior_mean = own.mean + set_terms.sum(axis=0)
    second = unpack(others.second[index], dim)
    terms = weight * (y[:, None] * features - others.cross[index] - second @ prior_mean)
    periods = group_periods(data, own.period) if own.period_variance > 0 and own.layout.slots else None
    groups = _Groups.of(periods, own, others=others, index=index, target=y, weight=weight, start=0, stop=1)
    if groups is not None and periods is not None:
        entry = periods.entry
        surprise = weight * (y - bias - features @ prior_mean)[entry]
        load = (groups.load / groups.scale[:, None])[periods.group]
        terms[entry] -= load * surprise[:, None]
    return terms, set_terms
