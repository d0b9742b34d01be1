"""What `auto` chooses, and by what: ratings held out of the training set, and evidence. Bounded in sweeps and
ratings.

Invariant: a choice sees the training ratings only, and costs no more on millions of ratings than on some
hundred thousand.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from factors.inference.backend import MANY_RATINGS
from factors.inference.entry_moments import HalfStepInput
from factors.inference.histories import Compressed
from factors.inference.ordinal import rating_levels
from factors.inference.pair_moments import PairMoments
from factors.model.layout import session_keys
from factors.model.links import rating_distribution, rating_moments
from factors.model.quantized_rows import item_codec
from factors.model.scale import scale_levels
from factors.model.types import Float64s, Int64s, Scale
from factors.training.calibration import calibrate
from factors.training.drift import best_drift, latest, narrowed, widened, with_widening
from factors.training.initialization import FEW_RATINGS, best_start, flat_state, initial_state
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.terms import Terms, terms_of
from factors.training.training_set import TrainingSet

# With fewer ratings a held-out slice decides by chance.
LEAST_RATINGS = 100
# Enough ratings to tell terms apart; of a larger set, so many of whole users are looked at.
_MOST_RATINGS = 300_000
_MOST_HELD_OUT = 20_000
# Of few ratings a larger part is held out, so that chance does not decide.
_FEW_HELD_OUT = 300
# The ordinal link learns a cut point for each step: beyond this a scale is continuous for every practical
# purpose.
_MOST_LEVELS = 25
# Ridges of the implicit effects, in units of (noise of a row round its set's prediction / variance of an
# effect).
_RIDGES = (0.0, 20.0, 6.0, 2.0)
# How many times wider the prior of velocities may be than the sweeps take it to be.
_WIDENINGS = (1.0, 2.0, 4.0, 8.0, 16.0)
# The part of each user's ratings that tells. (In drifting environments a tenth says 1 to 4 by chance, a fifth
# 2 to 4.)
_LATEST = 0.2
# Evidence in nats below which sessions are not worth their place in a row.
_LEAST_EVIDENCE = 10.0
_EFFECT_RATIOS = (0.01, 0.03, 0.1, 0.3)
# Sweeps in which a state that has seen the held-out ratings loses what it knows of them.
_FORGETTING = 10
# Sweeps until the deviations of a state can be learned from.
_SETTLING = 12
# 4^20 units are 35,000 years of seconds.
_LENGTHS = 21


@dataclass(frozen=True, slots=True)
class Selection:
    """The terms to fit, the state that they were found with (of a part of the ratings), and how they did
    there.
    """

    terms: Terms
    state: State
    metrics: dict[str, float]


def observed_scale(scale: Scale, value: Float64s) -> Scale:
    """`scale` with the step that all of `value` (n,) keep, where it names none and they keep one.

    They keep it when each lies a whole number of steps from the low end and there are at most 25 levels. Few
    ratings show no step.
    """
    values = np.unique(value)
    if scale.step is not None or len(value) < LEAST_RATINGS or not 2 <= len(values) <= _MOST_LEVELS:
        return scale
    step = float(np.diff(values).min())
    steps = (np.append(values, scale.high) - scale.low) / step
    if steps[-1] > _MOST_LEVELS - 1 or np.abs(steps - np.rint(steps)).max() > 1e-6:
        return scale
    return replace(scale, step=(scale.high - scale.low) / float(np.rint(steps[-1])))


def may_be_ordinal(settings: FitSettings) -> bool:
    """Whether `auto` looks at the ordinal link at all."""
    return 2 <= scale_levels(settings.scale) <= _MOST_LEVELS


def select_terms(training: TrainingSet, settings: FitSettings, rng: np.random.Generator) -> Selection:
    """Terms for these ratings, decided one after the other on held-out ratings, from sweeps that go on from
    each other.
    """
    # Velocities are known to no compiled loop, and each rating takes 2 KB where users move.
    may_move = settings.session_effects and len(training.users.value) < MANY_RATINGS
    training = _some_users(training, rng)
    n = len(training.users.value)
    held_out = np.sort(rng.permutation(n)[: min(max(n // 10, min(_FEW_HELD_OUT, n // 4)), _MOST_HELD_OUT)])
    part = training.without(held_out)
    test = _HeldOut(training.users, held_out, settings)
    if training.sparse:
        state = flat_state(part, settings)
        _run(state, settings, 10)
        if settings.link == "ordinal":
            state = state.branch(Terms("ordinal"))
            _run(state, settings, 8)
        return _calibrated(state, training, held_out, float(test.log_likelihoods(state).mean()), rng)
    # Of few ratings each counts: the start is found with all of them, and goes on without those held out.
    whole = best_start(training, settings, rng) if n < FEW_RATINGS else None
    state = _without(part, whole, settings, rng)
    user_session = best_session_length(part.users, state.residuals()) if settings.session_effects else 0.0
    item_session = (
        best_session_length(part.items, state.residuals()[part.items.source])
        if settings.session_effects
        else 0.0
    )
    drift = best_drift(state.parameters, state.item_rows, part.users, state.residuals()) if may_move else 0.0
    ridge = _RIDGES[-1] if settings.implicit_effects else 0.0
    terms = Terms("gaussian", ridge, ridge, user_session, item_session)
    state = state.branch(terms)
    _run(state, settings, 7)
    if settings.implicit_effects:
        options = [replace(terms, user_ridge=ridge, item_ridge=ridge) for ridge in _RIDGES]
        state = _best(state, options, test, settings)
    terms = terms_of(state.parameters)
    if drift:
        # Where users move, their sessions were but steps of that.
        moving = replace(terms, user_drift=drift)
        alone = [replace(moving, user_session=0.0)] if terms.user_session else []
        state = _best(state, [*alone, moving, terms], test, settings)
        terms = terms_of(state.parameters)
    without = [replace(terms, user_session=0.0)] if terms.user_session else []
    without += [replace(terms, item_session=0.0)] if terms.item_session else []
    if without:
        state = _best(state, [*without, terms], test, settings)
    scores = test.log_likelihoods(state)
    if settings.link == "ordinal" or (settings.link == "auto" and may_be_ordinal(settings)):
        terms = replace(terms_of(state.parameters), link="ordinal")
        ordinal = state.branch(terms)
        _run(ordinal, settings, 8)
        gain = (ordinal_scores := test.log_likelihoods(ordinal)) - scores
        # Ratings in steps are ordinal: of few, those held out must be sure that the Gaussian link is better.
        doubt = gain.std() / math.sqrt(len(gain)) if n < FEW_RATINGS else 0.0
        if settings.link == "ordinal" or gain.mean() > -doubt:
            state, scores = ordinal, ordinal_scores
    score = float(scores.mean())
    _settle(state, settings)
    state = _widened(state, settings)
    choice = _calibrated(state, training, held_out, score, rng)
    return choice if whole is None else _with_all(choice, whole, settings)


def _without(
    part: TrainingSet, whole: State | None, settings: FitSettings, rng: np.random.Generator
) -> State:
    """A Gaussian state of a `part` of the ratings, from `whole` where there is one."""
    state = initial_state(part, settings, rng)
    if whole is not None:
        state = State.begin(part, whole.parameters, None, whole.user_rows, whole.item_rows)
    _run(state, settings, 6 if whole is None else _FORGETTING)
    return state


def _with_all(choice: Selection, whole: State, settings: FitSettings) -> Selection:
    """`choice` with its terms fitted on from `whole`, the start that has seen all ratings."""
    state, found = whole.branch(choice.terms), choice.state.parameters
    _run(state, settings, 8)
    widening = found.users.drift.widening if found.users.drift is not None else 1.0
    known = with_widening(state.parameters, widening)
    state.parameters = replace(
        known, variance_scale=found.variance_scale, std_calibration=found.std_calibration
    )
    return replace(choice, state=state)


def _widened(state: State, settings: FitSettings) -> State:
    """`state` with its users folded in under the widening of their velocities that foretells the latest
    ratings of each best, from those before; itself where they do not move.
    """
    if not state.parameters.moves:
        return state
    training = state.training
    last = latest(training.users, _LATEST)
    before, test = training.without(last).users, _HeldOut(training.users, last, settings)

    def folded(widening: float, data: Compressed) -> State:
        parameters = widened(with_widening(state.parameters, widening))
        rows = training.backend.half_step(HalfStepInput.of(parameters, "user", state.item_rows, data)).rows
        effect = parameters.users.layout.implicit_effect
        rows[:, effect] = state.user_rows[:, effect]
        return State(training, parameters, rows, state.item_rows)

    scores = [float(test.log_likelihoods(folded(widening, before)).mean()) for widening in _WIDENINGS]
    return folded(_WIDENINGS[int(np.argmax(scores))], training.users)


def _calibrated(
    state: State, training: TrainingSet, held_out: Int64s, score: float, rng: np.random.Generator
) -> Selection:
    variance_scale, std_calibration = calibrate(state, training.users, held_out, rng)
    state.parameters = narrowed(
        replace(state.parameters, variance_scale=variance_scale, std_calibration=std_calibration)
    )
    return Selection(terms_of(state.parameters), state, {"held_out_log_likelihood": score})


def best_session_length(data: Compressed, residual: Float64s) -> float:
    """The length of the sessions whose effects, a Gaussian each, explain `residual` (n,) best; 0 where none
    does.

    Candidates are powers of 4, from 1 unit of the timestamps to their span. The evidence for effects of
    variance `t` against none, with residual variance `s` and a session of `n` entries of sum `r`, is the sum
    over sessions of `t r^2 / (2 s (s + n t)) - log(1 + n t / s) / 2`. Unknown and constant times have no
    sessions.
    """
    known = np.isfinite(data.time)
    if known.sum() < LEAST_RATINGS:
        return 0.0
    time, row, residual = data.time[known], data.row[known], residual[known]
    variance = float(np.mean(residual * residual))
    span = float(time.max() - time.min())
    if span <= 0 or variance <= 0 or not math.isfinite(span):
        return 0.0
    best, best_evidence = 0.0, _LEAST_EVIDENCE
    for exponent in range(_LENGTHS):
        session_length = 4.0**exponent
        if session_length > span:
            break
        key = session_keys(time, session_length)
        order = np.lexsort((key, row))
        first = np.append(True, (np.diff(row[order]) != 0) | (np.diff(key[order]) != 0))
        group = np.cumsum(first) - 1
        count = np.bincount(group)
        total = np.bincount(group, residual[order])
        for ratio in _EFFECT_RATIOS:
            gain = ratio * total * total / (variance * (1.0 + ratio * count)) - np.log1p(ratio * count)
            evidence = 0.5 * float(gain.sum())
            if evidence > best_evidence:
                best, best_evidence = session_length, evidence
    return best


class _HeldOut:
    """Ratings kept back, and how well a state foretells them."""

    def __init__(self, users: Compressed, held_out: Int64s, settings: FitSettings) -> None:
        self._user, self._item = users.row[held_out], users.other[held_out]
        self._time, self._value = users.time[held_out], users.value[held_out]
        self._scale = settings.scale
        self._level = rating_levels(settings.scale, self._value) if scale_levels(settings.scale) > 1 else None

    def log_likelihoods(self, state: State) -> Float64s:
        """Nats of each rating (n,); -inf for a state that is not finite."""
        pairs = PairMoments(state.parameters, item_codec(state.parameters).encode(state.item_rows))
        mean, variance, _ = pairs.moments(state.user_rows, self._user, self._item, self._time)
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            return np.full(len(mean), -math.inf)
        if self._level is not None:
            chance = rating_distribution(state.parameters, mean, variance)[np.arange(len(mean)), self._level]
            return np.asarray(np.log(np.maximum(chance, 1e-6)))
        rating, std = rating_moments(state.parameters, mean, variance)
        return np.asarray(-0.5 * ((self._value - rating) / std) ** 2 - np.log(std))


def _best(state: State, options: list[Terms], test: _HeldOut, settings: FitSettings) -> State:
    """The branch of `state`, one for each of `options`, that foretells best after two sweeps.

    `options` go from the simplest on: a later one must be better by more than the standard error of the
    difference.
    """
    best: State | None = None
    best_scores: Float64s = np.zeros(0)
    for terms in options:
        branch = state.branch(terms)
        _run(branch, settings, 2)
        scores = test.log_likelihoods(branch)
        if not np.isfinite(scores).all():
            continue
        gain = scores - best_scores if best is not None else scores
        if best is None or gain.mean() > gain.std() / math.sqrt(len(gain)):
            best, best_scores = branch, scores
    return best if best is not None else state


def _run(state: State, settings: FitSettings, sweeps: int) -> None:
    for _ in range(min(sweeps, settings.sweeps)):
        state.sweep()


def _settle(state: State, settings: FitSettings) -> None:
    """Sweep on until `state` is about as far as the fit will be: a state on its way is off otherwise."""
    for _ in range(min(_SETTLING, settings.sweeps)):
        if state.sweep() < settings.tolerance:
            break


def _some_users(training: TrainingSet, rng: np.random.Generator) -> TrainingSet:
    """Whole users up to `_MOST_RATINGS` ratings, others left without any; item rows stay as they are."""
    users = training.users
    if len(users.value) <= _MOST_RATINGS:
        return training
    order = rng.permutation(users.rows)
    taken = order[np.cumsum(users.counts[order]) <= _MOST_RATINGS]
    return training.only(np.flatnonzero(np.isin(users.row, taken)))
