"""Splits of a data set into training and held-out ratings.

Invariant: a split is decided by positions, times and chance, never by the ratings' values, and the same seed
gives the same split.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluation.offline.data import DataSet
from evaluation.question import Question, no_context, no_tuning
from processes.errors import CannotStartError

SplitName = Literal["given-fold", "random", "leave-k-out", "leave-last-k", "time", "prequential"]
SPLITS: tuple[SplitName, ...] = (
    *("given-fold", "random", "leave-k-out", "leave-last-k", "time", "prequential"),
)
FOLDS = 5  # as MovieLens publishes u1 to u5
# Of lists a tenth is held out, so that enough of a user is known, three times, for a standard error.
LISTS_SHARE, LISTS_REPEATS = 0.1, 3
TENTH = 0.1  # of the training ratings, held out again to choose settings by

Mask = npt.NDArray[np.bool_]
Rule = Callable[[DataSet], Mask]
"""Says which ratings of a data set are held out."""


@dataclass(frozen=True, slots=True)
class Split:
    """One split. `test`: mask of the held-out ratings.

    `sequential`: each rating is predicted in its order before it is learned; `test` is then all False.
    `again`: holds out a part of the training ratings in the manner of `test`, None for a random tenth;
    `latest`: what is held out comes after what is learned.
    """

    data: DataSet
    name: str
    test: Mask
    sequential: bool = False
    again: Rule | None = None
    latest: bool = False

    def question(self, top: int = 0) -> Question:
        """Return the training ratings, and of the held-out ones user, item and time. `top`: how many items to
        rank for each of their users, 0 for none.
        """
        train, test = self.data.part(~self.test), self.data.part(self.test)
        scale = self.data.scale
        return Question(
            n_users=self.data.n_users,
            n_items=self.data.n_items,
            low=scale.low,
            high=scale.high,
            step=scale.step or 0.0,
            train_user=train.user_row,
            train_item=train.item_row,
            train_value=train.value,
            train_time=train.time,
            test_user=test.user_row,
            test_item=test.item_row,
            test_time=test.time,
            top=top,
            tuning=self._tuning(replace(self.data, ratings=train)) if top else no_tuning(),
            latest=self.latest,
            train_context=no_context() if train.context is None else train.context,
            test_context=no_context() if test.context is None else test.context,
            categorical=np.array([kind == "category" for kind in self.data.context_kinds], dtype=np.bool_),
            **self.data.attribute_arrays(),
        )

    def _tuning(self, train: DataSet) -> Mask:
        with suppress(CannotStartError):
            if self.again is not None:
                return self.again(train)
        # By chance what cannot be split in the manner of the test: few ratings, or all of one time.
        return _random(train, TENTH, [0])

    def truth(self) -> npt.NDArray[np.float64]:
        """Return the ratings that are to be predicted."""
        value = self.data.ratings.value
        return value if self.sequential else value[self.test]

    def known_of_user(self) -> npt.NDArray[np.int64]:
        """Return how many ratings the user of each of `truth` had given before, (m,)."""
        user = self.data.ratings.user_row
        if self.sequential:
            # The rank of a rating among those of its user.
            order = np.argsort(user, kind="stable")
            bounds = np.searchsorted(user[order], user[order])
            before = np.empty(len(user), dtype=np.int64)
            before[order] = np.arange(len(user)) - bounds
            return before
        counts = np.bincount(user[~self.test], minlength=self.data.n_users)
        known: npt.NDArray[np.int64] = counts[user[self.test]]
        return known

    def digest(self) -> str:
        """Return a text that differs between splits of one data set."""
        # Bits: a split of 20 million ratings takes 2.5 MB to hash.
        return hashlib.blake2b(np.packbits(self.test).tobytes(), digest_size=16).hexdigest()


def given_folds(data: DataSet, folds: Sequence[int]) -> list[Split]:
    """Hold out the j-th fifth of the file in fold j: u1 to u5 of MovieLens 100K, whose `u.data` is mixed."""
    n = len(data.ratings.value)
    fifth = n // FOLDS  # a remainder is in no fold's test
    return [
        Split(data, f"u{fold}", _chosen(n, np.arange(fifth * (fold - 1), fifth * fold))) for fold in folds
    ]


def given_test(data: DataSet, n_first: int) -> Split:
    """Hold out the ratings after the first `n_first`: they came in a file of their own."""
    return Split(
        data, "test file", _chosen(len(data.ratings.value), np.arange(n_first, len(data.ratings.value)))
    )


def random_splits(data: DataSet, count: int, seed: int, share: float = 0.2) -> list[Split]:
    """Return `count` independent splits, `share` of the ratings held out."""
    return [Split(data, f"random {i + 1}", _random(data, share, [seed, i])) for i in range(count)]


def leave_out(data: DataSet, k: int, seed: int) -> Split:
    """Hold out `k` ratings, at random, of each user who has more. Raises CannotStartError for none."""

    def rule(data: DataSet) -> Mask:
        return _last_of_users(data, k, np.random.default_rng(seed).random(len(data.ratings.value)))

    return Split(data, f"leave {k} out", rule(data), again=rule)


def leave_last(data: DataSet, k: int) -> Split:
    """Hold out the latest `k` ratings of each user who has more. Raises CannotStartError for none, and where
    times tell no order.
    """

    def rule(data: DataSet) -> Mask:
        return _last_of_users(data, k, _times(data))

    return Split(data, f"last {k}", rule(data), again=rule, latest=True)


def by_time(data: DataSet, share: float = 0.2) -> Split:
    """Hold out the latest `share` of the ratings. Raises CannotStartError where times tell no order."""

    def rule(data: DataSet, share: float = TENTH) -> Mask:
        order = np.argsort(_times(data), kind="stable")
        return _chosen(len(order), order[len(order) - _held_out(len(order), share) :])

    return Split(data, "latest", rule(data, share), again=rule, latest=True)


def list_protocols(data: DataSet, repeats: int, share: float, k: int, seed: int) -> list[Split]:
    """Return the splits on which lists are compared: random ones, the latest ratings of all, and the latest
    `k` of each user. Without the last two where times tell no order, or no user has enough ratings.
    """
    found = random_splits(data, repeats, seed, share)
    with suppress(CannotStartError):
        found.append(by_time(data, share))
    with suppress(CannotStartError):
        found.append(leave_last(data, k))
    return found


def in_time_order(data: DataSet) -> Split:
    """Return all ratings in time order (of the file, where times are unknown), to be predicted one by one."""
    time = data.ratings.time
    order = np.argsort(time, kind="stable") if np.isfinite(time).all() else np.arange(len(time))
    # Stable, so ratings of one second keep the order of the file.
    ordered = replace(data, ratings=data.part(order))
    return Split(ordered, "in time order", np.zeros(len(order), dtype=np.bool_), sequential=True)


def _random(data: DataSet, share: float, seed: list[int]) -> Mask:
    n = len(data.ratings.value)
    return _chosen(n, np.random.default_rng(seed).permutation(n)[: _held_out(n, share)])


def _last_of_users(data: DataSet, k: int, when: npt.NDArray[np.float64]) -> Mask:
    """Return the `k` ratings with the highest `when` (n,) of each user who has more."""
    user = data.ratings.user_row
    # Stable: ratings of one second keep the order of the file.
    order = np.lexsort((when, user))
    ends = np.searchsorted(user[order], user[order], side="right")
    counts = np.bincount(user, minlength=data.n_users)[user[order]]
    test = _chosen(len(user), order[(ends - np.arange(len(user)) <= k) & (counts > k)])
    if not test.any():
        raise CannotStartError(f"no user of {data.name} has more than {k} ratings: give a smaller -k")
    return test


def _held_out(n: int, share: float) -> int:
    # One at least on each side.
    return min(max(int(n * share), 1), n - 1)


def _times(data: DataSet) -> npt.NDArray[np.float64]:
    """Return the times (n,). Raises CannotStartError where they tell no order."""
    time = data.ratings.time
    if not np.isfinite(time).all() or time.min() == time.max():
        raise CannotStartError(
            f"{data.name} cannot be split by time, as its times are unknown or all equal: name the column "
            "with --columns, or choose another --split"
        )
    return time


def _chosen(n: int, positions: npt.NDArray[np.int64]) -> Mask:
    test = np.zeros(n, dtype=np.bool_)
    test[positions] = True
    return test
