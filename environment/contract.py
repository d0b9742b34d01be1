"""The documents of the lecture's contract, exactly: the server sends them, a client reads them.

In a world with variables, the course's second environment, each event has a list of numbers besides; in one
without, these fields are not sent.
"""

import msgspec
from msgspec import UNSET, UnsetType


class ResetAnswer(msgspec.Struct, frozen=True):
    """What `GET /reset` returns: the known ratings as parallel lists in time order, and the pending pair.

    `variables_history`: the numbers beside each event; `next_variables`: those of the pending one.
    """

    nb_users: int
    nb_items: int
    user_history: list[int]
    item_history: list[int]
    rating_history: list[int]
    next_user: int
    next_item: int
    variables_history: list[list[float]] | UnsetType = UNSET
    next_variables: list[float] | UnsetType = UNSET


class PredictAnswer(msgspec.Struct, frozen=True):
    """What `GET /predict` returns: the true rating of the pair that was pending, and the next pair."""

    next_item: int
    next_user: int
    rating: int
    next_variables: list[float] | UnsetType = UNSET


class LastAnswer(msgspec.Struct, frozen=True):
    """The part of an answer 410 that a player needs: the rating, where the call rated the last pair."""

    rating: int | None = None
