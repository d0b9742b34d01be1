"""The terms that a model may have, and parameters and rows changed to have others.

Invariant: a term that stays keeps its value, so that a state that changes its terms goes on from where it
was.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.inference.side_moments import prior_rows
from factors.model.columns import Columns
from factors.model.context import ContextEffects, ContextEncoding
from factors.model.layout import Layout, triangle
from factors.model.parameters import Parameters, Side, SideName
from factors.model.scale import ordinal_levels
from factors.model.types import Float64s, Link
from factors.training.drift import start_drift
from factors.training.training_set import TrainingSet


@dataclass(frozen=True, slots=True)
class Terms:
    """Which terms a model has. `user_ridge`, `item_ridge`: ridge of the implicit effects on users and on
    items, 0 for none. `user_session`, `item_session`: length of the sessions with an effect of their own, 0
    for none; `user_sitting`: of the sittings that those of users lie in. `user_drift`: whether users move, 0
    for no, else the variance of their velocities, relative to that of their positions, to begin with.
    `user_attributes`, `item_attributes`: whether attributes have effects. `context`: whether contexts have.
    """

    link: Link = "gaussian"
    user_ridge: float = 0.0
    item_ridge: float = 0.0
    user_session: float = 0.0
    item_session: float = 0.0
    user_drift: float = 0.0
    user_attributes: bool = False
    item_attributes: bool = False
    context: bool = False
    user_sitting: float = 0.0


def terms_of(parameters: Parameters) -> Terms:
    """Return the terms that `parameters` have."""
    users, items = parameters.users, parameters.items
    return Terms(
        parameters.link,
        users.implicit_ridge,
        items.implicit_ridge,
        users.session_length,
        items.session_length,
        float(users.layout.moving),
        users.attribute_effects is not None,
        items.attribute_effects is not None,
        parameters.context is not None,
        users.sitting_length,
    )


def with_terms(parameters: Parameters, terms: Terms, training: TrainingSet) -> Parameters:
    """Return `parameters` with these terms, those that are new at a value to start from."""
    users = _with_sessions(parameters, "user", terms.user_session, training, terms.user_sitting)
    items = _with_sessions(parameters, "item", terms.item_session, training)
    drift = None
    if terms.user_drift:
        drift = users.drift or start_drift(users, training.by_user.time, terms.user_drift)
    layout = replace(users.layout, moving=drift is not None)
    users = replace(users, layout=layout, drift=drift, implicit_ridge=terms.user_ridge)
    items = replace(items, implicit_ridge=terms.item_ridge)
    changed = replace(
        parameters,
        users=with_attributes(users, training.attributes.get("user") if terms.user_attributes else None),
        items=with_attributes(items, training.attributes.get("item") if terms.item_attributes else None),
        context=with_context(parameters, training.context if terms.context else None),
    )
    if terms.link == "ordinal" and parameters.link == "gaussian":
        # Scores are in units of the ratings so far: half-way between the levels.
        levels = np.linspace(parameters.scale.low, parameters.scale.high, ordinal_levels(parameters.scale))
        return replace(changed, link="ordinal", cuts=0.5 * (levels[1:] + levels[:-1]))
    return changed


def with_attributes(side: Side, columns: Columns | None) -> Side:
    """Return `side` with effects of these attributes, 0 where it had none of so many; without for None."""
    if columns is None or columns.width == 0:
        return replace(side, attribute_effects=None)
    known, shape = side.attribute_effects, (columns.width, side.layout.dim)
    if known is not None and known.shape == shape:
        return side
    return replace(side, attribute_effects=np.zeros(shape))


def with_context(parameters: Parameters, encoding: ContextEncoding | None) -> ContextEffects | None:
    """Return effects of contexts that are encoded so, those of columns that are known already as they were
    and the others 0; None for None.
    """
    if encoding is None:
        return None
    effects = np.zeros((encoding.width, parameters.users.layout.dim))
    if parameters.context is not None:
        known = dict(zip(parameters.context.encoding.keys, parameters.context.effects, strict=True))
        for row, key in enumerate(encoding.keys):
            effects[row] = known.get(key, 0.0)
    return ContextEffects(encoding, effects)


def _with_sessions(
    parameters: Parameters,
    name: SideName,
    session_length: float,
    training: TrainingSet,
    sitting_length: float = 0.0,
) -> Side:
    side, _ = parameters.side(name)
    before, variances = (
        (side.session_length, side.sitting_length),
        (side.session_variance, side.sitting_variance),
    )
    if before == (session_length, sitting_length) and side.layout.slots:
        return side
    # Sittings are made of sessions.
    if session_length <= 0:
        sitting_length = 0.0
    sessions = training.sessions(name, session_length, sitting_length)
    if len(sessions) == 0:
        layout = replace(side.layout, slots=0)
        side = replace(side, session_length=0.0, session_variance=0.0)
        return replace(side, layout=layout, sitting_length=0.0, sitting_variance=0.0)
    per_row = np.bincount(sessions.row)
    # Enough for all but one row in a hundred; 16 by size of their effect predict as well as 100 (MovieLens
    # 100K).
    # One more says what other sessions have.
    slots = 1 + int(np.clip(np.percentile(per_row[per_row > 0], 99), 1, 16))
    layout = replace(side.layout, slots=slots)
    # Small against the noise, where nothing is known: the sweeps raise it where the ratings speak for it.
    known = {length: variance for length, variance in zip(before, variances, strict=True) if variance > 0}
    variance = known.get(session_length, 0.05 * parameters.noise)
    return replace(
        side,
        layout=layout,
        session_length=session_length,
        session_variance=variance,
        sitting_length=sitting_length,
        sitting_variance=known.get(sitting_length, 0.5 * variance) if sitting_length else 0.0,
    )


def relayout(old: Side, new: Side, rows: Float64s) -> Float64s:
    """Return `rows` of side `old` in the layout of side `new`, which may have more dimensions: those as the
    prior has them, effects and velocities there 0. Sessions that are not the same are dropped.
    """
    before, layout = old.layout, new.layout
    result = prior_rows(new, len(rows))
    if before.rank == layout.rank:
        # In one piece, which takes a quarter of the time.
        result[:, : layout.keys.start] = rows[:, : before.keys.start]
    else:
        kept = np.append(np.arange(before.rank), layout.rank)
        down, across, _ = triangle(before.dim)
        result[:, : layout.mean.start] = rows[:, : before.mean.start]
        result[:, layout.mean][:, kept] = rows[:, before.mean]
        places = kept[down] * (kept[down] + 1) // 2 + kept[across]
        result[:, layout.covariance][:, places] = rows[:, before.covariance]
        result[:, layout.implicit_effect] = spread(rows[:, before.implicit_effect], layout)
    lengths = (old.session_length, old.sitting_length), (new.session_length, new.sitting_length)
    if lengths[0] == lengths[1] and before.slots == layout.slots:
        of_sessions = rows[:, before.keys.start : before.variances.stop]
        result[:, layout.keys.start : layout.variances.stop] = of_sessions
    if before.moving and layout.moving:
        result[:, layout.velocity] = spread(rows[:, before.velocity], layout)
        result[:, layout.anchor_time] = rows[:, before.anchor_time]
    return result


def spread(vectors: Float64s, layout: Layout) -> Float64s:
    """Return `vectors` (n, d) in the dimensions of `layout`, 0 in the last latent ones that they have not."""
    extra = layout.dim - vectors.shape[1]
    return np.insert(vectors, [layout.rank - extra] * extra, 0.0, axis=1)
