"""One half-step of variational ALS: the posteriors of one side given the other. Both the fit and the fold-in
are this.

Invariant: a row depends on its own history, the other table and the parameters alone, so that folding in from
a full history gives what the batch gives.

With `f = [latent, 1]` and `b` the bias of an other row, the posterior of `x` (dimension d) has, for ratings
`y`,

    precision = P + w sum E[f f^T]                    linear term = P m + w sum (f (y - mu) - E[f b])

where `P`, `m` are prior precision and mean and `w` the inverse noise variance (Lim and Teh, 2007, with full
covariances and biases inside). `m` has the mean of the other rows' set effects times the square root of their
count (Koren, 2008). With the ordinal link each rating has a weight and a target of its own (`ordinal`), which
depend on the posterior: the half-step is then a fixed point. A row that moves has a velocity beside `x`: the
same with `[f, -age f]` in place of `f` (`drift`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from factors.drift import ages, moments
from factors.histories import Compressed, Periods, group_periods
from factors.ordinal import EntryScores, Sites, fold_in_damping, ordinal_sites, rating_levels
from factors.others import Others, gather_others, prior_rows
from factors.packing import COUNT, RATING_MEAN, FloatTable, Layout, outer, pack, triangle, unpack
from factors.parameters import Drift, Parameters, Side, SideName
from factors.periodgroups import Groups
from factors.segments import segment_sums
from factors.tables import Bools, Float64s, Int64s
from factors.unseen import priors_of

# Entries whose packed covariances are in the cache at once.
_ENTRIES_AT_ONCE = 1 << 12
_NOTHING: Float64s = np.zeros(0)
# Damped steps to an ordinal posterior shrink by a factor of about 0.3: so many reach the last float32 digit.
FOLD_IN_STEPS = 30
AT_REST = 1e-7


@dataclass(frozen=True, slots=True)
class HalfStep:
    """Posterior `rows` (b, width); of each period group its effect's mean and variance (G,) and its
    covariance (G, d) with the row; the `sites` that gave them, where they are kept; the expected sum of
    squares of ratings less scores, NaN where it is not known. Of rows that move, `covariance` (b, 2d, 2d) is
    that of position and velocity, and `period_covariance` is (G, 2d).
    """

    rows: Float64s
    period_effect: Float64s
    period_variance: Float64s
    period_covariance: Float64s
    sites: Sites | None
    expected_squares: float = math.nan
    covariance: Float64s | None = None


def half_step(
    parameters: Parameters,
    name: SideName,
    table: FloatTable,
    data: Compressed,
    *,
    periods: Periods | None = None,
    begin: HalfStep | None = None,
    steps: int = FOLD_IN_STEPS,
    damping: float | None = None,
    block_rows: int = 8192,
    new: Bools | None = None,
    keep: float = math.nan,
) -> HalfStep:
    """Posterior rows (b, width) of side `name` from its histories `data` and the `table` (n, width) of the
    other side.

    `periods`: the groups of `data` where the caller has them already. The set effect of the rows is left 0.
    With the ordinal link the posterior is a fixed point: at most `steps` steps towards it, from `begin` or
    else from the prior, each `damping` of the way that it points, ending when no row moves any more. `new`
    (b,): the rows that came after the fit (`unseen`). `keep`: key of a period that the rows must keep.
    """
    own, other = parameters.side(name)
    if own.period_variance <= 0 or not own.layout.slots:
        periods = None
    elif periods is None:
        periods = group_periods(data, own.period)
    others, index = gather_others(other, table, data)
    others = _with_unknown_effects(own, others)
    offset = parameters.mean + others.period_effect
    age = entry_ages(own, data)

    def solve(sites: Sites) -> HalfStep:
        return _solve(
            own,
            others,
            index,
            sites,
            data,
            periods=periods,
            block_rows=block_rows,
            new=new,
            keep=keep,
            age=age,
        )

    if parameters.link == "gaussian":
        weight = np.full(len(index), 1.0 / parameters.noise)
        return solve(Sites(weight, weight * (data.value - offset), _NOTHING, _NOTHING))
    cuts = parameters.cuts
    damping = damping or fold_in_damping(cuts, parameters.noise)
    level = rating_levels(parameters.scale, data.value)
    current = begin or HalfStep(prior_rows(own, data.rows), _NOTHING, _NOTHING, _NOTHING, None)
    for _ in range(steps):
        scores = _entry_scores(
            own, others, index, data, periods=periods, current=current, offset=offset, age=age
        )
        sites = ordinal_sites(cuts, parameters.noise, level, scores, current.sites, damping=damping)
        before = current.rows
        current = solve(sites)
        moved = np.abs(current.rows[:, own.layout.mean] - before[:, own.layout.mean]).max(initial=0.0)
        if moved < AT_REST * math.sqrt(parameters.noise):
            break
    return current


def entry_scores(
    parameters: Parameters,
    name: SideName,
    table: FloatTable,
    data: Compressed,
    *,
    current: HalfStep,
    periods: Periods | None,
) -> EntryScores:
    """What the `current` posteriors of side `name` and the `table` of the other side say of each entry of
    `data`.
    """
    own, other = parameters.side(name)
    others, index = gather_others(other, table, data)
    offset = parameters.mean + others.period_effect
    age = entry_ages(own, data)
    return _entry_scores(own, others, index, data, periods=periods, current=current, offset=offset, age=age)


def _entry_scores(
    own: Side,
    others: Others,
    index: Int64s,
    data: Compressed,
    *,
    periods: Periods | None,
    current: HalfStep,
    offset: Float64s,
    age: Float64s | None,
) -> EntryScores:
    layout = own.layout
    covariance = current.rows[:, layout.covariance]
    mixed, moved = _NOTHING, _NOTHING
    if age is not None and own.drift is not None:
        mixed, moved = _motion(own.drift, current, layout)
    multiplicity = triangle(layout.dim)[2]
    vectors = current.rows[:, layout.mean].copy()
    bias = vectors[:, -1].copy()
    vectors[:, -1] = 1.0
    velocity = current.rows[:, layout.velocity].copy()
    speed = velocity[:, -1].copy() if age is not None else _NOTHING
    velocity[:, -1:] = 0.0
    spread = covariance * multiplicity
    latent_packed = layout.rank * (layout.rank + 1) // 2
    shared = outer(vectors) * multiplicity
    shared[:, :latent_packed] += spread[:, :latent_packed]
    n = len(index)
    mean, own_variance, other_variance = np.empty(n), np.empty(n), np.empty(n)
    row = data.row
    for start in range(0, n, _ENTRIES_AT_ONCE):
        part = slice(start, start + _ENTRIES_AT_ONCE)
        at, of = index[part], row[part]
        if age is None:
            own_vectors, own_spread, own_shared = vectors[of], spread[of], shared[of]
        else:
            back = age[part, None]
            own_vectors = vectors[of] - back * velocity[of]
            own_spread = (covariance[of] - back * (mixed[of] - back * moved[of])) * multiplicity
            own_shared = outer(own_vectors) * multiplicity
            own_shared[:, :latent_packed] += own_spread[:, :latent_packed]
        mean[part] = np.einsum("nd,nd->n", own_vectors, others.features[at])
        own_variance[part] = np.einsum("nt,nt->n", own_spread, others.direct[at])
        other_variance[part] = np.einsum("nt,nt->n", own_shared, others.covariance[at])
    # The bias entry of the features is 1 on both sides.
    mean += bias[row] + others.bias[index] - 1.0 + offset
    if age is not None:
        mean -= age * speed[row]
    if periods is not None and current.sites is None:
        own_variance[periods.entry] += own.period_variance
    elif periods is not None:
        mean[periods.entry] += current.period_effect[periods.group]
        features = others.features[index[periods.entry]]
        if age is not None:
            features = np.hstack([features, -age[periods.entry, None] * features])
        shared = np.einsum("nd,nd->n", features, current.period_covariance[periods.group])
        own_variance[periods.entry] += current.period_variance[periods.group] + 2.0 * shared
    return EntryScores(mean, own_variance, other_variance + others.period_variance, offset)


def entry_ages(own: Side, data: Compressed) -> Float64s | None:
    """How long before the latest rating of its row each entry (n,) of `data` was; None where rows do not
    move.
    """
    return None if own.drift is None else ages(own.drift, moments(own.drift, data)[data.row], data.time)


def rows_then(layout: Layout, current: HalfStep, row: Int64s, age: Float64s) -> Float64s:
    """Rows `row` (m,) of `current`, which move, with mean and covariance as they were `age` (m,) before."""
    rows, back = current.rows[row], age[:, None]
    rows[:, layout.mean] -= back * rows[:, layout.velocity]
    if current.covariance is not None:
        mixed, moved = _joint_parts(current.covariance, layout.dim)
        rows[:, layout.covariance] -= back * (mixed[row] - back * moved[row])
    return rows


def _motion(drift: Drift, current: HalfStep, layout: Layout) -> tuple[Float64s, Float64s]:
    """Packed: twice the symmetric part of the covariance of position and velocity, and that of velocity."""
    if current.covariance is not None:
        return _joint_parts(current.covariance, layout.dim)
    # Nothing is known yet but the prior.
    shape = (len(current.rows), layout.packed)
    return np.zeros(shape), np.broadcast_to(pack(drift.covariance), shape)


def _joint_parts(covariance: Float64s, dim: int) -> tuple[Float64s, Float64s]:
    mixed = covariance[:, :dim, dim:]
    return pack(mixed + mixed.transpose(0, 2, 1)), pack(covariance[:, dim:, dim:])


def _solve(
    own: Side,
    others: Others,
    index: Int64s,
    sites: Sites,
    data: Compressed,
    *,
    periods: Periods | None,
    block_rows: int,
    new: Bools | None,
    keep: float,
    age: Float64s | None,
) -> HalfStep:
    result = prior_rows(own, data.rows)
    if own.drift is not None:
        result[:, own.layout.moment] = moments(own.drift, data)
    covariances: list[Float64s] = []
    effects: list[tuple[Float64s, Float64s, Float64s]] = []
    for start in range(0, data.rows, block_rows):
        stop = min(start + block_rows, data.rows)
        groups = Groups.of(periods, own, others, index, sites, start=start, stop=stop, age=age)
        covariance, solved = _solve_block(
            own,
            others,
            index,
            sites,
            data,
            groups=groups,
            rows=result[start:stop],
            start=start,
            new=None if new is None else new[start:stop],
            keep=keep,
            age=age,
        )
        if own.drift is not None:
            covariances.append(covariance)
        if solved is not None:
            effects.append(solved)
    effect, variance, shared = _NOTHING, _NOTHING, _NOTHING
    if effects:
        effect, variance, shared = (np.concatenate(part) for part in zip(*effects, strict=True))
    joint = np.concatenate(covariances) if covariances else None
    return HalfStep(result, effect, variance, shared, sites, covariance=joint)


def _solve_block(
    own: Side,
    others: Others,
    index: Int64s,
    sites: Sites,
    data: Compressed,
    *,
    groups: Groups | None,
    rows: Float64s,
    start: int,
    new: Bools | None,
    keep: float,
    age: Float64s | None,
) -> tuple[Float64s, tuple[Float64s, Float64s, Float64s] | None]:
    layout = own.layout
    indptr = data.indptr[start : start + len(rows) + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    indptr = indptr - indptr[0]
    counts = np.diff(indptr)
    columns = index[entries]
    weight = sites.weight[entries]
    sets = segment_sums(indptr, columns, np.ones(len(columns)), others.set_effect)
    prior = priors_of(own, counts.astype(np.float64), new)
    prior_mean = prior.base + prior.share[:, None] * (sets - counts[:, None] * prior.pull)
    precision = prior.precision + unpack(segment_sums(indptr, columns, weight, others.second), layout.dim)
    linear = (prior_mean[:, None, :] @ prior.precision)[:, 0]
    linear -= segment_sums(indptr, columns, weight, others.cross)
    linear += segment_sums(indptr, columns, sites.linear[entries], others.features)
    if own.drift is not None and age is not None:
        back = -age[entries]
        precision = _with_velocity(
            own.drift, precision, indptr, columns, weight=weight, back=back, others=others
        )
        pushed = segment_sums(indptr, columns, back * sites.linear[entries], others.features)
        pushed -= segment_sums(indptr, columns, back * weight, others.cross)
        linear = np.hstack([linear, pushed])
    if groups is not None:
        precision -= unpack(
            groups.per_row(outer(groups.load) / groups.scale[:, None], len(counts)), linear.shape[1]
        )
        linear -= groups.per_row(groups.load * (groups.sum / groups.scale)[:, None], len(counts))
    covariance: Float64s = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    mean = np.einsum("bij,bj->bi", covariance, linear)
    rows[:, COUNT] = counts
    sums = np.bincount(np.repeat(np.arange(len(counts)), counts), data.value[entries], len(counts))
    rows[:, RATING_MEAN] = sums / np.maximum(counts, 1)
    rows[:, layout.mean] = mean[:, : layout.dim]
    rows[:, layout.velocity] = mean[:, layout.dim :]
    covariance = 0.5 * (covariance + covariance.transpose(0, 2, 1))
    rows[:, layout.covariance] = pack(covariance[:, : layout.dim, : layout.dim])
    effects = groups.write(own, rows, mean, covariance, keep=keep) if groups is not None else None
    return covariance, effects


def _with_velocity(
    drift: Drift,
    precision: Float64s,
    indptr: Int64s,
    columns: Int64s,
    *,
    weight: Float64s,
    back: Float64s,
    others: Others,
) -> Float64s:
    """The precision (b, 2d, 2d) of position and velocity, from that of the position alone and minus the ages
    (n,) of the ratings.
    """
    rows, dim, _ = precision.shape
    joint = np.empty((rows, 2 * dim, 2 * dim))
    joint[:, :dim, :dim] = precision
    mixed = unpack(segment_sums(indptr, columns, back * weight, others.second), dim)
    joint[:, :dim, dim:] = joint[:, dim:, :dim] = mixed
    joint[:, dim:, dim:] = drift.precision
    joint[:, dim:, dim:] += unpack(segment_sums(indptr, columns, back * back * weight, others.second), dim)
    return joint


def _with_unknown_effects(own: Side, others: Others) -> Others:
    """Others whose set effect no fit has learned have the average one."""
    if own.unseen is None or own.set_ridge <= 0:
        return others
    unknown = ~others.set_effect.any(axis=1)
    if not unknown.any():
        return others
    set_effect = others.set_effect.copy()
    set_effect[unknown] = own.unseen.effect
    return replace(others, set_effect=set_effect)


def entry_terms(
    parameters: Parameters,
    name: SideName,
    table: FloatTable,
    data: Compressed,
    *,
    new: bool = False,
) -> tuple[Float64s, Float64s]:
    """What each entry of the one history `data` adds to the linear term beyond what the prior mean foretells,
    and to that mean.

    Both (n, d). With `S` the posterior covariance: posterior mean = mean without ratings + sum of the
    second + S sum of the first. `new`: whether the row came after the fit.
    """
    own, other = parameters.side(name)
    unseen = np.array([new])
    solved = half_step(parameters, name, table, data, new=unseen)
    sites, dim = solved.sites, own.layout.dim
    others, index = gather_others(other, table, data)
    others = _with_unknown_effects(own, others)
    features, bias = others.features[index], others.bias[index]
    prior = priors_of(own, np.array([float(len(index))]), unseen)
    set_terms = prior.share * (others.set_effect[index] - prior.pull)
    if sites is None:
        return np.zeros_like(set_terms), set_terms
    prior_mean = prior.base[0] + set_terms.sum(axis=0)
    weight = sites.weight[:, None]
    second = unpack(others.second[index], dim)
    terms = sites.linear[:, None] * features - weight * (others.cross[index] + second @ prior_mean)
    age = entry_ages(own, data)
    if age is not None:
        terms = np.hstack([terms, -age[:, None] * terms])
    periods = group_periods(data, own.period) if own.period_variance > 0 and own.layout.slots else None
    groups = Groups.of(periods, own, others, index, sites, start=0, stop=1, age=age)
    if groups is not None and periods is not None:
        entry = periods.entry
        surprise = sites.linear - sites.weight * (bias + features @ prior_mean)
        load = (groups.load / groups.scale[:, None])[periods.group]
        terms[entry] -= load * surprise[entry][:, None]
    if solved.covariance is not None:
        # What the velocity learns moves the position too: S_x^-1 S_xv takes the one into units of the other.
        joint = solved.covariance[0]
        terms = terms[:, :dim] + terms[:, dim:] @ np.linalg.solve(joint[:dim, :dim], joint[:dim, dim:]).T
    return terms, set_terms
