"""The documents of the lecture's contract, exactly: the server sends them, a client reads them."""

import msgspec


class ResetAnswer(msgspec.Struct, frozen=True):
    """What `GET /reset` returns: the known ratings as parallel lists in time order, and the pending pair."""

    nb_users: int
    nb_items: int
    user_history: list[int]
    item_history: list[int]
    rating_history: list[int]
    next_user: int
    next_item: int


class PredictAnswer(msgspec.Struct, frozen=True):
    """What `GET /predict` returns: the true rating of the pair that was pending, and the next pair."""

    next_item: int
    next_user: int
    rating: int


class LastAnswer(msgspec.Struct, frozen=True):
    """The part of an answer 410 that a player needs: the rating, where the call rated the last pair."""

    rating: int | None = None
