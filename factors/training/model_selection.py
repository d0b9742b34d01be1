"""The terms and the rank of a fit, chosen one after the other by held-out ratings and by evidence.

Invariant: a choice sees the training ratings only. That of terms costs no more on millions of ratings than on
some hundred thousand, even if one user made them all, and on however many items. The rank is what all of the
ratings can carry: it is chosen on all of them, by sweeps that are the fit's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from factors.inference.entry_moments import HalfStepInput
from factors.inference.histories import Compressed, compress_pairs
from factors.inference.pair_moments import PairMoments
from factors.model.links import link_of
from factors.model.parameters import Parameters
from factors.model.quantized_rows import item_codec
from factors.model.scale import MOST_LEVELS, scale_levels, scale_range
from factors.model.types import Float64s, Int64s, Ratings, Scale
from factors.training.calibration import calibrate
from factors.training.drift import best_drift, latest, narrowed, widened, with_widening
from factors.training.initialization import FEW_RATINGS, best_start, first_rank, flat_state, initial_state
from factors.training.rank import SETTLE, left_out_scores, with_rank
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.terms import Terms, terms_of
from factors.training.training_set import TrainingSet

# With fewer ratings a held-out slice decides by chance.
LEAST_RATINGS = 100
# Enough ratings to tell terms apart; of a larger set, so many are looked at.
_MOST_RATINGS = 300_000
# Of these so many of one user: what a hundredth of the sample says is not what one user is like.
_MOST_OF_USER = _MOST_RATINGS // 100
# Ratings held out of a fit: the standard error of a mean over so many is under a hundredth of a nat.
_MOST_HELD_OUT = 20_000
# Ridges of the implicit effects, in units of (noise of a row round its set's prediction / variance of an
# effect).
_RIDGES = (0.0, 20.0, 6.0, 2.0)
# So many ratings are looked at together for the levels of a scale: of one without, most are left out.
_LOOKED_AT = 100_000
# Lengths of sessions and of the sittings that these lie in, in the length of sessions that are best by
# themselves: these may be what the two of them have in common.
_SITTINGS = (1.0, 64.0), (1.0, 16.0), (0.0625, 1.0)


@dataclass(frozen=True, slots=True)
class Selection:
    """The terms of `parameters`. `on`: from the ratings that they were chosen for, which may be without times
    by now where no term reads any, to the state to sweep from, and how well it predicted.
    """

    parameters: Parameters
    on: Callable[[TrainingSet], tuple[State, dict[str, float]]]


def observed_scale(scale: Scale, *columns: Float64s) -> Scale:
    """Return `scale` with the step that all values of `columns` keep, where it names none and they keep one.

    They keep it when each lies a whole number of steps from the low end and there are at most 25 levels. Few
    ratings show no step.
    """
    if scale.step is not None or sum(map(len, columns)) < LEAST_RATINGS:
        return scale
    values, unit = np.empty(0), 1e-9 * scale_range(scale)
    for column in columns:
        for start in range(0, len(column), _LOOKED_AT):
            values = np.union1d(values, column[start : start + _LOOKED_AT])
            if len(values) > MOST_LEVELS:
                values = np.unique(np.round(values / unit))
                if len(values) > MOST_LEVELS:
                    return scale
                values *= unit
    # Sums of tenths are no exact floats.
    values = np.unique(np.round(values / unit)) * unit
    if len(values) < 2:
        return scale
    step = float(np.diff(values).min())
    steps = (np.append(values, scale.high) - scale.low) / step
    whole = np.rint(steps)
    if whole[-1] > MOST_LEVELS - 1 or np.abs(steps - whole).max() > 1e-6:
        return scale
    return replace(scale, step=(scale.high - scale.low) / float(whole[-1]))


def select_terms(training: TrainingSet, settings: FitSettings, rng: np.random.Generator) -> Selection:
    """Choose terms and rank for these ratings, from sweeps that go on from each other. The state that one
    gets has all rows of `training`: those that the choice has not seen a rating of are the prior.
    """
    sample, users, items = _sample(training, rng)
    may_move = settings.session_effects and settings.drift and len(training) < training.backend.most_apart
    search = _Search(sample, settings, rng)
    # Of few ratings each counts: a state that has seen those held out goes along.
    few = sample is training and len(sample) < FEW_RATINGS and not sample.sparse
    whole = best_start(sample, settings, rng) if few else None
    if sample.sparse:
        state = search.flat()
    else:
        whole, state = search.best_terms(whole, may_move=may_move)
    may_grow = whole is None and not training.sparse

    def settled(part: State, sweeps: int) -> tuple[State, dict[str, float]]:
        # Deviations are learned from a settled state: one on its way is off otherwise than the fit will be.
        part.run(min(sweeps, settings.sweeps), until=settings.tolerance)
        score = float(search.scores(part).mean())
        return search.calibrated(_widened(part)), {"held_out_log_likelihood": score}

    def on_sample(training: TrainingSet) -> tuple[State, dict[str, float]]:
        grown = with_rank(state, search.scores, settings, rng) if may_grow else state
        part, metrics = settled(grown, SETTLE)
        if whole is None:
            return State.of_rows(training, part.parameters, part.user_rows, part.item_rows), metrics
        swept = search.run(whole.branch(terms_of(part.parameters)), 8)
        return _as_calibrated(part.parameters, swept), metrics

    def on_all(training: TrainingSet) -> tuple[State, dict[str, float]]:
        # From here on the sweeps are those of the fit itself.
        grown = State.of_priors(training, state.parameters)
        grown.user_rows[users], grown.item_rows[items] = state.user_rows, state.item_rows
        if may_grow:
            grown = with_rank(grown, left_out_scores, settings, rng)
        part = State.of_priors(search.part, grown.parameters)
        part.user_rows, part.item_rows = grown.user_rows[users], grown.item_rows[items]
        part, metrics = settled(part, SETTLE // 2)
        return _as_calibrated(part.parameters, grown), metrics

    return Selection(state.parameters, on_sample if sample is training else on_all)


class _Search:
    """The choice of one term after the other, by some ratings of `training` that the states do not see, but
    only the others, `part`.
    """

    def __init__(self, training: TrainingSet, settings: FitSettings, rng: np.random.Generator) -> None:
        n = len(training)
        # Of few ratings a larger part, so that chance does not decide.
        size = min(max(n // 10, min(300, n // 4)), _MOST_HELD_OUT)
        held_out = np.sort(rng.permutation(n)[:size])
        self._training, self._settings, self._rng = training, settings, rng
        self._test, self.part = training.ratings(held_out), training.without(held_out)

    def flat(self) -> State:
        """Return a state of biases alone, with the link of the settings."""
        state = self.best_context(self.run(flat_state(self.part, self._settings), 10))
        if self._settings.link == "ordinal":
            state = self.run(state.branch(replace(terms_of(state.parameters), link="ordinal")), 8)
        return state

    def best_terms(self, whole: State | None, *, may_move: bool) -> tuple[State | None, State]:
        """Return `whole`, a start of few ratings, perhaps with contexts, and a state with the terms that
        predict best.
        """
        in_doubt_ordinal = whole is not None
        if whole is None:
            state = initial_state(self.part, self._settings, self._rng, first_rank(self._settings))
            state = self.best_context(self.run(state, 6))
        else:
            whole, state = self.best_whole(whole)
        drift = 0.0
        if may_move:
            drift = best_drift(state.parameters, state.item_rows, self.part.by_user, state.residuals())
        state = self.with_all_effects(state)
        state = self.best_ridge(state)
        state = self.best_attributes(state)
        state = self.best_motion(state, drift)
        state = self.best_sittings(self.best_sessions(state))
        return whole, self.best_link(state, in_doubt_ordinal=in_doubt_ordinal)

    def scores(self, state: State) -> Float64s:
        """Return nats of the ratings held out."""
        return _log_likelihoods(state, self._test)

    def calibrated(self, state: State) -> State:
        """Return the state with deviations learned from the ratings held out."""
        scale, std_calibration = calibrate(state, self._test, self._rng)
        state.parameters = narrowed(
            replace(state.parameters, variance_scale=scale, std_calibration=std_calibration)
        )
        return state

    def run(self, state: State, sweeps: int) -> State:
        """Return `state` after so many sweeps, no more than a fit may have."""
        return state.run(min(sweeps, self._settings.sweeps))

    def with_all_effects(self, state: State) -> State:
        """Return `state` swept with the effects that the settings allow, of the sessions that its residuals
        show."""
        settings, by_item, residual = self._settings, state.training.by_item, state.residuals()
        user_session = item_session = 0.0
        if settings.session_effects:
            user_session = best_session_length(state.training.by_user, residual)
            item_session = best_session_length(by_item, residual[by_item.source])
        ridge = _RIDGES[-1] if settings.implicit_effects else 0.0
        context = state.parameters.context is not None
        terms = Terms("gaussian", ridge, ridge, user_session, item_session, context=context)
        return self.run(state.branch(terms), 7)

    def best_whole(self, plain: State) -> tuple[State, State]:
        """Return `plain`, or a start with effects of contexts if that predicts better, both of few ratings;
        and the state of `part` that goes on from it.
        """
        # Sweeps in which each loses what it knows of the ratings held out.
        begun = self.run(State.of_rows(self.part, plain.parameters, plain.user_rows, plain.item_rows), 10)
        if self._training.context is None:
            return plain, begun
        other = best_start(self._training, self._settings, self._rng, context=True)
        state = self.run(State.of_rows(self.part, other.parameters, other.user_rows, other.item_rows), 10)
        gain = self.scores(state) - self.scores(begun)
        helps = gain.mean() > gain.std() / math.sqrt(len(gain))
        return (other, state) if helps else (plain, begun)

    def best_context(self, state: State) -> State:
        """Return the state with effects of the contexts of ratings if that predicts best."""
        terms = terms_of(state.parameters)
        options = [] if state.training.context is None else [terms, replace(terms, context=True)]
        # From nothing to nearly all of an effect: what users have taken for their own comes back slowly.
        return self._best(state, options, sweeps=6)

    def best_ridge(self, state: State) -> State:
        """Return the state with the implicit effects that predict best, or with none."""
        terms, ridges = terms_of(state.parameters), _RIDGES if self._settings.implicit_effects else ()
        return self._best(state, [replace(terms, user_ridge=ridge, item_ridge=ridge) for ridge in ridges])

    def best_attributes(self, state: State) -> State:
        """Return the state with effects of the attributes of either side, or both, if that predicts best."""
        terms, sides = terms_of(state.parameters), state.training.attributes
        options = [
            replace(terms, user_attributes=user, item_attributes=item)
            for user, item in ((False, False), (False, True), (True, False), (True, True))
            if user <= ("user" in sides) and item <= ("item" in sides)
        ]
        return self._best(state, options)

    def best_motion(self, state: State, drift: float) -> State:
        """Return the state whose users move, with velocities of relative variance `drift`, if that predicts
        best."""
        terms = terms_of(state.parameters)
        moving = replace(terms, user_drift=drift)
        # Where users move, their sessions were but steps of that.
        alone = [replace(moving, user_session=0.0)] if terms.user_session else []
        return self._best(state, [*alone, moving, terms] if drift else [])

    def best_sessions(self, state: State) -> State:
        """Return the state without the sessions of users, or those of items, if that predicts best."""
        terms = terms_of(state.parameters)
        without = [replace(terms, user_session=0.0)] if terms.user_session else []
        without += [replace(terms, item_session=0.0)] if terms.item_session else []
        return self._best(state, [*without, terms])

    def best_sittings(self, state: State) -> State:
        """Return the state whose users' sessions lie in sittings of some length, if that predicts best."""
        terms = terms_of(state.parameters)
        # From the simplest on, as `_best` wants it.
        lengths = [(inner * terms.user_session, outer * terms.user_session) for inner, outer in _SITTINGS]
        options = (replace(terms, user_session=inner, user_sitting=outer) for inner, outer in lengths)
        looked = terms.user_session > 0 and self._settings.sittings
        return self._best(state, [terms, *options] if looked else [])

    def best_link(self, state: State, *, in_doubt_ordinal: bool) -> State:
        """Return the state with the ordinal link if that is wanted, or predicts better. On a scale without
        steps, or with many, it bends scores towards the ends, where those who rate have no room left.
        """
        link, levels = self._settings.link, scale_levels(self._settings.scale)
        if link == "gaussian" or levels == 1:
            return state
        terms = terms_of(state.parameters)
        ordinal = self.run(state.branch(replace(terms, link="ordinal")), 8)
        if link == "ordinal":
            return ordinal
        in_steps = 0 < levels <= MOST_LEVELS
        # What is kept in doubt has as many sweeps.
        plain = state if in_steps else self.run(state.branch(terms), 8)
        gain = self.scores(ordinal) - self.scores(plain)
        doubt = gain.std() / math.sqrt(len(gain))
        # Ratings in steps are ordinal: of few, those held out must be sure that the Gaussian link is better.
        # Without steps that is the simpler one, and the other must be better for sure.
        least = -doubt if in_doubt_ordinal else 0.0
        return ordinal if gain.mean() > (least if in_steps else doubt) else state

    def _best(self, state: State, options: list[Terms], sweeps: int = 2) -> State:
        """Return the branch of `state`, one for each of `options`, that predicts best after these `sweeps`;
        the state itself where there is no choice.

        `options` go from the simplest on: a later one must be better by more than the standard error of the
        difference.
        """
        best, best_scores = state, np.full(1, -math.inf)
        if len(options) < 2:
            return state
        for terms in options:
            branch = self.run(state.branch(terms), sweeps)
            scores = self.scores(branch)
            if not np.isfinite(scores).all():
                continue
            gain = scores - best_scores
            if best is state or gain.mean() > gain.std() / math.sqrt(len(gain)):
                best, best_scores = branch, scores
        return best


def _log_likelihoods(state: State, of: Ratings) -> Float64s:
    """Return nats of each of these ratings (n,), which `state` has not seen; -inf if it is not finite."""
    pairs = PairMoments(state.parameters, item_codec(state.parameters).encode(state.item_rows))
    mean, variance, _ = pairs.moments(state.user_rows, of.user_row, of.item_row, of.time, of.context)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        return np.full(len(mean), -math.inf)
    return link_of(state.parameters).log_likelihoods(of.value, mean, variance)


def _widened(state: State) -> State:
    """Return `state` with its users folded in under the widening of their velocities that predicts the latest
    ratings of each best, from those before; itself where users stand still.
    """
    if not state.parameters.moves:
        return state
    # In drifting environments a tenth says 1 to 4 by chance, a fifth 2 to 4.
    last = latest(state.training.by_user, 0.2)
    before, test = state.training.without(last).by_user, state.training.ratings(last)
    widenings = (1.0, 2.0, 4.0, 8.0, 16.0)
    scores = [_log_likelihoods(_folded_in(state, wider, before), test).mean() for wider in widenings]
    return _folded_in(state, widenings[int(np.argmax(scores))], state.training.by_user)


def _folded_in(state: State, widening: float, by_user: Compressed) -> State:
    """Return `state` with its users folded in from `by_user` under this widening."""
    parameters = widened(with_widening(state.parameters, widening))
    attributes = state.training.attributes.get("user")
    inputs = HalfStepInput.of(parameters, "user", state.item_rows, by_user, attributes=attributes)
    rows = state.training.backend.half_step(inputs).rows
    effect = parameters.users.layout.implicit_effect
    rows[:, effect] = state.user_rows[:, effect]
    return State(state.training, parameters, rows, state.item_rows)


def _as_calibrated(known: Parameters, state: State) -> State:
    """Return `state`, which has the terms of `known` and has seen all ratings, with its calibration."""
    drift = known.users.drift
    state.parameters = replace(
        with_widening(state.parameters, drift.widening if drift else 1.0),
        variance_scale=known.variance_scale,
        std_calibration=known.std_calibration,
    )
    return state


def best_session_length(data: Compressed, residual: Float64s) -> float:
    """Return the length of the sessions whose effects, a Gaussian each, explain `residual` (n,) best; 0 where
    none does.

    Candidates are powers of 4, from 1 unit of the timestamps to their span. The evidence for effects of
    variance `t` against none, with residual variance `s` and a session of `n` entries of sum `r`, is the sum
    over sessions of `t r^2 / (2 s (s + n t)) - log(1 + n t / s) / 2`. Unknown and constant times have no
    sessions.
    """
    known = np.isfinite(data.time)
    if known.sum() < LEAST_RATINGS:
        return 0.0
    order = np.flatnonzero(known)[np.lexsort((data.time[known], data.row[known]))]
    time, row, residual = data.time[order], data.row[order], residual[order]
    variance = float(np.mean(residual * residual))
    span = float(time.max() - time.min())
    if span <= 0 or variance <= 0 or not math.isfinite(span):
        return 0.0
    other_row = np.append(True, np.diff(row) != 0)
    # With less evidence, in nats, sessions are not worth their place in a row.
    best, best_evidence = 0.0, 10.0
    # 4^20 units are 35,000 years of seconds.
    for exponent in range(21):
        session_length = 4.0**exponent
        if session_length > span:
            break
        # In the order of time the entries of a session stand together.
        other_key = np.append(True, np.diff(np.floor(time / session_length)) != 0)
        first = np.flatnonzero(other_row | other_key)
        count, total = np.diff(np.append(first, len(time))), np.add.reduceat(residual, first)
        # Sessions of one size have one variance: there are few sizes.
        number, squares = np.bincount(count), np.bincount(count, total * total)
        size = np.flatnonzero(number)
        # Variances of an effect, in those of the residuals.
        for ratio in (0.01, 0.03, 0.1, 0.3):
            spread = 1.0 + ratio * size
            gain = ratio * squares[size] / (variance * spread) - number[size] * np.log(spread)
            evidence = 0.5 * float(gain.sum())
            if evidence > best_evidence:
                best, best_evidence = session_length, evidence
    return best


def _sample(training: TrainingSet, rng: np.random.Generator) -> tuple[TrainingSet, Int64s, Int64s]:
    """Return at most `_MOST_RATINGS` ratings, and which user rows and item rows of `training` theirs are.

    Users are taken whole, as parts of histories would look like rows of few ratings; only of a user with more
    than `_MOST_OF_USER` a sample is.
    """
    by_user, rows = training.by_user.thinned(0, _MOST_OF_USER), training.by_item.rows
    if by_user is training.by_user and len(training) <= _MOST_RATINGS:
        return training, np.arange(by_user.rows), np.arange(rows)
    order = rng.permutation(by_user.rows)
    users = np.sort(order[np.cumsum(by_user.counts[order]) <= _MOST_RATINGS])
    entries = np.flatnonzero(np.isin(by_user.row, users))
    # Without the rows that no rating is left of: each would be solved anew in every half-step.
    users, user_row = np.unique(by_user.row[entries], return_inverse=True)
    items, item_row = np.unique(by_user.other[entries], return_inverse=True)
    context = None if by_user.context is None else by_user.context[entries]
    columns = (by_user.value[entries], by_user.time[entries])
    found = compress_pairs(user_row, item_row, *columns, len(users), context=context)
    chosen = {"user": users, "item": items}
    attributes = {name: columns.take(chosen[name]) for name, columns in training.attributes.items()}
    sample = TrainingSet.of(found, len(items), training.backend, attributes, training.context)
    return sample, users, items
