"""Effects of the periods of a row (the days of a user), marginalised out of its posterior and then read back.

Invariant: posterior and effects are those of the joint Gaussian; nothing is iterated.

With `a = sum w f`, `n = sum w + 1 / t`, `s = sum w (y - b)` over the entries of one period, `t` the prior
variance of an effect, the precision of the row loses `a a^T / n` and its linear term `a s / n` (a Schur
complement); afterwards the effect has mean `(s - a . x) / n` and variance `1 / n + a^T S a / n^2`.
"""

import math
from dataclasses import dataclass

import numpy as np

from factors.histories import Periods
from factors.ordinal import Sites
from factors.others import Others
from factors.parameters import Side
from factors.segments import segment_sums
from factors.tables import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Groups:
    """The periods of one block of rows. `row` (g,) within the block, `key` (g,); `load` (g, d), `scale`,
    `sum` (g,) are `a`, `n`, `s` of the module's docstring.
    """

    row: Int64s
    key: Float64s
    load: Float64s
    scale: Float64s
    sum: Float64s

    @staticmethod
    def of(
        periods: Periods | None,
        own: Side,
        others: Others,
        index: Int64s,
        sites: Sites,
        *,
        start: int,
        stop: int,
        age: Float64s | None = None,
    ) -> "Groups | None":
        """The groups of the rows from `start` to `stop`; None where there are none. `age`: of each entry,
        where rows move; then `a` has `-age f` after `f`.
        """
        if periods is None:
            return None
        first, last = np.searchsorted(periods.row, [start, stop])
        if first == last:
            return None
        low, high = np.searchsorted(periods.group, [first, last])
        entry, group = periods.entry[low:high], periods.group[low:high] - first
        n_groups = int(last - first)
        columns, weight = index[entry], sites.weight[entry]
        indptr = np.searchsorted(group, np.arange(n_groups + 1))
        load = segment_sums(indptr, columns, weight, others.features)
        if age is not None:
            load = np.hstack([load, segment_sums(indptr, columns, -age[entry] * weight, others.features)])
        residual = np.bincount(group, sites.linear[entry] - weight * others.bias[columns], n_groups)
        scale = np.bincount(group, weight, n_groups) + 1.0 / own.period_variance
        return Groups(
            periods.row[first:last] - start,
            periods.key[first:last],
            load,
            np.asarray(scale, dtype=np.float64),
            np.asarray(residual, dtype=np.float64),
        )

    def per_row(self, values: Float64s, n_rows: int) -> Float64s:
        """Sums (n_rows, ...) of `values` (g, ...) over the groups of each row."""
        indptr = np.searchsorted(self.row, np.arange(n_rows + 1))
        return segment_sums(indptr, np.arange(len(self.row)), np.ones(len(self.row)), values)

    def write(
        self, own: Side, rows: Float64s, mean: Float64s, covariance: Float64s, *, keep: float = math.nan
    ) -> tuple[Float64s, Float64s, Float64s]:
        """Write the periods that matter most to the slots of each row, the latest and that of key `keep`
        among them.

        Returns mean and variance (g,) of every effect and its covariance (g, d) with the row's posterior.
        """
        layout = own.layout
        effect = (self.sum - np.einsum("gd,gd->g", self.load, mean[self.row])) / self.scale
        shift = self.load / self.scale[:, None]
        shared = -np.einsum("gij,gj->gi", covariance[self.row], shift)
        variance = 1.0 / self.scale - np.einsum("gd,gd->g", shift, shared)
        last = np.searchsorted(self.row, self.row, side="right") - 1
        # The latest period of a row always has a slot; the others by how much they matter.
        always = (last == np.arange(len(self.row))) | (self.key == keep)
        matter = np.where(always, np.inf, np.abs(effect))
        order = np.lexsort((-matter, self.row))
        slot = np.empty(len(order), dtype=np.int64)
        slot[order] = np.arange(len(order)) - np.searchsorted(self.row, self.row)[order]
        kept = slot < layout.slots
        where = self.row[kept], slot[kept]
        rows[:, layout.keys][where] = self.key[kept]
        rows[:, layout.effects][where] = effect[kept]
        rows[:, layout.variances][where] = variance[kept]
        return effect, variance, shared
