"""What a half-step is given: of each entry what no posterior changes, and the score that a posterior then
says of it.

Invariant: nothing here is changed by a round of the fixed point, so that it is read once for all of them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from factors.inference.drift import ages, anchor_times
from factors.inference.histories import Compressed, Sessions
from factors.inference.ordinal import EntryScores
from factors.inference.segments import FEW, entry_products
from factors.inference.session_effects import Effects, Groups
from factors.inference.side_moments import SideMoments, gather_side_moments
from factors.model.layout import outer, pack, triangle
from factors.model.parameters import Parameters, Side, SideName
from factors.model.quantized_rows import Table
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Posterior:
    """Of b rows: `mean` (b, D) of `[latent, bias]`, with the velocity after it where rows move (D = 2 d);
    `spread` (b, packed) packed covariance, and where rows move (b, 3 packed), what 1, -age and age^2
    multiply: beside it twice the symmetric part of the covariance of position and velocity, and that of the
    velocity. There `joint` (b, D, D) is the covariance of both. `effects`: of the sessions; None where no
    rating has been seen.
    """

    mean: Float64s
    spread: Float64s
    joint: Float64s | None = None
    effects: Effects | None = None


@dataclass(frozen=True, slots=True)
class EntryMoments:
    """The entries (n,) of a half-step. `row`: their row; `columns` as for `segment_sums`: where they find
    their other row in `others`; `offset`: the part of a score that is given; `powers` (3, n): 1, -age, age^2,
    where rows move, and `anchor_time` (b,), when they stood at their mean; `groups`: the sessions, one for
    each block of `block_rows` rows.
    """

    own: Side
    others: SideMoments
    data: Compressed
    row: Int64s
    columns: Int64s | None
    offset: Float64s
    powers: Float64s | None
    anchor_time: Float64s | None
    groups: tuple[Groups | None, ...]
    block_rows: int

    @staticmethod
    def of(
        parameters: Parameters,
        name: SideName,
        table: Table,
        data: Compressed,
        *,
        sessions: Sessions | None,
        block_rows: int,
    ) -> "EntryMoments":
        """The entries of `data`, the histories of side `name`, of which `table` has the other side."""
        own, other = parameters.side(name)
        others, index = gather_side_moments(other, table, data)
        columns: Int64s | None = index
        if len(index) <= FEW:
            if len(others.bias) > len(index) or not np.array_equal(index, np.arange(len(index))):
                others = _taken(others, index)
            columns = None
        row = data.row
        anchor_time, powers = None, None
        if own.drift is not None:
            anchor_time = anchor_times(own.drift, data)
            back = -ages(own.drift, anchor_time[row], data.time)
            powers = np.stack([np.ones(len(back)), back, back * back])
        starts = range(0, data.rows, block_rows)
        groups = tuple(
            Groups.of(sessions, others, columns, powers, start=start, stop=min(start + block_rows, data.rows))
            for start in starts
        )
        offset = parameters.mean + others.session_effect
        return EntryMoments(own, others, data, row, columns, offset, powers, anchor_time, groups, block_rows)

    def scores(self, at: Posterior) -> EntryScores:
        """What the posterior `at` says of each entry."""
        own, others, columns, powers = self.own, self.others, self.columns, self.powers
        layout = own.layout
        multiplicity = triangle(layout.dim)[2]
        latent_packed = layout.rank * (layout.rank + 1) // 2
        parts = 1 if powers is None else len(powers)
        several = (len(at.mean), parts, layout.packed)
        spread, shared = at.spread.reshape(several), _squares(at.mean, layout.dim)
        # A view, so that `shared` is weighed with it.
        by_part = shared.reshape(several)
        by_part[:, :, :latent_packed] += spread[:, :, :latent_packed]
        by_part *= multiplicity
        weighed = (spread * multiplicity).reshape(shared.shape)
        once = None if powers is None else powers[:2]
        # The feature of the bias is 1.
        mean = entry_products(self.row, columns, once, at.mean, others.features)
        mean += others.bias if columns is None else others.bias[columns]
        mean += self.offset
        own_variance = entry_products(self.row, columns, powers, weighed, others.direct)
        other_variance = entry_products(self.row, columns, powers, shared, others.covariance)
        other_variance += others.session_variance
        for groups in self.groups:
            if groups is None:
                continue
            if at.effects is None:
                own_variance[groups.entry] += own.session_variance
            else:
                groups.add(at.effects, mean, own_variance)
        return EntryScores(mean, own_variance, other_variance, self.offset)

    def start(self) -> Posterior:
        """Rows of which nothing is known but the prior."""
        own, rows = self.own, self.data.rows
        prior = own.cold_start or own
        return self.positions(
            np.broadcast_to(prior.mean, (rows, len(prior.mean))), pack(prior.covariance[None])
        )

    def positions(self, mean: Float64s, spread: Float64s) -> Posterior:
        """Rows that stand at `mean` (b, d) with the packed covariance `spread` (b, packed), or (1, packed) of
        all; of their velocities nothing is known but the prior.
        """
        drift, b = self.own.drift, len(mean)
        spread = np.broadcast_to(spread, (b, spread.shape[1]))
        if drift is None:
            return Posterior(mean, spread)
        moved = np.broadcast_to(pack(drift.covariance), spread.shape)
        still = np.zeros_like(mean)
        return Posterior(np.hstack([mean, still]), np.hstack([spread, np.zeros(spread.shape), moved]))


def spread_of(joint: Float64s, dim: int) -> Float64s:
    """`Posterior.spread` (b, 3 packed) of rows that move, from the covariance (b, 2 d, 2 d)."""
    first, second = _joint_index(dim)
    flat = joint.reshape(len(joint), 4 * dim * dim)
    spread: Float64s = flat.take(first, axis=1)
    packed = len(second)
    spread[:, packed : 2 * packed] += flat.take(second, axis=1)
    return spread


@lru_cache(maxsize=64)
def _joint_index(dim: int) -> tuple[Int64s, Int64s]:
    rows, columns, _ = triangle(dim)
    width = 2 * dim
    mixed = rows * width + columns + dim
    first = np.concatenate([rows * width + columns, mixed, (rows + dim) * width + columns + dim])
    return first, columns * width + rows + dim


def _squares(mean: Float64s, dim: int) -> Float64s:
    """Packed outer products of what the covariances of other rows are weighed with, `[latent, 1]`; where
    there are velocities, of what 1, -age and age^2 multiply, side by side.
    """
    vectors = mean.copy()
    vectors[:, dim - 1] = 1.0
    if mean.shape[1] == dim:
        return outer(vectors)
    vectors[:, -1] = 0.0
    rows, columns, _ = triangle(dim)
    position, velocity = vectors[:, :dim], vectors[:, dim:]
    at_rows, at_columns = position.take(rows, axis=1), position.take(columns, axis=1)
    moved_rows, moved_columns = velocity.take(rows, axis=1), velocity.take(columns, axis=1)
    mixed = at_rows * moved_columns
    mixed += moved_rows * at_columns
    at_rows *= at_columns
    moved_rows *= moved_columns
    return np.concatenate([at_rows, mixed, moved_rows], axis=1)


def _taken(others: SideMoments, index: Int64s) -> SideMoments:
    """`others` with a row for each entry."""
    return replace(
        others,
        features=others.features[index],
        bias=others.bias[index],
        direct=others.direct[index],
        second=others.second[index],
        cross=others.cross[index],
        covariance=others.covariance[index],
        implicit_effect=others.implicit_effect[index],
    )
