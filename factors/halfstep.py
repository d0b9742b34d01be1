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
depend on the posterior: the half-step is then a fixed point.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from factors.histories import Compressed, Periods, group_periods
from factors.ordinal import EntryScores, Sites, fold_in_damping, ordinal_sites, rating_levels
from factors.others import Others, gather_others, prior_rows
from factors.packing import COUNT, RATING_MEAN, FloatTable, outer, pack, triangle, unpack
from factors.parameters import Parameters, Side, SideName
from factors.periodgroups import Groups
from factors.segments import segment_sums
from factors.tables import Bools, Float64s, Int64s
from factors.unseen import prior_means

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
    squares of ratings less scores, NaN where it is not known.
    """

    rows: Float64s
    period_effect: Float64s
    period_variance: Float64s
    period_covariance: Float64s
    sites: Sites | None
    expected_squares: float = math.nan


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

    def solve(sites: Sites) -> HalfStep:
        return _solve(
            own, others, index, sites, data, periods=periods, block_rows=block_rows, new=new, keep=keep
        )

    if parameters.link == "gaussian":
        weight = np.full(len(index), 1.0 / parameters.noise)
        sites = Sites(weight, weight * (data.value - offset), _NOTHING, _NOTHING)
        return _solve(
            own, others, index, sites, data, periods=periods, block_rows=block_rows, new=new, keep=keep
        )
    cuts = parameters.cuts
    damping = damping or fold_in_damping(cuts, parameters.noise)
    level = rating_levels(parameters.scale, data.value)
    current = begin or HalfStep(prior_rows(own, data.rows), _NOTHING, _NOTHING, _NOTHING, None)
    for _ in range(steps):
        scores = _entry_scores(own, others, index, data, periods=periods, current=current, offset=offset)
        sites = ordinal_sites(cuts, parameters.noise, level, scores, current.sites, damping=damping)
        before = current.rows
        current = _solve(
            own, others, index, sites, data, periods=periods, block_rows=block_rows, new=new, keep=keep
        )
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
    return _entry_scores(own, others, index, data, periods=periods, current=current, offset=offset)


def _entry_scores(
    own: Side,
    others: Others,
    index: Int64s,
    data: Compressed,
    *,
    periods: Periods | None,
    current: HalfStep,
    offset: Float64s,
) -> EntryScores:
    layout = own.layout
    multiplicity = triangle(layout.dim)[2]
    vectors = current.rows[:, layout.mean].copy()
    bias = vectors[:, -1].copy()
    vectors[:, -1] = 1.0
    spread = current.rows[:, layout.covariance] * multiplicity
    shared = outer(vectors) * multiplicity
    latent_packed = layout.rank * (layout.rank + 1) // 2
    shared[:, :latent_packed] += spread[:, :latent_packed]
    n = len(index)
    mean, own_variance, other_variance = np.empty(n), np.empty(n), np.empty(n)
    row = data.row
    for start in range(0, n, _ENTRIES_AT_ONCE):
        part = slice(start, start + _ENTRIES_AT_ONCE)
        at, of = index[part], row[part]
        mean[part] = np.einsum("nd,nd->n", vectors[of], others.features[at])
        own_variance[part] = np.einsum("nt,nt->n", spread[of], others.direct[at])
        other_variance[part] = np.einsum("nt,nt->n", shared[of], others.covariance[at])
    # The bias entry of the features is 1 on both sides.
    mean += bias[row] + others.bias[index] - 1.0 + offset
    if periods is not None and current.sites is None:
        own_variance[periods.entry] += own.period_variance
    elif periods is not None:
        mean[periods.entry] += current.period_effect[periods.group]
        shared = np.einsum(
            "nd,nd->n", others.features[index[periods.entry]], current.period_covariance[periods.group]
        )
        own_variance[periods.entry] += current.period_variance[periods.group] + 2.0 * shared
    return EntryScores(mean, own_variance, other_variance + others.period_variance, offset)


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
) -> HalfStep:
    result = prior_rows(own, data.rows)
    effects: list[tuple[Float64s, Float64s, Float64s]] = []
    for start in range(0, data.rows, block_rows):
        stop = min(start + block_rows, data.rows)
        groups = Groups.of(periods, own, others, index, sites, start=start, stop=stop)
        solved = _solve_block(
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
        )
        if solved is not None:
            effects.append(solved)
    if not effects:
        return HalfStep(result, _NOTHING, _NOTHING, _NOTHING, sites)
    effect, variance, shared = (np.concatenate(part) for part in zip(*effects, strict=True))
    return HalfStep(result, effect, variance, shared, sites)


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
) -> tuple[Float64s, Float64s, Float64s] | None:
    layout = own.layout
    indptr = data.indptr[start : start + len(rows) + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    indptr = indptr - indptr[0]
    counts = np.diff(indptr)
    columns = index[entries]
    weight = sites.weight[entries]
    sets = segment_sums(indptr, columns, np.ones(len(columns)), others.set_effect)
    prior = prior_means(own, counts.astype(np.float64), new)
    prior_mean = prior.base + prior.share[:, None] * (sets - counts[:, None] * prior.pull)
    precision = own.precision + unpack(segment_sums(indptr, columns, weight, others.second), layout.dim)
    linear = prior_mean @ own.precision - segment_sums(indptr, columns, weight, others.cross)
    linear += segment_sums(indptr, columns, sites.linear[entries], others.features)
    if groups is not None:
        precision -= unpack(
            groups.per_row(outer(groups.load) / groups.scale[:, None], len(counts)), layout.dim
        )
        linear -= groups.per_row(groups.load * (groups.sum / groups.scale)[:, None], len(counts))
    covariance: Float64s = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    mean = np.einsum("bij,bj->bi", covariance, linear)
    rows[:, COUNT] = counts
    sums = np.bincount(np.repeat(np.arange(len(counts)), counts), data.value[entries], len(counts))
    rows[:, RATING_MEAN] = sums / np.maximum(counts, 1)
    rows[:, layout.mean] = mean
    rows[:, layout.covariance] = pack(0.5 * (covariance + covariance.transpose(0, 2, 1)))
    return groups.write(own, rows, mean, covariance, keep=keep) if groups is not None else None


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
    sites = half_step(parameters, name, table, data, new=unseen).sites
    others, index = gather_others(other, table, data)
    others = _with_unknown_effects(own, others)
    features, bias = others.features[index], others.bias[index]
    prior = prior_means(own, np.array([float(len(index))]), unseen)
    set_terms = prior.share * (others.set_effect[index] - prior.pull)
    if sites is None:
        return np.zeros_like(set_terms), set_terms
    prior_mean = prior.base[0] + set_terms.sum(axis=0)
    weight = sites.weight[:, None]
    second = unpack(others.second[index], own.layout.dim)
    terms = sites.linear[:, None] * features - weight * (others.cross[index] + second @ prior_mean)
    periods = group_periods(data, own.period) if own.period_variance > 0 and own.layout.slots else None
    groups = Groups.of(periods, own, others, index, sites, start=0, stop=1)
    if groups is not None and periods is not None:
        entry = periods.entry
        surprise = sites.linear - sites.weight * (bias + features @ prior_mean)
        load = (groups.load / groups.scale[:, None])[periods.group]
        terms[entry] -= load * surprise[entry][:, None]
    return terms, set_terms
