"""Sweeps of variational ALS over one training set: users, items, then priors, effects, and noise or cut
points.

Invariant: every half-step is that of a fold-in and nothing else, so that a state can be folded into at any
time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import HalfStep, Iteration, begun
from factors.inference.histories import Compressed
from factors.inference.motion import motion_at
from factors.inference.ordinal import Sites, interval_derivatives, learn_link, level_bounds
from factors.inference.session_effects import SessionEffects
from factors.inference.side_moments import prior_rows
from factors.model.context import ContextEffects
from factors.model.layout import FloatTable
from factors.model.parameters import Parameters, Side, SideName
from factors.model.scale import rating_levels, scale_range
from factors.model.types import Bools, Float32s, Float64s, Int64s
from factors.training.drift import learn_drift
from factors.training.effects.context_effects import learn_context, part_size, regression_size
from factors.training.leave_one_out import StepEntries, leave_one_out_scores
from factors.training.priors import learn_side, least_variance, spanned, uniform_variance
from factors.training.terms import Terms, relayout, with_terms
from factors.training.training_set import TrainingSet

# Ratings whose slopes are computed at once, half a MB a vector, and whose scores without them, 2 KB of rows
# each at rank 16.
_BLOCK, _LEFT_OUT_AT_ONCE = 1 << 16, 1 << 11


@dataclass(eq=False)
class State:
    """A fit between two sweeps: `parameters`, `user_rows`, `item_rows` (float64), `change`: the root mean
    square change of the scores in the last sweep, in units of the range of the scale; and `steps`: the last
    half-step of each side that has had one, whose sites the next one begins with.
    """

    training: TrainingSet
    parameters: Parameters
    user_rows: Float64s
    item_rows: Float64s
    change: float = field(default=math.inf, init=False)
    steps: dict[SideName, HalfStep] = field(default_factory=dict, init=False)
    _scores: Float64s | None = field(default=None, init=False)
    _compared: FloatTable | None = field(default=None, init=False)

    @staticmethod
    def of_priors(training: TrainingSet, parameters: Parameters) -> "State":
        """Return a state in which nothing is known of any row but its prior."""
        users = prior_rows(parameters.users, training.by_user.rows)
        return State(training, parameters, users, prior_rows(parameters.items, training.by_item.rows))

    @staticmethod
    def of_rows(
        training: TrainingSet, parameters: Parameters, user_rows: Float64s, item_rows: Float64s
    ) -> "State":
        """Return a state that goes on from another one with these parameters, of fewer or more rows."""
        state = State.of_priors(training, parameters)
        for rows, earlier in ((state.user_rows, user_rows), (state.item_rows, item_rows)):
            rows[: len(earlier)] = earlier[: len(rows)]
        return state

    def branch(self, terms: Terms) -> "State":
        """Return a state with these terms that starts from where this one stands."""
        parameters = with_terms(self.parameters, terms, self.training)
        users = relayout(self.parameters.users, parameters.users, self.user_rows)
        items = relayout(self.parameters.items, parameters.items, self.item_rows)
        if not terms.user_ridge:
            items[:, parameters.items.layout.implicit_effect] = 0.0
        if not terms.item_ridge:
            users[:, parameters.users.layout.implicit_effect] = 0.0
        state = State(self.training, parameters, users, items)
        state._scores = self._scores
        return state

    def with_ratings(self, by_user: Compressed) -> "State":
        """Return a state that goes on from this one with further ratings, of pairs that it has none of. This
        one is not to be used any more.
        """
        # Sessions, and where rows that move are seen from, may be others with these.
        in_sessions = any(len(step.posterior.effects.mean) for step in self.steps.values())
        if self.parameters.link != "ordinal" or in_sessions or self.parameters.moves:
            self.steps = {}
        # What this one has makes room piece by piece.
        self.training = self.training.anew()
        self.training, places = self.training.with_ratings(by_user)
        state = State(self.training, self.parameters, self.user_rows, self.item_rows)
        for name in tuple(self.steps):
            state.steps[name] = _with_sites(self.steps.pop(name), places[name])
        return state

    def sweep(self, *, learn_priors: bool = True) -> float:
        """One sweep. Returns `change`."""
        parameters, training = self.parameters, self.training
        user_effect = self.user_rows[:, parameters.users.layout.implicit_effect].copy()
        item_effect = self.item_rows[:, parameters.items.layout.implicit_effect].copy()
        user_step = self._half_step("user")
        self.user_rows = user_step.rows
        users, item_effect = self._learn_side("user", user_step, item_effect)
        # A half-step leaves the effects 0; the other side's reads them.
        self.user_rows[:, parameters.users.layout.implicit_effect] = user_effect
        item_step = self._half_step("item")
        self.item_rows = item_step.rows
        items, user_effect = self._learn_side("item", item_step, user_effect)
        learn = self._learn_cuts if parameters.link == "ordinal" else self._learn_noise
        learned = replace(learn(user_step, item_step), context=self._learn_context(user_step))
        self.item_rows[:, parameters.items.layout.implicit_effect] = item_effect
        self.user_rows[:, parameters.users.layout.implicit_effect] = user_effect
        if not learn_priors or training.sparse:
            users, items = parameters.users, parameters.items
        users = learn_drift(self._learn_session_variance("user", users, user_step), user_step)
        self.parameters = replace(
            learned, users=users, items=self._learn_session_variance("item", items, item_step)
        )
        return self.change

    def run(self, sweeps: int, *, until: float = 0.0) -> "State":
        """Sweep so many times, or until the change is less than `until`. Returns itself."""
        for _ in range(sweeps):
            if self.sweep() < until:
                break
        return self

    def end(self) -> None:
        """Let all go that only sweeps need, 40 bytes a rating: sites, rows and the ratings by item."""
        self.steps, self.training = {}, self.training.by_user_alone()
        self.user_rows = self.item_rows = np.zeros((0, 0))

    def residuals(self) -> Float64s:
        """Ratings less scores, by entry of `training.by_user`; what one sweep with the Gaussian link left. 0
        where there are more than a million.
        """
        if self._scores is None:
            return np.zeros(len(self.training))
        return self.training.by_user.value - self._scores

    def slopes(self) -> tuple[Float32s, Float32s]:
        """Return of each entry of `training.by_user` the slope of its log likelihood in its score, and minus
        what that changes by (both float32 (n,)). After a sweep; nothing before.
        """
        if len(self.steps) < 2:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        value, parameters = self.training.by_user.value, self.parameters
        if parameters.link == "ordinal":
            return _ordinal_slopes(parameters, value, self.steps["user"].sites)
        scores = self.training.backend.score_errors(
            self._input("user"), self.steps["user"], self.steps["item"], every=1
        )[1]
        # In place: of many ratings each further vector is as much as the fit may take.
        np.subtract(value, scores, out=scores)
        scores /= parameters.noise
        return scores.astype(np.float32), np.broadcast_to(np.float32(1.0 / parameters.noise), len(value))

    def leave_one_out(self, most: int) -> tuple[Int64s, Float64s, Float64s]:
        """Of about `most` ratings their entries in `training.by_user`, and mean and variance of their scores
        as they would be without them. After a sweep; nothing before.
        """
        if len(self.steps) < 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
        entries, _ = self.training.sample(most)
        mean, variance = np.empty(len(entries)), np.empty(len(entries))
        of_users = self._parts("user", self.steps["user"], most)
        of_items = self._parts("item", self.steps["item"], most)
        for start in range(0, len(entries), _LEFT_OUT_AT_ONCE):
            part = slice(start, start + _LEFT_OUT_AT_ONCE)
            mean[part], variance[part] = leave_one_out_scores(of_users(part), of_items(part))
        return entries, mean + self.parameters.mean, variance

    def _input(self, name: SideName) -> HalfStepInput:
        training, side = self.training, self.parameters.side(name)[0]
        table = self.item_rows if name == "user" else self.user_rows
        sessions = training.sessions(name, side.session_length, side.sitting_length)
        data, attributes = training.side(name), training.attributes.get(name)
        return HalfStepInput.of(self.parameters, name, table, data, sessions=sessions, attributes=attributes)

    def _half_step(self, name: SideName) -> HalfStep:
        # Ordinal sites move along with the posteriors, one step of the fixed point in each sweep, once they
        # are there. Users and items step in turn on each other's sites: undamped, MovieLens 100K swings.
        begin, inputs, steps = self.steps.get(name), self._input(name), 1
        if begin is None:
            begin = begun(inputs, self.user_rows if name == "user" else self.item_rows)
            # From the prior so many come near the fixed point; from rows the second knows the scores without
            # their ratings, and later sweeps go on.
            steps = 6 if begin is None else 2
        # By the users' cut points and rank are learned.
        iteration = Iteration(steps, 0.6, begin, scored=name == "user", spent=True)
        self.steps[name] = step = self.training.backend.half_step(inputs, iteration)
        return step

    def _learn_side(self, name: SideName, step: HalfStep, effects: Float64s) -> tuple[Side, Float64s]:
        """Return the side of this name with the prior that `step` speaks for, and the `effects` (n_others, d)
        of the other side's rows on it, learned anew.
        """
        side = self.parameters.side(name)[0]
        implicit = self.training.implicit_effects(name, side.implicit_ridge)
        attributes = self.training.attribute_effects(name, side.attribute_effects)
        implied = implicit.offsets(effects)
        learned = learn_side(side, step.rows, implied + attributes.offsets(side.attribute_effects))
        deviations = step.rows[:, side.layout.mean] - learned.mean
        # Each of the two learns what the other leaves: the sweeps come to the regression on both.
        described = attributes.learn(deviations - implied, learned.precision)
        learned = replace(learned, attribute_effects=described)
        return learned, implicit.learn(deviations - attributes.offsets(described), effects)

    def _learn_noise(self, user_step: HalfStep, item_step: HalfStep) -> Parameters:
        parameters, training, every = self.parameters, self.training, self._compared_each
        inputs = self._input("user")
        square, scores = training.backend.score_errors(inputs, user_step, item_step, every)
        span = spanned(parameters.scale, training.by_user.value)
        self._compare(scores / scale_range(span))
        # All of them or none: the choice of terms needs the residual of each rating.
        self._scores = scores if every == 1 else None
        # One pseudo-rating, so that few ratings that agree are not taken for a world without noise, and a
        # floor, so that such a world does not divide by zero.
        noise = (square + 0.5 * uniform_variance(span)) / (len(training) + 1.0)
        return replace(parameters, noise=max(noise, least_variance(span)))

    def _learn_cuts(self, user_step: HalfStep, _item_step: HalfStep) -> Parameters:
        parameters = self.parameters
        # The sites know the scores without their own rating: no further pass over the ratings.
        scores = user_step.sites.mean[:: self._compared_each].astype(np.float32)
        # In units of the range, so that a change of the unit of an ordinal model's scores is no change.
        self._compare((scores - float(parameters.cuts.mean())) / parameters.score_range)
        # Of 60,000 synthetic ratings these and all give distances of cut points that differ by 2 % at most.
        entries, mean, variance = self.leave_one_out(10_000)
        level = rating_levels(parameters.scale, self.training.by_user.value[entries])
        cuts, noise = learn_link(parameters.cuts, parameters.noise, level, mean, variance)
        return replace(parameters, cuts=cuts, noise=noise)

    def _learn_context(self, user_step: HalfStep) -> ContextEffects | None:
        """Return what contexts do, learned from what the users' posteriors leave of the ratings."""
        parameters, training = self.parameters, self.training
        if parameters.context is None or training.by_user.context is None:
            return None
        context: Float32s = training.by_user.context
        most = regression_size(parameters.context)
        step = part_size(parameters.context, self.item_rows.shape[1])
        sample, _ = training.sample(most)
        of_users = self._parts("user", user_step, most)

        def of(part: slice) -> tuple[StepEntries, Float64s, Float32s]:
            items = self.item_rows[training.by_user.other[sample[part]]]
            return of_users(part), items, context[sample[part]]

        parts = (of(slice(start, start + step)) for start in range(0, len(sample), step))
        return learn_context(parameters, parts, len(training))

    def _learn_session_variance(self, name: SideName, side: Side, step: HalfStep) -> Side:
        effects = step.posterior.effects
        if len(effects.mean) == 0:
            return side
        sitting = self.training.sessions(name, side.session_length, side.sitting_length).sitting
        session = sitting >= 0 if len(sitting) else np.ones(len(effects.mean), dtype=np.bool_)
        # Each of the two by what it adds to the other.
        variance = _effect_variance(effects, session, side.session_variance)
        around = _effect_variance(effects, ~session, side.sitting_variance) if side.sitting_length else 0.0
        return replace(side, session_variance=variance, sitting_variance=around)

    def _parts(self, name: SideName, step: HalfStep, most: int) -> Callable[[slice], StepEntries]:
        """Return what gives a part of the sample of `most` ratings."""
        inputs, side = self._input(name), self.parameters.side(name)[0]
        sample = self.training.sample(most)[0 if name == "user" else 1]
        session = self.training.sessions_of_sample(name, side.session_length, side.sitting_length, most)

        def of(part: slice) -> StepEntries:
            entries, shifts = sample[part], inputs.shifts
            row = np.searchsorted(inputs.data.indptr, entries, side="right") - 1
            motion = motion_at(inputs.own, step.rows[row], inputs.data.time[entries])
            shift = shifts.at(entries) if shifts is not None and shifts.own else None
            return StepEntries(inputs.own.layout, step, motion, session[part], row, entries, shift)

        return of

    @property
    def _compared_each(self) -> int:
        # So many ratings show how far a sweep moved the scores.
        every = max(1, len(self.training) // 1_000_000)
        # Where each user has rated all items, an entry of each of these.
        while math.gcd(every, len(self.training)) > 1:
            every += 1
        return every

    def _compare(self, scores: FloatTable) -> None:
        if self._compared is not None and len(scores):
            self.change = float(np.sqrt(np.mean((scores - self._compared) ** 2)))
        self._compared = scores


def _with_sites(step: HalfStep, places: Int64s) -> HalfStep:
    """Return the half-step with sites that say nothing yet before the entries at `places`."""
    sites = step.sites
    # Those that no one asked for are empty.
    weight, linear, mean, variance = (
        np.insert(column, places, 0.0) if len(column) else column
        for column in (sites.weight, sites.linear, sites.mean, sites.variance)
    )
    return replace(step, sites=Sites(weight, linear, mean, variance))


def _ordinal_slopes(parameters: Parameters, value: Float64s, sites: Sites) -> tuple[Float32s, Float32s]:
    """Return slope and curvature of each rating where its score is known without it."""
    slope, curvature = np.empty(len(value), np.float32), np.empty(len(value), np.float32)
    # In blocks: a dozen vectors of all ratings would be more memory than the fit needs.
    for start in range(0, len(value), _BLOCK):
        part = slice(start, start + _BLOCK)
        scale = np.sqrt(sites.variance[part].astype(np.float64) + parameters.noise)
        level = rating_levels(parameters.scale, value[part])
        low, high = ((bound - sites.mean[part]) / scale for bound in level_bounds(parameters.cuts, level))
        slopes, curvatures = interval_derivatives(low, high)
        slope[part], curvature[part] = slopes / scale, curvatures / (scale * scale)
    return slope, curvature


def _effect_variance(effects: SessionEffects, which: Bools, before: float) -> float:
    """Return the variance that these effects speak for, whose prior variance was `before`."""
    # A step of Fisher scoring: of EM dozens would be needed where a session has few ratings.
    known = 1.0 - effects.own_variance[which] / before
    step = float(np.sum(effects.own_mean[which] ** 2 - known * before)) / (float(known @ known) + 1.0)
    # Far from the maximum a whole step may go too far.
    return max(min(max(before + step, 0.25 * before), 4.0 * before), 1e-12)
