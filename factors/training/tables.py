"""The tables of a fit as they are published, from a state of its sweeps.

Invariant: items are as they are stored, and a user's row is what a fold-in gives with exactly these.
"""

import math
from dataclasses import replace

import numpy as np

from factors.errors import FitDiverged
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import Iteration, begun
from factors.inference.ordinal import NO_SITES, Sites
from factors.inference.session_effects import move_to_any_time, share_of_known
from factors.inference.side_moments import prior_rows
from factors.model.columns import Columns
from factors.model.layout import COUNT, Layout, triangle
from factors.model.parameters import Parameters, Side, SideName, to_model
from factors.model.quantized_rows import QuantizedTable, item_codec
from factors.model.scale import scale_range
from factors.model.types import Bools, Float32s, Float64s, Int64s
from factors.posterior.fitted import Fitted
from factors.training.drift import widened
from factors.training.priors import learn_cold_start
from factors.training.sweep import State
from factors.training.training_set import TrainingSet


def finish(state: State, metrics: dict[str, float]) -> Fitted:
    """Return the tables as they are published. The state has no rows any more. Raises `FitDiverged`."""
    parameters, user_rows, item_rows = _at_any_time(state)
    keep = state.training.by_user.counting()
    sites = _sites(state, parameters, slice(None) if keep is None else keep)
    # The last half-step reads no ratings by item.
    state.end()
    parameters, items = _stored(parameters, user_rows, item_rows, state.training)
    del item_rows
    users = _folded_in(parameters, items, state.training, user_rows, sites)
    return Fitted(to_model(parameters), users, items, metrics)


def served(state: State, metrics: dict[str, float], rows: Int64s) -> Fitted:
    """Return the tables as `finish` does, of the users those at `rows` alone: the others are as the sweeps
    left them, and so is the state. Raises `FitDiverged`.
    """
    parameters, user_rows, item_rows = _at_any_time(state)
    parameters, items = _stored(parameters, user_rows, item_rows, state.training)
    del item_rows
    users, begin = user_rows.astype(np.float32), user_rows[rows]
    del user_rows
    training, chosen = state.training.of_users(rows), np.zeros(len(users), dtype=np.bool_)
    chosen[rows] = True
    entries, keep = np.repeat(chosen, state.training.by_user.counts), training.by_user.counting()
    if keep is not None:
        entries[np.flatnonzero(entries)] = keep
    users[rows] = _folded_in(parameters, items, training, begin, _sites(state, parameters, entries))
    return Fitted(to_model(parameters), users, items, metrics)


def _stored(
    parameters: Parameters, user_rows: Float64s, item_rows: Float64s, training: TrainingSet
) -> tuple[Parameters, Float32s]:
    """Return the parameters with the priors of rows that come later, and the items as they are stored."""
    parameters = learn_cold_start(
        widened(parameters), user_rows, item_rows, training.by_user, training.attributes
    )
    codec = item_codec(parameters)
    items = codec.encode(item_rows)
    # The sweeps know no cold start: rows without ratings get the prior of new ones.
    unrated = np.flatnonzero(item_rows[:, COUNT] == 0)
    items[unrated] = codec.encode(_priors(parameters.items, unrated, training.attributes.get("item")))
    numbers = to_model(parameters).parameters.values()
    if not (codec.all_finite(items) and all(np.isfinite(array).all() for array in numbers)):
        raise FitDiverged("the fit gave item rows or priors that are not finite")
    return parameters, items


def _sites(state: State, parameters: Parameters, entries: Bools | slice) -> Sites:
    """Return the sites that the sweeps left at these `entries` of the users' ratings, which count, in the
    units of `parameters`; none where there are none. Those of a slice are the state's own, which is done.
    """
    step = state.steps.get("user")
    if step is None or parameters.link == "gaussian":
        return NO_SITES
    sites = Sites.of(step.sites.weight[entries], step.sites.linear[entries])
    per = math.sqrt(state.parameters.noise / parameters.noise)
    np.multiply(sites.weight, per * per, out=sites.weight)
    np.multiply(sites.linear, per, out=sites.linear)
    return sites


def _folded_in(
    parameters: Parameters, items: Float32s, training: TrainingSet, user_rows: Float64s, sites: Sites
) -> Float32s:
    """Return the users of `training`, folded in with the items as the service reads them, so that a later
    fold-in gives the same rows. They begin where the sweeps left them, `user_rows` with their `sites`, which
    are spent.
    """
    effect = parameters.users.layout.implicit_effect
    effects = user_rows[:, effect].copy()
    table = QuantizedTable(items, item_codec(parameters))
    of_users = training.attributes.get("user")
    inputs = HalfStepInput.of(parameters, "user", table, training.by_user.thinned(), attributes=of_users)
    # Where they begin saves steps, and does not tell where they end.
    begin = begun(inputs, user_rows)
    begin = None if begin is None else replace(begin, sites=sites)
    to_the_end = Iteration(begin=begin, spent=True)
    del user_rows, begin, sites
    step = training.backend.half_step(inputs, to_the_end)
    users: Float32s = step.rows.astype(np.float32)
    users[:, effect] = effects
    unrated = np.flatnonzero(users[:, COUNT] == 0)
    users[unrated] = _priors(parameters.users, unrated, of_users)
    if not np.isfinite(users).all():
        raise FitDiverged("the fit gave user rows that are not finite")
    return users


def _priors(side: Side, rows: Int64s, attributes: Columns | None) -> Float64s:
    """Return the rows (m, width) of those at `rows` (m,), which have no ratings."""
    if attributes is None:
        return np.repeat(prior_rows(side, 1), len(rows), axis=0)
    return prior_rows(side, len(rows), attributes.take(rows))


def _at_any_time(state: State) -> tuple[Parameters, Float64s, Float64s]:
    """Return the model and rows of `state` in units of the ratings, for questions that may have no time."""
    parameters, *tables = _in_rating_units(state.parameters, state.user_rows, state.item_rows)
    per = math.sqrt(parameters.noise / state.parameters.noise)
    sides, moved = [], []
    sides_of: tuple[tuple[SideName, Side], ...] = ("user", parameters.users), ("item", parameters.items)
    for (name, side), table in zip(sides_of, tables, strict=True):
        own, rows, step = side, table, state.steps.get(name)
        # One slot says what other sessions have: a row needs another one.
        if side.has_sessions and side.layout.slots > 1 and step is not None:
            sessions = state.training.sessions(name, side.session_length, side.sitting_length)
            own = replace(side, any_time=share_of_known(sessions))
            # The state may go on from its rows.
            rows = table.copy() if parameters is state.parameters else table
            move_to_any_time(own, rows, sessions, step.posterior.effects.mean * per)
        sides.append(own)
        moved.append(rows)
    return replace(parameters, users=sides[0], items=sides[1]), moved[0], moved[1]


def _in_rating_units(
    parameters: Parameters, user_rows: Float64s, item_rows: Float64s
) -> tuple[Parameters, Float64s, Float64s]:
    """Return the same model and rows with scores about in units of the ratings, as they leave a fit: without
    this, those of an ordinal model would wander from fit to fit. Writes to neither.
    """
    if parameters.link == "gaussian":
        return parameters, user_rows, item_rows
    factor = scale_range(parameters.scale) / parameters.score_range
    # Both sides share the unit of their products; a bias has all of it.
    vector = np.append(np.full(parameters.users.layout.rank, math.sqrt(factor)), factor)
    context = parameters.context
    result = replace(
        parameters,
        mean=parameters.mean * factor,
        noise=parameters.noise * factor * factor,
        cuts=parameters.cuts * factor,
        users=_scaled_side(parameters.users, vector),
        items=_scaled_side(parameters.items, vector),
        context=context and replace(context, effects=context.effects * vector),
    )
    return (
        result,
        _scaled_rows(parameters.users.layout, user_rows, vector),
        _scaled_rows(parameters.items.layout, item_rows, vector),
    )


def _scaled_side(side: Side, vector: Float64s) -> Side:
    squares, factor = np.outer(vector, vector), float(vector[-1])
    return replace(
        side.with_drift(lambda drift: drift.scaled(squares)),
        mean=side.mean * vector,
        covariance=side.covariance * squares,
        precision=side.precision / squares,
        session_variance=side.session_variance * factor * factor,
        sitting_variance=side.sitting_variance * factor * factor,
        attribute_effects=None if side.attribute_effects is None else side.attribute_effects * vector,
    )


def _scaled_rows(layout: Layout, rows: Float64s, vector: Float64s) -> Float64s:
    triangle_rows, triangle_columns, _ = triangle(layout.dim)
    factor, rows = float(vector[-1]), rows.copy()
    rows[:, layout.velocity] *= vector[: layout.dim * layout.moving]
    rows[:, layout.mean] *= vector
    rows[:, layout.covariance] *= vector[triangle_rows] * vector[triangle_columns]
    rows[:, layout.implicit_effect] *= vector
    rows[:, layout.effects] *= factor
    rows[:, layout.variances] *= factor * factor
    return rows
