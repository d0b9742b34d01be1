"""One half-step of variational ALS: the posteriors of one side given the other. Both the fit and the fold-in
are this.

Invariant: a row depends on its own history, the other table and the parameters alone, so that folding in from
a full history gives what the batch gives.

With `f = [latent, 1]` and `b` the bias of an other row, the posterior of `x` (dimension d) has, for ratings
`y`,

    precision = P + w sum E[f f^T]                    linear term = P m + w sum (f (y - mu) - E[f b])

where `P`, `m` are prior precision and mean and `w` the inverse noise variance (Lim and Teh, 2007, with full
covariances and biases inside). `m` has the mean of the other rows' implicit effects times the square root of
their count (Koren, 2008). With the ordinal link each rating has a weight and a target of its own (`ordinal`),
which depend on the posterior: the half-step is then a fixed point. A row that moves has a velocity beside
`x`: the same with `[f, -age f]` in place of `f` (`drift`).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from factors.inference.cold_start import Priors, priors_of
from factors.inference.drift import ages, anchor_times
from factors.inference.entry_moments import EntryMoments, Posterior, spread_of
from factors.inference.histories import Compressed, Sessions, group_sessions
from factors.inference.ordinal import (
    EntryScores,
    Sites,
    fold_in_damping,
    level_bounds,
    ordinal_sites,
    rating_levels,
)
from factors.inference.segments import segment_sums
from factors.inference.session_effects import NO_EFFECTS, Effects, Groups, write_slots
from factors.inference.side_moments import SideMoments, prior_rows
from factors.model.layout import COUNT, RATING_MEAN, Layout, pack, unpack
from factors.model.parameters import Parameters, Side, SideName
from factors.model.quantized_rows import Table
from factors.model.types import Bools, Float64s, Int64s

_NOTHING: Float64s = np.zeros(0)
# Damped steps to an ordinal posterior shrink by a factor of about 0.3: so many reach the last float32 digit.
FOLD_IN_STEPS = 30
AT_REST = 1e-7


@dataclass(frozen=True, slots=True)
class HalfStep:
    """Posterior `rows` (b, width); of each session group its effect's mean and variance (G,) and its
    covariance (G, d) with the row; the `sites` that gave them, where they are kept; the expected sum of
    squares of ratings less scores, NaN where it is not known. Of rows that move, `covariance` (b, 2d, 2d) is
    that of position and velocity, and `session_covariance` is (G, 2d).
    """

    rows: Float64s
    session_effect: Float64s
    session_variance: Float64s
    session_covariance: Float64s
    sites: Sites | None
    expected_squares: float = math.nan
    covariance: Float64s | None = None


def half_step(
    parameters: Parameters,
    name: SideName,
    table: Table,
    data: Compressed,
    *,
    sessions: Sessions | None = None,
    begin: HalfStep | None = None,
    steps: int = FOLD_IN_STEPS,
    damping: float | None = None,
    block_rows: int = 8192,
    new: Bools | None = None,
    keep: float = math.nan,
) -> HalfStep:
    """Posterior rows (b, width) of side `name` from its histories `data` and the `table` (n, width) of the
    other side.

    `sessions`: the groups of `data` where the caller has them already. The implicit effect of the rows is
    left 0. With the ordinal link the posterior is a fixed point: at most `steps` steps towards it, from
    `begin` or else from the prior, each `damping` of the way that it points, ending when no row moves any
    more. `new` (b,): the rows that came after the fit (`cold_start`). `keep`: key of a session that the rows
    must keep.
    """
    own, _ = parameters.side(name)
    sessions = _sessions(own, data, sessions)
    given = EntryMoments.of(parameters, name, table, data, sessions=sessions, block_rows=block_rows)
    solver = _Solver.of(given, new)
    posterior, sites = _fixed_point(parameters, solver, begin, steps=steps, damping=damping)
    rows = _written(given, posterior, sessions, keep)
    effects = posterior.effects or NO_EFFECTS
    return HalfStep(rows, effects.mean, effects.variance, effects.shared, sites, covariance=posterior.joint)


def _sessions(own: Side, data: Compressed, sessions: Sessions | None) -> Sessions | None:
    if own.session_variance <= 0 or not own.layout.slots:
        return None
    return group_sessions(data, own.session_length) if sessions is None else sessions


def _fixed_point(
    parameters: Parameters,
    solver: "_Solver",
    begin: HalfStep | None,
    *,
    steps: int,
    damping: float | None,
) -> tuple[Posterior, Sites | None]:
    given, noise = solver.given, parameters.noise
    if parameters.link == "gaussian":
        weight = np.full(len(given.offset), 1.0 / noise)
        sites = Sites(weight, weight * (given.data.value - given.offset), _NOTHING, _NOTHING)
        return solver.solve(sites), sites
    cuts, dim = parameters.cuts, given.own.layout.dim
    damping = damping or fold_in_damping(cuts, noise)
    bounds = level_bounds(cuts, rating_levels(parameters.scale, given.data.value))
    posterior = given.start() if begin is None else _begun(given, begin)
    before = None if begin is None else begin.sites
    at_rest = AT_REST * math.sqrt(noise)
    for _ in range(steps):
        before = ordinal_sites(bounds, noise, given.scores(posterior), before, damping=damping)
        earlier, posterior = posterior, solver.solve(before)
        moved = posterior.mean[:, :dim] - earlier.mean[:, :dim]
        if np.abs(moved, out=moved).max(initial=0.0) < at_rest:
            break
    return posterior, before


def entry_scores(
    parameters: Parameters,
    name: SideName,
    table: Table,
    data: Compressed,
    *,
    current: HalfStep,
    sessions: Sessions | None,
) -> EntryScores:
    """What the `current` posteriors of side `name` and the `table` of the other side say of each entry of
    `data`.
    """
    given = EntryMoments.of(parameters, name, table, data, sessions=sessions, block_rows=max(data.rows, 1))
    return given.scores(_begun(given, current))


def _begun(given: EntryMoments, current: HalfStep) -> Posterior:
    layout = given.own.layout
    mean, spread = current.rows[:, layout.mean], current.rows[:, layout.covariance]
    posterior = given.positions(mean, spread)
    if given.powers is not None:
        mean = np.hstack([mean, current.rows[:, layout.velocity]])
        spread = posterior.spread if current.covariance is None else spread_of(current.covariance, layout.dim)
        posterior = Posterior(mean, spread, current.covariance)
    if current.sites is None:
        return posterior
    effects = Effects(current.session_effect, current.session_variance, current.session_covariance)
    return replace(posterior, effects=effects)


def entry_ages(own: Side, data: Compressed) -> Float64s | None:
    """How long before the latest rating of its row each entry (n,) of `data` was; None where rows do not
    move.
    """
    return None if own.drift is None else ages(own.drift, anchor_times(own.drift, data)[data.row], data.time)


def rows_then(layout: Layout, current: HalfStep, row: Int64s, age: Float64s) -> Float64s:
    """Rows `row` (m,) of `current`, which move, with mean and covariance as they were `age` (m,) before."""
    rows, back = current.rows[row], age[:, None]
    rows[:, layout.mean] -= back * rows[:, layout.velocity]
    if current.covariance is not None:
        spread = spread_of(current.covariance, layout.dim)[row]
        mixed, moved = spread[:, layout.packed : 2 * layout.packed], spread[:, 2 * layout.packed :]
        rows[:, layout.covariance] -= back * (mixed - back * moved)
    return rows


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows `start` to `stop`, with the `entries` that `indptr` (b + 1,) parts; `linear` (b, D): precision of
    the prior times its mean, `bare` (b,) as for `Priors`.
    """

    start: int
    stop: int
    entries: slice
    indptr: Int64s
    linear: Float64s
    bare: Bools | None
    groups: Groups | None


@dataclass(frozen=True, slots=True)
class _Solver:
    """Posteriors of the rows of `given` from sites: their `priors`, the means (b, d) of these, and the
    precisions (D, D) of rows that are not bare and of those that are.
    """

    given: EntryMoments
    priors: Priors
    prior_mean: Float64s
    precision: Float64s
    cold_precision: Float64s
    blocks: tuple[_Block, ...]

    @staticmethod
    def of(given: EntryMoments, new: Bools | None) -> "_Solver":
        own, data, columns = given.own, given.data, given.columns
        counts = data.counts.astype(np.float64)
        priors = priors_of(own, counts, new)
        sets = _implicit_effects(own, given.others)
        shown = segment_sums(data.indptr, columns, np.ones(len(data.other)), sets)
        mean = priors.base + priors.share[:, None] * (shown - counts[:, None] * priors.pull)
        linear, bare = mean @ priors.precision, priors.bare
        if bare is not None:
            linear[bare] = mean[bare] @ priors.cold_precision
        if own.drift is not None:
            linear = np.hstack([linear, np.zeros_like(linear)])
        blocks, starts = [], range(0, data.rows, given.block_rows)
        for start, groups in zip(starts, given.groups, strict=True):
            rows = slice(start, min(start + given.block_rows, data.rows))
            indptr = data.indptr[start : rows.stop + 1]
            entries = slice(int(indptr[0]), int(indptr[-1]))
            of_rows = None if bare is None else bare[rows]
            blocks.append(
                _Block(start, rows.stop, entries, indptr - entries.start, linear[rows], of_rows, groups)
            )
        precision, cold_precision = (_joined(own, p) for p in (priors.precision, priors.cold_precision))
        return _Solver(given, priors, mean, precision, cold_precision, tuple(blocks))

    def solve(self, sites: Sites) -> Posterior:
        """The posteriors that `sites` lead to."""
        if len(self.blocks) == 1:
            return self._solve_block(self.blocks[0], sites)
        given, layout = self.given, self.given.own.layout
        rows, width, powers = given.data.rows, self.precision.shape[1], given.powers
        mean = np.empty((rows, width))
        spread = np.empty((rows, layout.packed * (1 if powers is None else len(powers))))
        joint = None if powers is None else np.empty((rows, width, width))
        effects = []
        for block in self.blocks:
            part, here = slice(block.start, block.stop), self._solve_block(block, sites)
            mean[part], spread[part] = here.mean, here.spread
            if joint is not None:
                joint[part] = here.joint
            if block.groups is not None and here.effects is not None:
                effects.append(here.effects)
        return Posterior(mean, spread, joint, Effects.together(effects))

    def _solve_block(self, block: _Block, sites: Sites) -> Posterior:
        given, own, entries, indptr = self.given, self.given.own, block.entries, block.indptr
        others, columns, powers = given.others, given.columns, given.powers
        second, cross, features = others.second, others.cross, others.features
        if columns is None:
            second, cross, features = second[entries], cross[entries], features[entries]
        else:
            columns = columns[entries]
        weight, pull = sites.weight[entries], sites.linear[entries]
        once = weight
        if powers is not None:
            here = powers[:, entries]
            weight, pull = weight * here, pull * here[:2]
            once = weight[:2]
        dim, width = own.layout.dim, self.precision.shape[1]
        packed = segment_sums(indptr, columns, weight, second)
        if powers is None:
            precision = unpack(packed, dim)
        else:
            precision = packed.take(_joint_index(dim), axis=1).reshape(-1, width, width)
        precision += self._prior_precision(block)
        linear = block.linear + segment_sums(indptr, columns, pull, features)
        linear -= segment_sums(indptr, columns, once, cross)
        sums = None
        if block.groups is not None:
            sums = block.groups.sums(own, sites)
            lost, lost_linear = sums.taken()
            precision -= lost
            linear -= lost_linear
        covariance: Float64s = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        mean = np.matmul(covariance, linear[:, :, None])[:, :, 0]
        covariance = covariance + covariance.transpose(0, 2, 1)
        covariance *= 0.5
        effects = NO_EFFECTS if sums is None else sums.effects(mean, covariance)
        if powers is None:
            return Posterior(mean, pack(covariance), None, effects)
        return Posterior(mean, spread_of(covariance, dim), covariance, effects)

    def _prior_precision(self, block: _Block) -> Float64s:
        if block.bare is None:
            return self.precision
        if block.bare.all():
            return self.cold_precision
        return np.where(block.bare[:, None, None], self.cold_precision, self.precision)


def _joined(own: Side, precision: Float64s) -> Float64s:
    """The prior precision of rows, with that of their velocities where they move."""
    if own.drift is None:
        return precision
    dim = len(precision)
    joint = np.zeros((2 * dim, 2 * dim))
    joint[:dim, :dim], joint[dim:, dim:] = precision, own.drift.precision
    return joint


@lru_cache(maxsize=64)
def _joint_index(dim: int) -> Int64s:
    """Where the entries of the full matrices (2 d, 2 d) stand in three packed ones (d, d) side by side."""
    part = dim * (dim + 1) // 2
    index = unpack(np.arange(part, dtype=np.float64), dim).astype(np.int64)
    return np.block([[index, index + part], [index + part, index + 2 * part]]).ravel()


def _written(given: EntryMoments, posterior: Posterior, sessions: Sessions | None, keep: float) -> Float64s:
    """The rows (b, width) of `posterior`."""
    own, data = given.own, given.data
    layout, rows = own.layout, prior_rows(own, data.rows)
    counts = data.counts
    rows[:, COUNT] = counts
    sums = np.bincount(given.row, data.value, data.rows)
    rows[:, RATING_MEAN] = sums / np.maximum(counts, 1)
    rows[:, layout.mean] = posterior.mean[:, : layout.dim]
    rows[:, layout.covariance] = posterior.spread[:, : layout.packed]
    if given.anchor_time is not None:
        rows[:, layout.velocity] = posterior.mean[:, layout.dim :]
        rows[:, layout.anchor_time] = given.anchor_time
    if sessions is not None and posterior.effects is not None:
        write_slots(own, rows, sessions, posterior.effects, keep=keep)
    return rows


def _implicit_effects(own: Side, others: SideMoments) -> Float64s:
    """Implicit effects of the others; those that no fit has learned are the average one."""
    if own.cold_start is None or own.implicit_ridge <= 0:
        return others.implicit_effect
    unknown = ~others.implicit_effect.any(axis=1)
    if not unknown.any():
        return others.implicit_effect
    implicit_effect = others.implicit_effect.copy()
    implicit_effect[unknown] = own.cold_start.effect
    return implicit_effect


def entry_terms(
    parameters: Parameters,
    name: SideName,
    table: Table,
    data: Compressed,
    *,
    new: bool = False,
) -> tuple[Float64s, Float64s]:
    """What each entry of the one history `data` adds to the linear term beyond what the prior mean foretells,
    and to that mean.

    Both (n, d). With `S` the posterior covariance: posterior mean = mean without ratings + sum of the
    second + S sum of the first. `new`: whether the row came after the fit.
    """
    own, _ = parameters.side(name)
    given = EntryMoments.of(parameters, name, table, data, sessions=_sessions(own, data, None), block_rows=1)
    solver = _Solver.of(given, np.array([new]))
    posterior, sites = _fixed_point(parameters, solver, None, steps=FOLD_IN_STEPS, damping=None)
    others, priors, dim = given.others, solver.priors, own.layout.dim
    index = np.arange(len(data.other)) if given.columns is None else given.columns
    implicit_terms = priors.share * (_implicit_effects(own, others)[index] - priors.pull)
    if sites is None:
        return np.zeros_like(implicit_terms), implicit_terms
    prior_mean, weight = solver.prior_mean[0], sites.weight[:, None]
    second = unpack(others.second[index], dim)
    features = others.features[index]
    terms = sites.linear[:, None] * features - weight * (others.cross[index] + second @ prior_mean)
    if given.powers is not None:
        terms = np.hstack([terms, given.powers[1][:, None] * terms])
    groups = given.groups[0]
    if groups is not None:
        sums = groups.sums(own, sites)
        surprise = sites.linear - sites.weight * (others.bias[index] + features @ prior_mean)
        load = (sums.load / sums.scale[:, None])[groups.group]
        terms[groups.entry] -= load * surprise[groups.entry][:, None]
    if posterior.joint is not None:
        # What the velocity learns moves the position too: S_x^-1 S_xv takes the one into units of the other.
        joint = posterior.joint[0]
        terms = terms[:, :dim] + terms[:, dim:] @ np.linalg.solve(joint[:dim, :dim], joint[:dim, dim:]).T
    return terms, implicit_terms
