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
`x`: the same with `[f, -age f]` in place of `f` (`motion`).
"""

import math
from dataclasses import dataclass

import numpy as np

from factors.inference.cold_start import RowPriors, known_effects, row_priors
from factors.inference.entry_moments import Block, EntryMoments, HalfStepInput, Posterior
from factors.inference.ordinal import (
    NO_SITES,
    Sites,
    fold_in_damping,
    level_bounds,
    ordinal_sites,
)
from factors.inference.segments import segment_sums
from factors.inference.session_effects import (
    NO_EFFECTS,
    NoSessionBlock,
    SessionEffects,
    SessionSums,
    write_slots,
)
from factors.inference.side_moments import prior_rows, rests_on_attributes
from factors.model.layout import COUNT, RATING_MEAN, unpack
from factors.model.parameters import Parameters
from factors.model.scale import rating_levels
from factors.model.types import Float64s


@dataclass(frozen=True, slots=True)
class HalfStep:
    """Posterior `rows` (b, width), the same as a `posterior` with all that rows do not keep, and the `sites`
    that gave them. `expected_squares`: the expected sum of squares of ratings less scores, NaN where it is
    not known.
    """

    rows: Float64s
    posterior: Posterior
    sites: Sites
    expected_squares: float = math.nan


@dataclass(frozen=True, slots=True)
class Iteration:
    """How a half-step with the ordinal link approaches its fixed point: at most `steps` steps, each `damping`
    of the way that it points (None: as suits the noise), from `begin`, whose sites may be missing, or else
    from the prior. It ends when no row moves any more; loops go on with those that do. The Gaussian link
    needs no iteration. `scored`: the sites are to say what the scores are without their ratings, for which
    loops need 8 bytes a rating. `spent`: the rows of `begin` are not read any more, and may become those of
    the half-step.
    """

    # Damped steps to an ordinal posterior shrink by a factor of about 0.3: so many reach the last float32
    # digit.
    steps: int = 30
    damping: float | None = None
    begin: HalfStep | None = None
    # In units of the noise deviation: below the last digit of a float32 row.
    at_rest: float = 1e-7
    scored: bool = False
    spent: bool = False

    def damping_for(self, parameters: Parameters) -> float:
        """Return the damping for a model with these cut points and noise."""
        return self.damping or fold_in_damping(parameters.cuts, parameters.noise)

    def moved(self, parameters: Parameters, before: Float64s, after: Float64s) -> Float64s:
        """Return how far a step has moved each row (b,), whose means (b, d) it has led from `before` to
        `after`, in units of the noise deviation.
        """
        change = after - before
        found: Float64s = np.abs(change, out=change).max(axis=1, initial=0.0) / math.sqrt(parameters.noise)
        return found


TO_THE_END = Iteration()
# Rows whose matrices are in memory at once.
_BLOCK_ROWS = 8192


def begun(inputs: HalfStepInput, rows: Float64s) -> HalfStep | None:
    """Return what a half-step of `inputs` may begin with that has no sites yet: `rows` (b, width) from
    another one. None where these do not say all that they rest on, or nothing yet.
    """
    layout = inputs.own.layout
    if layout.moving or len(inputs.sessions) or not rows[:, COUNT].any():
        return None
    return HalfStep(rows, Posterior(rows[:, layout.mean], rows[:, layout.covariance]), NO_SITES)


def half_step(
    inputs: HalfStepInput, iteration: Iteration = TO_THE_END, *, keep_session: float = math.nan
) -> HalfStep:
    """Return posterior rows (b, width) of the rows of `inputs`; their implicit effects are left 0.

    `keep_session`: key of a session that the rows must keep.
    """
    own, data = inputs.own, inputs.data
    entries = EntryMoments.of(inputs, _BLOCK_ROWS)
    posterior, sites = _POSTERIOR_OF[inputs.parameters.link](_Solver.of(entries), iteration)
    rows = prior_rows(own, data.rows)
    rows[:, COUNT] = counts = data.counts
    rows[:, RATING_MEAN] = np.bincount(entries.row, data.value, data.rows) / np.maximum(counts, 1)
    if rests_on_attributes(own) and inputs.attributes is not None:
        # As `prior_rows` has it.
        rows[:, RATING_MEAN] += (counts == 0) & inputs.attributes.described
    # Of rows that stand still the posterior becomes a view of the rows: no second copy is kept.
    mean, covariance = entries.motion.write(rows, posterior.mean, posterior.covariance)
    if len(inputs.sessions):
        write_slots(own, rows, inputs.sessions, posterior.effects, keep=keep_session)
    return HalfStep(rows, Posterior(mean, covariance, posterior.effects), sites)


def entry_errors(inputs: HalfStepInput, step: HalfStep) -> tuple[Float64s, Float64s]:
    """Return of each entry of `inputs` the expected square of rating less score, and the mean of the score,
    under the posteriors of `step`.
    """
    scores = EntryMoments.of(inputs, max(inputs.data.rows, 1)).scores(step.posterior)
    square = (inputs.data.value - scores.mean) ** 2 + scores.own_variance + scores.other_variance
    return square, scores.mean


@dataclass(frozen=True, slots=True)
class _Solver:
    """Posteriors from sites: the `entries`, the `priors` of their rows, and of these the linear terms (b, D)
    and precisions (D, D) as the motion has them.
    """

    entries: EntryMoments
    priors: RowPriors
    linear: Float64s
    precision: Float64s
    cold_precision: Float64s

    @staticmethod
    def of(entries: EntryMoments) -> "_Solver":
        own, data, motion = entries.inputs.own, entries.inputs.data, entries.motion
        effects = known_effects(own, entries.other.implicit_effect)
        sums = segment_sums(data.indptr, entries.other.columns, np.ones(len(data.other)), effects)
        counts, inputs = data.counts.astype(np.float64), entries.inputs
        priors = row_priors(own, counts, inputs.new, sums, inputs.attributes)
        precision, cold = (motion.state_precision(p) for p in (priors.precision, priors.cold_precision))
        return _Solver(entries, priors, motion.states(priors.linear), precision, cold)

    def solve(self, sites: Sites) -> Posterior:
        """Return the posteriors that `sites` lead to."""
        blocks = self.entries.blocks
        if len(blocks) == 1:
            # A fold-in has one: nothing is copied.
            return self._solve_block(blocks[0], sites)
        mean = np.empty_like(self.linear)
        covariance = np.empty((len(mean), self.entries.motion.parts * self.entries.inputs.own.layout.packed))
        effects = []
        for block in blocks:
            part = self._solve_block(block, sites)
            mean[block.rows], covariance[block.rows] = part.mean, part.covariance
            if len(part.effects.mean):
                effects.append(part.effects)
        return Posterior(mean, covariance, SessionEffects.joined(effects) if effects else NO_EFFECTS)

    def _solve_block(self, block: Block, sites: Sites) -> Posterior:
        precision, linear, sums = self.normal_equations(block, sites)
        # The inverse is the posterior covariance, which every row keeps: a solve would not save it.
        covariance: Float64s = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        mean = np.matmul(covariance, linear[:, :, None])[:, :, 0]
        # Rounding leaves it not quite symmetric, and only one triangle is packed.
        covariance = covariance + covariance.transpose(0, 2, 1)
        covariance *= 0.5
        return Posterior(mean, self.entries.motion.pack(covariance), sums.effects(mean, covariance))

    def normal_equations(
        self, block: Block, sites: Sites
    ) -> tuple[Float64s, Float64s, SessionSums | NoSessionBlock]:
        """Precision (b, D, D) and linear term (b, D) of the rows of `block`, its sessions marginalised out,
        and the sums over these.
        """
        part, indptr, motion = block.entries, block.indptr, self.entries.motion
        other, columns = self.entries.other, self.entries.other.columns
        second, cross, features = other.second, other.cross, other.features
        if columns is None:
            second, cross, features = second[part], cross[part], features[part]
        else:
            columns = columns[part]
        weight = sites.weight[part]
        squares = motion.weigh_squares(weight, part)
        precision = motion.unpack(segment_sums(indptr, columns, squares, second))
        precision += self._prior_precision(block.rows)
        seen = motion.weigh(sites.linear[part], part)
        linear = self.linear[block.rows] + segment_sums(indptr, columns, seen, features)
        linear -= segment_sums(indptr, columns, motion.weigh(weight, part), cross)
        sums = block.sessions.sums(self.entries.inputs.own, sites)
        sums.take_from(precision, linear)
        return precision, linear, sums

    def _prior_precision(self, rows: slice) -> Float64s:
        if self.priors.cold is None:
            return self.precision
        cold = self.priors.cold[rows]
        if cold.all():
            return self.cold_precision
        # A matrix for each row, so only where a block has rows of both kinds.
        return np.where(cold[:, None, None], self.cold_precision, self.precision)


def _gaussian_posterior(solver: _Solver, _iteration: Iteration) -> tuple[Posterior, Sites]:
    entries = solver.entries
    weight = np.full(len(entries.offset), 1.0 / entries.inputs.parameters.noise)
    sites = Sites.of(weight, weight * (entries.inputs.data.value - entries.offset))
    return solver.solve(sites), sites


def _ordinal_posterior(solver: _Solver, iteration: Iteration) -> tuple[Posterior, Sites]:
    entries, inputs, parameters = solver.entries, solver.entries.inputs, solver.entries.inputs.parameters
    dim, damping, begin = inputs.own.layout.dim, iteration.damping_for(parameters), iteration.begin
    bounds = level_bounds(parameters.cuts, rating_levels(parameters.scale, inputs.data.value))
    posterior = entries.prior() if begin is None else begin.posterior
    sites = begin.sites if begin is not None and len(begin.sites.weight) else None
    for _ in range(iteration.steps):
        scores = entries.scores(posterior)
        sites = ordinal_sites(bounds, parameters.noise, scores, sites, damping=damping)
        before, posterior = posterior, solver.solve(sites)
        moved = iteration.moved(parameters, before.mean[:, :dim], posterior.mean[:, :dim])
        if moved.max(initial=0.0) < iteration.at_rest:
            break
    return posterior, sites or NO_SITES


# The link decides here, once for a half-step, how its ratings become sites.
_POSTERIOR_OF = {"gaussian": _gaussian_posterior, "ordinal": _ordinal_posterior}


def entry_terms(inputs: HalfStepInput) -> tuple[Float64s, Float64s]:
    """Return what each entry of the one history in `inputs` adds to the linear term beyond what the prior
    mean predicts, and to that mean.

    Both (n, d). With `S` the posterior covariance: posterior mean = mean without ratings + sum of the
    second + S sum of the first.
    """
    entries = EntryMoments.of(inputs, block_rows=1)
    solver, (block,) = _Solver.of(entries), entries.blocks
    _, sites = _POSTERIOR_OF[inputs.parameters.link](solver, TO_THE_END)
    other, priors, motion, own = entries.other, solver.priors, entries.motion, inputs.own
    index = other.rows_of(np.arange(len(entries.row)))
    implicit_terms = priors.share * (known_effects(own, other.implicit_effect)[index] - priors.pull)
    prior_mean, weight, features = priors.mean[0], sites.weight[:, None], other.features[index]
    second = unpack(other.second[index], own.layout.dim)
    terms = sites.linear[:, None] * features - weight * (other.cross[index] + second @ prior_mean)
    terms = motion.features(terms, np.arange(len(terms)))
    precision, _, sums = solver.normal_equations(block, sites)
    surprise = sites.linear - sites.weight * (other.bias[index] + features @ prior_mean)
    sums.take_from_terms(terms, surprise)
    return motion.position_terms(terms, precision[0]), implicit_terms
