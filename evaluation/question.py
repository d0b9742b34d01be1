"""What an engine is asked and what it answers: plain arrays.

Invariant: a question holds the training ratings, and of the held-out ones only user, item and time. In a
question without held-out pairs the training ratings are in time order, and each is to be predicted before it
is learned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # not loaded in the process of a peer, whose memory is measured
    from factors import Columns, ContextKind, Ratings, Scale

SideName = Literal["user", "item"]
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]
Contexts = npt.NDArray[np.float32]


def no_context() -> Contexts:
    """The contexts of ratings where there are none."""
    return np.empty((0, 0), dtype=np.float32)


def no_tuning() -> Bools:
    """The training ratings to choose settings by of a question that asks for no rankings."""
    return np.empty(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Question:
    """Training ratings and the pairs to predict. `low`, `high`, `step` (0: none): the scale. Times may be
    NaN.

    `top`: how many items, not rated in training, to rank for each of `ranked_users`; 0: none. `tuning` (n,):
    training ratings to choose settings of rankings by, held out in the manner of the pairs; `latest`: the
    pairs come after what is learned. `item_columns`, `user_columns` (3, m): attributes as columns of numbers,
    each entry with row, column and value; `item_center`, `user_center` (c,): what each row that has any is
    less. Without attributes all are empty. `train_context` (n, k), `test_context` (m, k): what was told with
    each rating, NaN what was not, and `categorical` (k,): which of it are codes of categories.
    """

    # Numbers and arrays only: each is a member of the file by which a question reaches its process.
    n_users: int
    n_items: int
    low: float
    high: float
    step: float
    train_user: Rows
    train_item: Rows
    train_value: Array
    train_time: Array
    test_user: Rows
    test_item: Rows
    test_time: Array
    top: int = 0
    tuning: Bools = field(default_factory=no_tuning)
    latest: bool = False
    item_columns: Array = field(default_factory=lambda: np.empty((3, 0)))
    item_center: Array = field(default_factory=lambda: np.empty(0))
    user_columns: Array = field(default_factory=lambda: np.empty((3, 0)))
    user_center: Array = field(default_factory=lambda: np.empty(0))
    train_context: Contexts = field(default_factory=no_context)
    test_context: Contexts = field(default_factory=no_context)
    categorical: Bools = field(default_factory=no_tuning)

    def attributes(self) -> "Mapping[SideName, Columns]":
        """The attributes of items and of users as `factors` has them, where there are any."""
        from factors import Columns  # as below

        sides: Mapping[SideName, tuple[Array, Array, int]] = {
            "item": (self.item_columns, self.item_center, self.n_items),
            "user": (self.user_columns, self.user_center, self.n_users),
        }
        return {
            name: Columns.of(entries, center, n_rows)
            for name, (entries, center, n_rows) in sides.items()
            if len(center)
        }

    def ranked_users(self) -> Rows:
        """The users to rank for, ascending: those of the pairs of whom something is known."""
        # Without a history there is nothing to rank by: figures would be those of ties.
        users: Rows = np.intersect1d(self.test_user, self.train_user)
        return users

    def scale(self) -> "Scale":
        """The scale as `factors` has it."""
        from factors import Scale  # as above

        return Scale(self.low, self.high, self.step or None)

    def ratings(self, *, context: bool = False) -> "Ratings":
        """The training ratings as `factors` has them, with their contexts where these are wanted."""
        from factors import Ratings  # as above

        columns = (self.train_user, self.train_item, self.train_value, self.train_time)
        return Ratings(*columns, context=self.train_context if context and len(self.categorical) else None)

    def context_kinds(self) -> "tuple[ContextKind, ...]":
        """The kind of each field of a context."""
        return tuple("category" if is_category else "number" for is_category in self.categorical.tolist())

    def clip(self, rating: Array) -> Array:
        """`rating`, brought onto the scale."""
        return np.clip(rating, self.low, self.high)


def no_probabilities() -> Probabilities:
    """The probabilities of an engine that has none."""
    return np.empty((0, 0), dtype=np.float32)


def no_top() -> Rows:
    """The rankings of an engine that has none."""
    return np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What an engine answers. What it cannot tell stays empty.

    `rating`, `std`: float64 (m,); `probabilities`: of each step of the scale, (m, levels); `top`: item rows,
    best first, one line for each of `Question.ranked_users`, -1 where there are fewer; `note`: what the
    engine tells of itself.
    """

    rating: Array = field(default_factory=lambda: np.empty(0))
    std: Array = field(default_factory=lambda: np.empty(0))
    probabilities: Probabilities = field(default_factory=no_probabilities)
    top: Rows = field(default_factory=no_top)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `seconds`: CPU time of the process for the task, all of its threads together.

    `peak_mb`: highest resident memory of the process, libraries included; NaN where the system does not tell.
    """

    predicted: Predicted
    seconds: float
    peak_mb: float


Predict = Callable[[Question, int], Predicted]
"""Answers a question; the number is the seed."""


@dataclass(frozen=True, slots=True)
class ComparedEngine:
    """One that is compared. `online` answers questions without held-out pairs, None where the engine learns
    from whole sets only.
    """

    title: str
    predict: Predict
    online: Predict | None = None
