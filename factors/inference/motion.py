"""How rows move between their ratings: `Still` rows do not, `Moving` ones have a velocity.

Invariant: a row depends on the times of its own ratings, never on the clock; and a half-step asks its motion,
it never tests which one it is.

The state of a row is `x = [latent, bias]` (D = d numbers) where it stands still, `[x, v]` (D = 2 d) where it
moves. A row that moves was at `x - a v` when it gave a rating of age `a`, counted back from its latest rating
in units of about the span of the training ratings: `x` is where it stood then, `v` its velocity, N(0, V) with
`V` by empirical Bayes. Both follow from one history in closed form, with `[f, -a f]` in place of the features
`f` of a half-step, so that an old rating counts as much as it still says of now. An unknown time is now.

So of the powers 1, -a, a^2 each multiplies one packed covariance: that of the position, twice the symmetric
part of that between position and velocity, and that of the velocity. They stand side by side in a posterior.
A row keeps `x` with its covariance, the mean of `v`, and when it stood at `x`: the other side reads it where
it was at each rating, with the covariance of `x`. (Keeping the joint covariance makes a row twice as long,
and the error in a drifting rating environment 0.244 in place of 0.247.)
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from factors.inference.histories import Compressed
from factors.model.layout import FloatTable, Layout, outer, pack, triangle, unpack
from factors.model.parameters import Drift, Side
from factors.model.types import Float64s, Int64s

# Older ratings count as if they were this old: a velocity does not hold for ever, and times may be nonsense.
MOST_AGE = 2.0
# Beyond these many units float32 could not tell times apart, and no age depends on it.
FARTHEST_TIME = 1e5


@dataclass(frozen=True, slots=True)
class Still:
    """Rows that stand still: each entry sees its row as it is."""

    layout: Layout
    # What each entry multiplies the parts of a covariance, and those of a mean, with; None for 1.
    powers: ClassVar[None] = None
    linear_powers: ClassVar[None] = None
    parts: ClassVar[int] = 1

    def state_precision(self, precision: Float64s) -> Float64s:
        """Return the prior precision (D, D) of states, from that of positions (d, d)."""
        return precision

    def states(self, positions: Float64s) -> Float64s:
        """Return means or linear terms (b, D) of states without velocity, from those of positions (b, d)."""
        return positions

    def covariances(self, positions: Float64s) -> Float64s:
        """Return packed covariances of states whose velocity is the prior, from those of positions."""
        return positions

    def weigh(self, site: Float64s, _entries: slice) -> Float64s:
        """Return the parts of a linear term that sites (n,) at `entries` give, one for each power."""
        return site

    def weigh_squares(self, weight: Float64s, _entries: slice) -> Float64s:
        """Return the same of weights, for a precision."""
        return weight

    def features(self, features: Float64s, _entry: Int64s) -> Float64s:
        """Return what each `entry` (m,) multiplies a state with (m, D), from its `features` (m, d)."""
        return features

    def unpack(self, packed: Float64s) -> Float64s:
        """Return matrices (b, D, D) from their packed parts (b, parts * packed)."""
        return unpack(packed, self.layout.dim)

    def pack(self, covariance: Float64s) -> Float64s:
        """Return the packed parts of covariances (b, D, D)."""
        return pack(covariance)

    def squares(self, mean: Float64s) -> Float64s:
        """Return packed outer products of `[latent, 1]`, which multiply the covariances of the other side."""
        vectors = mean.copy()
        vectors[:, -1] = 1.0
        return outer(vectors)

    def write(self, rows: Float64s, mean: Float64s, covariance: Float64s) -> tuple[Float64s, Float64s]:
        """Write posteriors to `rows` (b, width); return them, as views if rows hold all of them."""
        rows[:, self.layout.mean] = mean
        rows[:, self.layout.covariance] = covariance
        return rows[:, self.layout.mean], rows[:, self.layout.covariance]

    def rows_at(self, rows: Float64s, _covariance: Float64s, row: Int64s, _entries: Int64s) -> Float64s:
        """Return `rows[row]` (m, width) as they were at the `entries` (m,)."""
        return rows[row]

    def covariance_at(self, covariance: Float64s, _entries: Int64s) -> Float64s:
        """Return covariances with a state (m, D) as those with the position at `entries`, (m, d)."""
        return covariance

    def position_terms(self, terms: Float64s, _precision: Float64s) -> Float64s:
        """Linear terms (n, D) of one row as terms of its position alone, (n, d)."""
        return terms


@dataclass(frozen=True, slots=True)
class Moving:
    """Rows that move, with the methods of `Still`. `powers` (3, n): 1, -age, age^2 of each entry;
    `anchor_time` (b,): when each row stood at its mean.
    """

    layout: Layout
    drift: Drift
    anchor_time: Float64s
    powers: Float64s
    parts: ClassVar[int] = 3

    @property
    def linear_powers(self) -> Float64s:
        """1 and -age of each entry."""
        return self.powers[:2]

    def state_precision(self, precision: Float64s) -> Float64s:
        """Position and velocity are independent a priori."""
        dim = len(precision)
        joint = np.zeros((2 * dim, 2 * dim))
        joint[:dim, :dim], joint[dim:, dim:] = precision, self.drift.precision
        return joint

    def states(self, positions: Float64s) -> Float64s:
        return np.hstack([positions, np.zeros_like(positions)])

    def covariances(self, positions: Float64s) -> Float64s:
        velocity = np.broadcast_to(pack(self.drift.covariance), positions.shape)
        return np.hstack([positions, np.zeros(positions.shape), velocity])

    def weigh(self, site: Float64s, entries: slice) -> Float64s:
        """(2, n)."""
        return site * self.powers[:2, entries]

    def weigh_squares(self, weight: Float64s, entries: slice) -> Float64s:
        """(3, n)."""
        return weight * self.powers[:, entries]

    def features(self, features: Float64s, entry: Int64s) -> Float64s:
        """Return `[f, -age f]`."""
        return np.hstack([features, self.powers[1, entry, None] * features])

    def unpack(self, packed: Float64s) -> Float64s:
        width = 2 * self.layout.dim
        return packed.take(_unpack_index(self.layout.dim), axis=1).reshape(-1, width, width)

    def pack(self, covariance: Float64s) -> Float64s:
        first, second = _pack_index(self.layout.dim)
        flat = covariance.reshape(len(covariance), -1)
        parts: Float64s = flat.take(first, axis=1)
        packed = len(second)
        parts[:, packed : 2 * packed] += flat.take(second, axis=1)
        return parts

    def squares(self, mean: Float64s) -> Float64s:
        """Return what 1, -age and age^2 multiply, side by side."""
        dim = self.layout.dim
        vectors = mean.copy()
        vectors[:, dim - 1], vectors[:, -1] = 1.0, 0.0
        rows, columns, _ = triangle(dim)
        position, velocity = vectors[:, :dim], vectors[:, dim:]
        at_rows, at_columns = position.take(rows, axis=1), position.take(columns, axis=1)
        moved_rows, moved_columns = velocity.take(rows, axis=1), velocity.take(columns, axis=1)
        mixed = at_rows * moved_columns
        mixed += moved_rows * at_columns
        at_rows *= at_columns
        moved_rows *= moved_columns
        return np.concatenate([at_rows, mixed, moved_rows], axis=1)

    def write(self, rows: Float64s, mean: Float64s, covariance: Float64s) -> tuple[Float64s, Float64s]:
        """See `Still`; a row keeps the covariance of its position alone."""
        layout = self.layout
        rows[:, layout.mean] = mean[:, : layout.dim]
        rows[:, layout.covariance] = covariance[:, : layout.packed]
        rows[:, layout.velocity] = mean[:, layout.dim :]
        rows[:, layout.anchor_time] = self.anchor_time
        return mean, covariance

    def rows_at(self, rows: Float64s, covariance: Float64s, row: Int64s, entries: Int64s) -> Float64s:
        layout, moved, back = self.layout, rows[row], -self.powers[1, entries, None]
        moved[:, layout.mean] -= back * moved[:, layout.velocity]
        _, mixed, velocity = np.split(covariance[row], 3, axis=1)
        moved[:, layout.covariance] -= back * (mixed - back * velocity)
        return moved

    def covariance_at(self, covariance: Float64s, entries: Int64s) -> Float64s:
        dim = self.layout.dim
        return covariance[:, :dim] + self.powers[1, entries, None] * covariance[:, dim:]

    def position_terms(self, terms: Float64s, precision: Float64s) -> Float64s:
        """With the posterior `precision` (D, D), whose velocity is marginalised out."""
        # A term of the velocity moves the position too, by - L_xv L_vv^-1 times it (a Schur complement).
        dim = self.layout.dim
        return terms[:, :dim] - terms[:, dim:] @ np.linalg.solve(precision[dim:, dim:], precision[dim:, :dim])


Motion = Still | Moving


def motion_of(side: Side, data: Compressed) -> Motion:
    """Return how the rows of `side` whose histories are `data` move between their entries."""
    if side.drift is None:
        return Still(side.layout)
    # Entries look back from the latest rating of their row: powers alternate in sign.
    anchors = anchor_times(side.drift, data)
    return _moving(side.layout, side.drift, anchors, ages(side.drift, anchors[data.row], data.time))


def motion_at(side: Side, rows: FloatTable, time: Float64s) -> Motion:
    """Return how `rows` (n, width) of `side`, one for each entry, move between these entries at `time` (n,)
    and when they stood at their means.
    """
    if side.drift is None:
        return Still(side.layout)
    anchors: Float64s = rows[:, side.layout.anchor_time].astype(np.float64)
    return _moving(side.layout, side.drift, anchors, ages(side.drift, anchors, time))


def _moving(layout: Layout, drift: Drift, anchors: Float64s, age: Float64s) -> Moving:
    return Moving(layout, drift, anchors, np.stack([np.ones(len(age)), -age, age * age]))


def anchor_times(drift: Drift, data: Compressed) -> Float64s:
    """Return when the latest rating of each row was made, (b,); 0 for a row whose times are unknown."""
    known = np.isfinite(data.time)
    latest = np.full(data.rows, -np.inf)
    np.maximum.at(latest, data.row[known], data.time[known])
    # Rows without a known time stand at the origin, and all of their ages are 0.
    latest[np.isinf(latest)] = drift.origin
    return _counted(drift, latest)


def ages(drift: Drift, anchor_time: FloatTable, time: Float64s) -> Float64s:
    """Return the age (n,) of each `time` (n,) at `anchor_time` (n,), 0 to `MOST_AGE`; 0 where unknown."""
    known = np.isfinite(time)
    age = np.where(known, anchor_time - _counted(drift, np.where(known, time, drift.origin)), 0.0)
    np.maximum(age, 0.0, out=age)
    return np.minimum(age, MOST_AGE, out=age)


def _counted(drift: Drift, time: Float64s) -> Float64s:
    with np.errstate(over="ignore"):
        counted: Float64s = (time - drift.origin) / drift.unit
    np.maximum(counted, -FARTHEST_TIME, out=counted)
    return np.minimum(counted, FARTHEST_TIME, out=counted)


def means_at(side: Side, rows: FloatTable, time: Float64s) -> Float64s:
    """Return where `rows` (n, width) stood at `time` (n,): means (n, d). After its latest rating a row stays
    where that left it.
    """
    layout = side.layout
    mean = rows[:, layout.mean].astype(np.float64)
    if side.drift is not None:
        mean -= ages(side.drift, rows[:, layout.anchor_time], time)[:, None] * rows[:, layout.velocity]
    return mean


@lru_cache(maxsize=64)
def _unpack_index(dim: int) -> Int64s:
    """Return where the entries of full matrices (2 d, 2 d) stand in three packed ones (d, d) side by side."""
    part = dim * (dim + 1) // 2
    index = unpack(np.arange(part, dtype=np.float64), dim).astype(np.int64)
    return np.block([[index, index + part], [index + part, index + 2 * part]]).ravel()


@lru_cache(maxsize=64)
def _pack_index(dim: int) -> tuple[Int64s, Int64s]:
    """Return where the three packed parts stand in full matrices (2 d, 2 d), and the other half of the
    second."""
    rows, columns, _ = triangle(dim)
    width = 2 * dim
    mixed = rows * width + columns + dim
    first = np.concatenate([rows * width + columns, mixed, (rows + dim) * width + columns + dim])
    return first, columns * width + rows + dim
