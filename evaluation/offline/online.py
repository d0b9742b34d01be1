"""The product's learning loop without its servers: predict, then learn, rating by rating, in time order.

Invariant: the prediction of a rating is made of the ratings before it alone.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluation.question import Array, Question
from factors import FitSettings, Fitted, Float32s, Histories, Ratings, Scorer, Scores, fit

Rows = npt.NDArray[np.int64]


class Learner:
    """A fit that goes on learning `ratings`, in time order. `users`, `items`: its tables as of now."""

    def __init__(self, ratings: Ratings, fitted: Fitted) -> None:
        self._ratings = ratings
        self._of_user = _positions(ratings.user_row, len(fitted.users))
        self._of_item = _positions(ratings.item_row, len(fitted.items))
        self.go_on_from(fitted)

    def go_on_from(self, fitted: Fitted) -> None:
        """Take the tables of a newer fit."""
        self.fitted = fitted
        self.users, self.items = fitted.users.copy(), fitted.items.copy()

    def predict(self, events: Rows) -> Scores:
        """Predict the ratings at these positions, all as of now."""
        ratings = self._ratings
        return Scorer(self.fitted.posterior, self.items).score(
            self.users,
            ratings.user_row[events],
            ratings.item_row[events],
            ratings.time[events],
            self._context(events),
        )

    def learn(self, events: Rows) -> Scores:
        """Predict each of `events` (ascending), its user folded in from all before it; then fold in the users
        and items of `events`.
        """
        ratings, posterior = self._ratings, self.fitted.posterior
        users, items = ratings.user_row[events], ratings.item_row[events]
        # A history for each event, up to it alone: the counter rule gives the same in the service.
        past = self._before(self._of_user, users, events, ratings.item_row)
        now = posterior.fold_in_users(self.items, past, current=self.users[users])
        asked = np.arange(len(events)), items, ratings.time[events], self._context(events)
        scores = Scorer(posterior, self.items).score(now, *asked)
        # Users first, then the rated items from all who rated them: as service and trainer do it.
        users, items, end = np.unique(users), np.unique(items), events[-1:] + 1
        past = self._before(self._of_user, users, np.repeat(end, len(users)), ratings.item_row)
        self.users[users] = posterior.fold_in_users(self.items, past, current=self.users[users])
        past = self._before(self._of_item, items, np.repeat(end, len(items)), ratings.user_row)
        self.items[items] = posterior.fold_in_items(self.users, past, current=self.items[items])
        return scores

    def _context(self, events: Rows) -> Float32s | None:
        return None if self._ratings.context is None else self._ratings.context[events]

    def _before(
        self, positions: list[Rows], rows: npt.NDArray[np.int32], ends: Rows, other: npt.NDArray[np.int32]
    ) -> Histories:
        """Return histories: the j-th holds the ratings of `rows[j]` at positions under `ends[j]`."""
        parts = [
            positions[row][: np.searchsorted(positions[row], end)]
            for row, end in zip(rows.tolist(), ends.tolist(), strict=True)
        ]
        return histories_of(self._ratings, parts, other)


def histories_of(ratings: Ratings, parts: Sequence[Rows], other: npt.NDArray[np.int32]) -> Histories:
    """Return a history for each of `parts`, positions of ratings; `other`: the rows of the other side."""
    chosen = np.concatenate(parts)
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    context = None if ratings.context is None else ratings.context[chosen]
    columns = (other[chosen], ratings.value[chosen], ratings.time[chosen])
    return Histories(offsets, *columns, context=context)


def predict_then_learn(
    question: Question,
    settings: FitSettings,
    seed: int,
    *,
    refit_events: int,
    fold_events: int,
    context: bool = False,
) -> tuple[Array, Array, str]:
    """Return predictions of the training ratings, which must be in time order, their standard deviations,
    both (n,), and a note. `context`: reads what was told with each.
    """
    shape, kinds = (question.n_users, question.n_items), question.context_kinds()
    ratings = question.ratings(context=context)
    n = len(ratings.value)
    rating, std = np.empty(n), np.empty(n)
    # Without ratings the fit is the prior: the first users and items are predicted from it.
    nothing = ratings.take(np.arange(0))
    learner = Learner(ratings, fit(nothing, *shape, settings=settings, rng=np.random.default_rng(seed)))
    refits = 0
    # In steps of `fold_events`: within one the items stand still, as they do for a second in the product.
    for begin in range(0, n, fold_events):
        if begin and begin % refit_events < fold_events:
            known = ratings.take(np.arange(begin))
            # The first fit that has ratings starts afresh: there is nothing to be warm from.
            start = learner.fitted if refits else None
            # A seed for each refit: what is drawn does not depend on the number of refits before.
            rng = np.random.default_rng([seed, begin])
            found = fit(known, *shape, settings=settings, rng=rng, start=start, context_kinds=kinds)
            learner.go_on_from(found)
            refits += 1
        events = np.arange(begin, min(begin + fold_events, n))
        scores = learner.learn(events)
        rating[events], std[events] = scores.rating, scores.std
    return rating, std, f"{refits} warm refits"


def _positions(rows: npt.NDArray[np.int32], size: int) -> list[Rows]:
    """Return the positions of the ratings of each row, ascending."""
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(size + 1))
    return [order[bounds[row] : bounds[row + 1]] for row in range(size)]
