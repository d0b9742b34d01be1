"""Effects of the sessions of a row (the days of a user), marginalised out of its posterior and then read
back.

Invariant: posterior and effects are those of the joint Gaussian; nothing is iterated.

With `a = sum w f`, `n = sum w + 1 / t`, `s = sum w (y - b)` over the entries of one session, `t` the prior
variance of an effect, the precision of the row loses `a a^T / n` and its linear term `a s / n` (a Schur
complement); afterwards the effect has mean `(s - a . x) / n` and variance `1 / n + a^T S a / n^2`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factors.inference.histories import Sessions
from factors.inference.ordinal import Sites
from factors.inference.segments import segment_sums
from factors.inference.side_moments import SideMoments
from factors.model.layout import outer, unpack
from factors.model.parameters import Side
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Effects:
    """Of each session group its effect's `mean` and `variance` (G,), and its covariance `shared` (G, D) with
    the row.
    """

    mean: Float64s
    variance: Float64s
    shared: Float64s

    @staticmethod
    def together(parts: Sequence["Effects"]) -> "Effects":
        """Those of several blocks, one after the other."""
        if not parts:
            return NO_EFFECTS
        return Effects(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.variance for part in parts]),
            np.concatenate([part.shared for part in parts]),
        )


NO_EFFECTS = Effects(np.zeros(0), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True)
class Groups:
    """The sessions of one block of rows, from the group `first` of all on: `row` (g,) within the block; row
    `j` has the groups `of_row[j]` to `of_row[j + 1]`. Group `k` has the entries `entry[indptr[k]:indptr[k +
    1]]`, whose other rows have `features` (len(entry), D), with `-age f` after `f` where rows move, and
    `bias` (len(entry),); `group`: of each entry, among all.
    """

    first: int
    row: Int64s
    of_row: Int64s
    entry: Int64s
    group: Int64s
    indptr: Int64s
    features: Float64s
    bias: Float64s

    @staticmethod
    def of(
        sessions: Sessions | None,
        others: SideMoments,
        columns: Int64s | None,
        powers: Float64s | None,
        *,
        start: int,
        stop: int,
    ) -> "Groups | None":
        """The groups of the rows from `start` to `stop`; None where there are none. `columns` (n,) as for
        `segment_sums`, `powers` (3, n): 1, -age, age^2 of each entry, where rows move.
        """
        if sessions is None:
            return None
        first, last = np.searchsorted(sessions.row, [start, stop]).tolist()
        if first == last:
            return None
        low, high = np.searchsorted(sessions.group, [first, last]).tolist()
        entry, row = sessions.entry[low:high], sessions.row[first:last] - start
        where = entry if columns is None else columns[entry]
        features = others.features[where]
        if powers is not None:
            features = np.hstack([features, powers[1, entry, None] * features])
        group = sessions.group[low:high]
        indptr = np.searchsorted(group, np.arange(first, last + 1))
        of_row = np.searchsorted(row, np.arange(stop - start + 1))
        return Groups(first, row, of_row, entry, group, indptr, features, others.bias[where])

    def add(self, effects: Effects, mean: Float64s, variance: Float64s) -> None:
        """Add to `mean` and `variance` (n,) of the scores of all entries what the effects are to them."""
        entry, group = self.entry, self.group
        mean[entry] += effects.mean[group]
        shared = np.einsum("nd,nd->n", self.features, effects.shared[group])
        shared *= 2.0
        shared += effects.variance[group]
        variance[entry] += shared

    def sums(self, own: Side, sites: Sites) -> "GroupSums":
        """What `sites` say to these groups."""
        weight, starts = sites.weight[self.entry], self.indptr[:-1]
        load = segment_sums(self.indptr, None, weight, self.features)
        scale = np.add.reduceat(weight, starts, dtype=np.float64)
        scale += 1.0 / own.session_variance
        surprise = sites.linear[self.entry] - weight * self.bias
        total = np.add.reduceat(surprise, starts, dtype=np.float64)
        return GroupSums(self, load, scale, total, load / scale[:, None])


@dataclass(frozen=True, slots=True)
class GroupSums:
    """`load` (g, D), `scale`, `sum` (g,) of the `groups`: `a`, `n`, `s` of the module's docstring; `shift`:
    `a / n`.
    """

    groups: Groups
    load: Float64s
    scale: Float64s
    sum: Float64s
    shift: Float64s

    def taken(self) -> tuple[Float64s, Float64s]:
        """What the rows lose: precision (b, D, D) and linear term (b, D)."""
        of_row = self.groups.of_row
        linear = segment_sums(of_row, None, self.sum, self.shift)
        if len(of_row) == 2:
            return np.matmul(self.shift.T, self.load)[None], linear
        packed = segment_sums(of_row, None, 1.0 / self.scale, outer(self.load))
        return unpack(packed, self.load.shape[1]), linear

    def effects(self, mean: Float64s, covariance: Float64s) -> Effects:
        """The effects, from the posteriors of the rows: `mean` (b, D), `covariance` (b, D, D)."""
        row, shift = self.groups.row, self.shift
        if len(mean) == 1:
            effect = self.sum - self.load @ mean[0]
            shared = shift @ covariance[0]
        else:
            effect = self.sum - np.einsum("gd,gd->g", self.load, mean[row])
            shared = np.einsum("gij,gj->gi", covariance[row], shift)
        effect /= self.scale
        variance = 1.0 / self.scale + np.einsum("gd,gd->g", shift, shared)
        return Effects(effect, variance, np.negative(shared, out=shared))


def write_slots(
    own: Side, rows: Float64s, sessions: Sessions, effects: Effects, *, keep: float = math.nan
) -> None:
    """Write the sessions that matter most to the slots of each row of `rows`, the latest and that of key
    `keep` among them.
    """
    layout, row = own.layout, sessions.row
    last = np.searchsorted(row, row, side="right") - 1
    # The latest session of a row always has a slot; the others by how much they matter.
    always = (last == np.arange(len(row))) | (sessions.key == keep)
    matter = np.where(always, np.inf, np.abs(effects.mean))
    order = np.lexsort((-matter, row))
    slot = np.empty(len(order), dtype=np.int64)
    slot[order] = np.arange(len(order)) - np.searchsorted(row, row)[order]
    kept = slot < layout.slots
    where = row[kept], slot[kept]
    rows[:, layout.keys][where] = sessions.key[kept]
    rows[:, layout.effects][where] = effects.mean[kept]
    rows[:, layout.variances][where] = effects.variance[kept]
