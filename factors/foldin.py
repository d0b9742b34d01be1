"""Fold-in: the posterior rows of users and items from their full histories, exactly as the batch half-step
has them.
"""

import numpy as np

from factors import confidence
from factors.halfstep import half_step, prior_rows
from factors.histories import compress
from factors.parameters import SideName, from_model
from factors.tables import Float32s, Histories, Model


def fold_in_users(model: Model, items: Float32s, histories: Histories) -> Float32s:
    """User rows (b, user_width) from b histories given the item table (n_items, item_width).

    An item row that is negative or beyond the table counts as an item nobody knows. An empty history gives
    the prior.
    """
    return _fold_in(model, "user", items, histories)


def fold_in_items(model: Model, users: Float32s, histories: Histories) -> Float32s:
    """Item rows (b, item_width) from b histories; `other_row` indexes `users` (n, user_width).

    The set effect of a rated item on its raters is learned by the fit alone and is 0 here.
    """
    return _fold_in(model, "item", users, histories)


def prior_user(model: Model) -> Float32s:
    """The row (user_width,) of a user nobody knows."""
    row: Float32s = prior_rows(from_model(model).users, 1)[0].astype(np.float32)
    return row


def prior_item(model: Model) -> Float32s:
    """The row (item_width,) of an item nobody knows."""
    row: Float32s = prior_rows(from_model(model).items, 1)[0].astype(np.float32)
    return row


def _fold_in(model: Model, name: SideName, table: Float32s, histories: Histories) -> Float32s:
    if confidence.is_confidence(model):
        return confidence.fold_in(model, name, table, histories)
    parameters = from_model(model)
    rows = half_step(parameters, name, table, compress(histories, len(table)))
    return rows.astype(np.float32)
