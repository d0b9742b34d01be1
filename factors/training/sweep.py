"""Sweeps of variational ALS over one set of ratings: users, items, priors, noise or cut points, implicit
effects.

Invariant: every half-step is `half_step` and nothing else, so that a state can be folded into at any time.
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from factors.inference.backend_numba import Compiled
from factors.inference.drift import learn_drift, start_drift
from factors.inference.half_step import HalfStep, entry_ages, entry_scores, half_step
from factors.inference.histories import Compressed, Sessions, compress_pairs, group_sessions
from factors.inference.ordinal import RATINGS_FOR_CUTS, learn_link, rating_levels, start_cuts
from factors.inference.side_moments import prior_rows
from factors.model.layout import COUNT, triangle
from factors.model.parameters import Drift, Parameters, Side
from factors.model.scale import scale_range
from factors.model.types import Float64s, Int64s, Link
from factors.training.implicit_effects import ImplicitEffects
from factors.training.leave_one_out import leave_one_out_scores
from factors.training.priors import learn_side, uniform_variance

# More sessions than this a row does not keep: 16 by size of their effect predict as well as 100 (MovieLens
# 100K).
MAX_SLOTS = 16
_FIRST_STEPS = 6
# Users and items step in turn on each other's sites: undamped, MovieLens 100K swings.
_SWEEP_DAMPING = 0.6
# So many ratings tell how far a sweep moved the scores.
_LOOKED_AT = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """Which terms a model has. `user_ridge`, `item_ridge`: ridge of the implicit effects on users and on
    items, 0 for none. `user_session`, `item_session`: length of the sessions with an effect of their own, 0
    for none. `user_drift`: whether users move, 0 for no, else the variance of their velocities, relative to
    that of their positions, to begin with.
    """

    link: Link = "gaussian"
    user_ridge: float = 0.0
    item_ridge: float = 0.0
    user_session: float = 0.0
    item_session: float = 0.0
    user_drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Training:
    """Ratings by user and by item, what is computed from them once, and the compiled loops where they pay."""

    users: Compressed
    items: Compressed
    compiled: Compiled | None = None
    _sessions: dict[tuple[bool, float], Sessions | None] = field(default_factory=dict)
    _sets: dict[tuple[bool, float], ImplicitEffects] = field(default_factory=dict)
    _samples: dict[int, tuple[Int64s, Int64s]] = field(default_factory=dict)

    @staticmethod
    def of(users: Compressed, n_items: int, compiled: Compiled | None = None) -> "Training":
        """The training set of ratings by user."""
        items = compress_pairs(users.other, users.row, users.value, users.time, n_items)
        return Training(users, items, compiled)

    @property
    def sparse(self) -> bool:
        """Whether there are fewer ratings than biases: no prior can be learned from them, and nothing beyond
        biases (empirical Bayes would end with items that do not differ).
        """
        rated = np.count_nonzero(self.users.counts) + np.count_nonzero(self.items.counts)
        return len(self.users.value) <= int(rated)

    def without(self, held_out: Int64s) -> "Training":
        """The same users and items without the ratings at these entries of `users`."""
        users = self.users
        kept = np.delete(np.arange(len(users.value)), held_out)
        part = compress_pairs(
            users.row[kept], users.other[kept], users.value[kept], users.time[kept], users.rows
        )
        return Training.of(part, self.items.rows, self.compiled)

    def sample(self, most: int) -> tuple[Int64s, Int64s]:
        """About `most` ratings, evenly: their entries in `users` and in `items`."""
        if most not in self._samples:
            n = len(self.users.value)
            entries = np.arange(0, n, max(1, n // most))
            place = np.full(n, -1, dtype=np.int64)
            place[entries] = np.arange(len(entries))
            place = place[self.items.source]
            found = np.flatnonzero(place >= 0)
            item_entries = np.empty(len(entries), dtype=np.int64)
            item_entries[place[found]] = found
            self._samples[most] = entries, item_entries
        return self._samples[most]

    def sessions(self, of_users: bool, session_length: float) -> Sessions | None:
        """Groups of the entries of users or of items."""
        key = (of_users, session_length)
        if key not in self._sessions:
            self._sessions[key] = group_sessions(self.users if of_users else self.items, session_length)
        return self._sessions[key]

    def sets(self, of_users: bool, ridge: float) -> ImplicitEffects | None:
        """The regression on the rated sets of users or of items; None where `ridge` is 0."""
        key = (of_users, ridge)
        if ridge <= 0:
            return None
        if key not in self._sets:
            own, other = (self.users, self.items) if of_users else (self.items, self.users)
            self._sets[key] = ImplicitEffects(own, other, ridge, self.compiled)
        return self._sets[key]


class State:
    """A fit between two sweeps: `parameters`, `user_rows`, `item_rows` (float64)."""

    def __init__(
        self, training: Training, parameters: Parameters, user_rows: Float64s, item_rows: Float64s
    ) -> None:
        self.training = training
        self.parameters = parameters
        self.user_rows = user_rows
        self.item_rows = item_rows
        self.change = math.inf
        self._level: Int64s | None = None
        self._user_step: HalfStep | None = None
        self._item_step: HalfStep | None = None
        self._scores: Float64s | None = None
        self._placed: Float64s | None = None

    @staticmethod
    def begin(
        training: Training,
        parameters: Parameters,
        rng: np.random.Generator | None,
        user_rows: Float64s | None = None,
        item_rows: Float64s | None = None,
    ) -> "State":
        """A state that starts from rows of another fit with these parameters, or else from random
        directions.
        """
        users, items = (
            prior_rows(side, data.rows)
            for side, data in ((parameters.users, training.users), (parameters.items, training.items))
        )
        if user_rows is not None:
            users[: len(user_rows)] = user_rows[: len(users)]
        if item_rows is not None:
            items[: len(item_rows)] = item_rows[: len(items)]
        elif rng is not None:
            # The dimensions start alike: random directions, as large as the prior says, tell them apart.
            layout = parameters.items.layout
            spread = np.sqrt(np.diag(parameters.items.covariance)[:-1])
            items[:, layout.latent] += rng.standard_normal((len(items), layout.rank)) * spread
        return State(training, parameters, users, items)

    def branch(self, terms: Terms) -> "State":
        """A state with these terms that starts from where this one stands."""
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

    def sweep(self, block_rows: int = 8192, *, priors: bool = True) -> float:
        """One sweep. Returns (and keeps as `change`) the root mean square change of the scores of the
        ratings, in units of the range of the scale.
        """
        training, parameters = self.training, self.parameters
        own, other = parameters.users, parameters.items
        user_effect = self.user_rows[:, own.layout.implicit_effect].copy()
        item_effect = self.item_rows[:, other.layout.implicit_effect].copy()
        ordinal = parameters.link == "ordinal"
        # Ordinal sites move along with the posteriors, one step of the fixed point in each sweep, once they
        # are there.
        steps = 1 if self._user_step is not None else _FIRST_STEPS
        compiled = training.compiled
        step = compiled.half_step if compiled else partial(half_step, block_rows=block_rows)
        self._user_step = user_step = step(
            parameters,
            "user",
            self.item_rows,
            training.users,
            sessions=training.sessions(True, own.session_length),
            begin=self._user_step if ordinal else None,
            steps=steps,
            damping=_SWEEP_DAMPING,
        )
        self.user_rows = user_step.rows
        user_sets = training.sets(True, own.implicit_ridge)
        users = learn_side(own, self.user_rows, user_sets.offsets(item_effect) if user_sets else 0.0)
        if user_sets:
            item_effect = user_sets.learn(self.user_rows[:, own.layout.mean] - users.mean)
        self.user_rows[:, own.layout.implicit_effect] = user_effect
        self._item_step = item_step = step(
            parameters,
            "item",
            self.user_rows,
            training.items,
            sessions=training.sessions(False, other.session_length),
            begin=self._item_step if ordinal else None,
            steps=steps,
            damping=_SWEEP_DAMPING,
        )
        self.item_rows = item_step.rows
        item_sets = training.sets(False, other.implicit_ridge)
        items = learn_side(other, self.item_rows, item_sets.offsets(user_effect) if item_sets else 0.0)
        if item_sets:
            user_effect = item_sets.learn(self.item_rows[:, other.layout.mean] - items.mean)
        learned = self._learn_ordinal(user_step) if ordinal else self._learn_noise(user_step, item_step)
        self.item_rows[:, other.layout.implicit_effect] = item_effect
        self.user_rows[:, own.layout.implicit_effect] = user_effect
        if not priors or training.sparse:
            users, items = own, other
        self.parameters = replace(
            learned,
            users=_learn_drift(_learn_sessions(users, user_step), user_step),
            items=_learn_sessions(items, item_step),
        )
        return self.change

    def residuals(self) -> Float64s:
        """Ratings less scores, by entry of `training.users`; what one sweep with the Gaussian link left. 0
        where there are more than a million.
        """
        if self._scores is None:
            return np.zeros(len(self.training.users.value))
        return self.training.users.value - self._scores

    def _learn_noise(self, user_step: HalfStep, item_step: HalfStep) -> Parameters:
        parameters, n = self.parameters, len(self.training.users.value)
        every = self._every
        square, scores = self._errors(user_step, item_step, every)
        self._moved(scores, scale_range(parameters.scale))
        self._scores = scores if every == 1 else None
        # One pseudo-rating, so that few ratings that agree are not taken for a world without noise, and a
        # floor, so that such a world does not divide by zero.
        noise = (square + 0.5 * uniform_variance(parameters.scale)) / (n + 1.0)
        return replace(parameters, noise=max(noise, (1e-3 * scale_range(parameters.scale)) ** 2))

    def _errors(self, user_step: HalfStep, item_step: HalfStep, every: int) -> tuple[float, Float64s]:
        """The expected sum of squares of ratings less scores, and the score of each `every`-th rating."""
        training, parameters = self.training, self.parameters
        users, sessions = training.users, training.sessions(True, parameters.users.session_length)
        compiled = training.compiled
        if compiled is None or parameters.moves:
            found = entry_scores(
                parameters, "user", self.item_rows, users, current=user_step, sessions=sessions
            )
            square = (users.value - found.mean) ** 2 + found.own_variance + found.other_variance
            return float(square.sum()), found.mean[::every]
        total = item_step.expected_squares
        if not math.isfinite(total):
            total = compiled.expected_squares(
                parameters, "user", self.item_rows, users, current=user_step, sessions=sessions
            )
        means = compiled.score_means(
            parameters, "user", self.item_rows, users, current=user_step, sessions=sessions, every=every
        )
        return total, means

    @property
    def _every(self) -> int:
        return max(1, len(self.training.users.value) // _LOOKED_AT)

    def _learn_ordinal(self, step: HalfStep) -> Parameters:
        parameters, users = self.parameters, self.training.users
        if self._level is None:
            self._level = rating_levels(parameters.scale, users.value)
        sites = step.sites
        if sites is None:
            return parameters
        looked_at = sites.mean[:: self._every].astype(np.float64)
        self._moved(looked_at - float(parameters.cuts.mean()), score_range(parameters))
        entries, mean, variance = self.leave_one_out(RATINGS_FOR_CUTS)
        cuts, noise = learn_link(parameters.cuts, parameters.noise, self._level[entries], mean, variance)
        return replace(parameters, cuts=cuts, noise=noise)

    def leave_one_out(self, most: int) -> tuple[Int64s, Float64s, Float64s]:
        """Of about `most` ratings their entries in `training.users`, and mean and variance of their scores as
        they would be without them. After a sweep; nothing before.
        """
        training, users, items = self.training, self.parameters.users, self.parameters.items
        if self._user_step is None or self._item_step is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
        entries, item_entries = training.sample(most)
        age = entry_ages(users, training.users)
        mean, variance = leave_one_out_scores(
            users.layout,
            self._user_step,
            self._item_step,
            training.users,
            entries=entries,
            item_entries=item_entries,
            user_sessions=training.sessions(True, users.session_length),
            item_sessions=training.sessions(False, items.session_length),
            age=None if age is None else age[entries],
        )
        return entries, mean + self.parameters.mean, variance

    def _moved(self, scores: Float64s, unit: float) -> None:
        # In units of the range, so that a change of the unit of an ordinal model's scores is no change.
        placed = scores / unit
        if self._placed is not None and len(placed):
            self.change = float(np.sqrt(np.mean((placed - self._placed) ** 2)))
        self._placed = placed


def score_range(parameters: Parameters) -> float:
    """The range of the scale in units of scores."""
    cuts = parameters.cuts
    if len(cuts) < 2:
        return scale_range(parameters.scale) if len(cuts) == 0 else 2.0 * math.sqrt(parameters.noise)
    return float(cuts[-1] - cuts[0]) * len(cuts) / (len(cuts) - 1)


def in_rating_units(parameters: Parameters, rows: Float64s, *, of_users: bool) -> tuple[Parameters, Float64s]:
    """The same model, and `rows` of users or of items, with scores about in units of the ratings.

    The scores of an ordinal model have no unit of their own: without this, it would wander from fit to fit.
    """
    if parameters.link == "gaussian":
        return parameters, rows
    factor = scale_range(parameters.scale) / score_range(parameters)
    vector = np.append(np.full(parameters.users.layout.rank, math.sqrt(factor)), factor)
    triangle_rows, triangle_columns, _ = triangle(len(vector))

    def scaled(side: Side) -> Side:
        return replace(
            side,
            mean=side.mean * vector,
            covariance=side.covariance * np.outer(vector, vector),
            precision=side.precision / np.outer(vector, vector),
            session_variance=side.session_variance * factor * factor,
            drift=side.drift and _scaled_drift(side.drift, vector),
        )

    result = replace(
        parameters,
        mean=parameters.mean * factor,
        noise=parameters.noise * factor * factor,
        cuts=parameters.cuts * factor,
        users=scaled(parameters.users),
        items=scaled(parameters.items),
    )
    layout = parameters.users.layout if of_users else parameters.items.layout
    rows = rows.copy()
    rows[:, layout.velocity] *= vector[: layout.dim * layout.moving]
    rows[:, layout.mean] *= vector
    rows[:, layout.covariance] *= vector[triangle_rows] * vector[triangle_columns]
    rows[:, layout.implicit_effect] *= vector
    rows[:, layout.effects] *= factor
    rows[:, layout.variances] *= factor * factor
    return result, rows


def _scaled_drift(drift: Drift, vector: Float64s) -> Drift:
    outside = np.outer(vector, vector)
    return replace(drift, covariance=drift.covariance * outside, precision=drift.precision / outside)


def terms_of(parameters: Parameters) -> Terms:
    """The terms that `parameters` have."""
    users, items = parameters.users, parameters.items
    drift = float(users.drift is not None)
    return Terms(
        parameters.link,
        users.implicit_ridge,
        items.implicit_ridge,
        users.session_length,
        items.session_length,
        drift,
    )


def with_terms(parameters: Parameters, terms: Terms, training: Training) -> Parameters:
    """`parameters` with these terms, those that are new at a value to start from."""
    variance = parameters.noise
    users = _with_sessions(
        parameters.users, terms.user_session, training.sessions(True, terms.user_session), variance
    )
    items = _with_sessions(
        parameters.items, terms.item_session, training.sessions(False, terms.item_session), variance
    )
    users = _with_drift(users, terms.user_drift, training.users)
    changed = replace(
        parameters,
        users=replace(users, implicit_ridge=terms.user_ridge),
        items=replace(items, implicit_ridge=terms.item_ridge),
    )
    if terms.link == "ordinal" and parameters.link == "gaussian":
        return replace(changed, link="ordinal", cuts=start_cuts(parameters.scale))
    return changed


def relayout(old: Side, new: Side, rows: Float64s) -> Float64s:
    """`rows` of side `old` in the layout of side `new`; sessions that are not the same are dropped."""
    result = prior_rows(new, len(rows))
    shared, end = new.layout.keys.start, new.layout.variances.stop
    result[:, :shared] = rows[:, :shared]
    if old.session_length == new.session_length and old.layout.slots == new.layout.slots:
        result[:, shared:end] = rows[:, shared:end]
    if old.drift is not None and new.drift is not None:
        result[:, end:] = rows[:, old.layout.variances.stop :]
    return result


def _with_sessions(side: Side, session_length: float, sessions: Sessions | None, noise: float) -> Side:
    if session_length <= 0 or sessions is None:
        layout = replace(side.layout, slots=0)
        return replace(side, layout=layout, session_length=0.0, session_variance=0.0)
    if session_length == side.session_length and side.layout.slots:
        return side
    per_row = np.bincount(sessions.row)
    slots = int(np.clip(np.percentile(per_row[per_row > 0], 99), 1, MAX_SLOTS))
    layout = replace(side.layout, slots=slots)
    return replace(side, layout=layout, session_length=session_length, session_variance=0.05 * noise)


def _with_drift(side: Side, ratio: float, data: Compressed) -> Side:
    drift = None
    if ratio > 0:
        drift = side.drift or start_drift(side, data.time, ratio)
    return replace(side, layout=replace(side.layout, moving=drift is not None), drift=drift)


def _learn_drift(side: Side, step: HalfStep) -> Side:
    if side.drift is None or step.covariance is None:
        return side
    # Who rated once, or all at once, says nothing of velocities.
    rated = step.rows[:, COUNT] > 1
    dim = side.layout.dim
    velocity = step.rows[rated][:, side.layout.velocity]
    return replace(side, drift=learn_drift(side.drift, velocity, step.covariance[rated, dim:, dim:]))


def _learn_sessions(side: Side, step: HalfStep) -> Side:
    if len(step.session_effect) == 0 or side.session_variance <= 0:
        return side
    total = float(np.sum(step.session_effect**2 + step.session_variance)) + side.session_variance
    return replace(side, session_variance=max(total / (len(step.session_effect) + 1.0), 1e-12))
