"""Fold-in: the posterior rows of users and items from their full histories, exactly as the batch half-step
has them.

Invariant: the answer depends on the model, the other table and the history, not on who is folded in beside
it.
"""

import math
from functools import lru_cache

import numpy as np

from factors.inference import implicit_feedback as confidence
from factors.inference.half_step import half_step
from factors.inference.histories import compress
from factors.inference.side_moments import prior_rows
from factors.model.identity import Same
from factors.model.layout import COUNT, NO_SESSION, session_keys
from factors.model.parameters import Parameters, SideName, from_model
from factors.model.quantized_rows import QuantizedTable, RowCodec, Table, item_codec
from factors.model.types import Bools, Float32s, Histories, Model


def fold_in_users(
    model: Model,
    items: Float32s,
    histories: Histories,
    *,
    current: Float32s | None = None,
    at: float | None = None,
) -> Float32s:
    """User rows (b, user_width) from b histories given the item table (n_items, item_width), as stored.

    An item row that is negative or beyond the table counts as an item nobody knows. An empty history gives
    the prior. What having a user among its raters says of an item (the implicit effect in the row) is learned
    by the fit alone: it is taken over from `current` (b, user_width), the rows of these users so far (the
    prior for who has none: he then counts as one who came after the fit). Without `current` it is 0, and all
    count as if they had been in the fit. `at`: a time whose session the rows are to keep, for a prediction of
    then (`keeps_time`).
    """
    return _fold_in(model, "user", items, histories, current=current, at=at)


def keeps_time(model: Model, user: Float32s, time: float) -> bool:
    """Whether the row `user` (user_width,) says all that its history could of a rating at `time`."""
    if confidence.is_implicit(model):
        return True
    side = from_model(model).users
    layout = side.layout
    if not layout.slots or side.session_variance <= 0 or not math.isfinite(time):
        return True
    keys = user[layout.keys]
    # A row with a slot to spare has dropped nothing.
    return bool(
        (keys == NO_SESSION).any() or (keys == session_keys(np.array([time]), side.session_length)).any()
    )


def fold_in_items(
    model: Model, users: Float32s, histories: Histories, *, current: Float32s | None = None
) -> Float32s:
    """Stored item rows (b, item_width) from b histories; `other_row` indexes `users` (n, user_width).

    What having rated an item says of its users is learned by the fit alone: `current` (b, item_width), the
    rows of the fit, is as for users.
    """
    return _fold_in(model, "item", users, histories, current=current)


def prior_user(model: Model) -> Float32s:
    """The row (user_width,) of a user nobody knows."""
    row: Float32s = prior_rows(from_model(model).users, 1)[0].astype(np.float32)
    return row


def prior_item(model: Model) -> Float32s:
    """The stored row (item_width,) of an item nobody knows."""
    parameters = from_model(model)
    row: Float32s = item_codec(parameters).encode(prior_rows(parameters.items, 1))[0]
    return row


def _fold_in(
    model: Model,
    name: SideName,
    table: Float32s,
    histories: Histories,
    *,
    current: Float32s | None,
    at: float | None = None,
) -> Float32s:
    if confidence.is_implicit(model):
        return confidence.fold_in(model, name, table, histories)
    parameters = from_model(model)
    codec = _item_codec(Same(parameters))
    read: Table = table
    if name == "user":
        read = QuantizedTable(table, codec)
    elif current is not None:
        current = codec.decode(current, covariance=False)
    new = came_after(parameters, name, current)
    data = compress(histories, len(table))
    session_length = parameters.side(name)[0].session_length
    keep = math.nan if at is None else float(session_keys(np.array([at]), session_length)[0])
    rows = half_step(parameters, name, read, data, new=new, keep=keep).rows
    if current is not None:
        effect = parameters.side(name)[0].layout.implicit_effect
        rows[:, effect] = current[:, effect]
    return rows.astype(np.float32) if name == "user" else codec.encode(rows)


@lru_cache(maxsize=8)
def _item_codec(same: Same[Parameters]) -> RowCodec:
    return item_codec(same.value)


def came_after(parameters: Parameters, name: SideName, current: Float32s | None) -> Bools | None:
    """Which of the rows `current` (b, width) came after the fit; None where that makes no difference."""
    own, other = parameters.side(name)
    if current is None or own.cold_start is None:
        return None
    if other.implicit_ridge <= 0:
        return np.asarray(current[:, COUNT] == 0)
    # Only a fit learns implicit effects: who has none has not been in one.
    return np.asarray(~current[:, own.layout.implicit_effect].any(axis=1))
