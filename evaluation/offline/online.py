"""The product's learning loop without its servers: predict, then learn, rating by rating, in time order.

Invariant: the prediction of a rating is made of the ratings before it alone.
"""

import numpy as np
import numpy.typing as npt

from evaluation.question import Array, Question
from factors import (
    FitSettings,
    Histories,
    Ratings,
    Scorer,
    fit,
)

Rows = npt.NDArray[np.int64]


def predict_then_learn(
    question: Question, settings: FitSettings, seed: int, *, refit_events: int, fold_events: int
) -> tuple[Array, Array, str]:
    """Return predictions of the training ratings, which must be in time order, their standard deviations,
    both (n,), and a note.
    """
    n_users, n_items = question.n_users, question.n_items
    ratings = question.ratings()
    n = len(ratings.value)
    rating, std = np.empty(n), np.empty(n)
    # Without ratings the fit is the prior: the first users and items are predicted from it.
    nothing = ratings_before(ratings, 0)
    fitted = fit(nothing, n_users, n_items, settings=settings, rng=np.random.default_rng(seed))
    by_user, by_item = _positions(ratings.user_row, n_users), _positions(ratings.item_row, n_items)
    items, users = fitted.items.copy(), fitted.users.copy()
    refits = 0
    # In steps of `fold_events`: within one the items stand still, as they do for a second in the product.
    for begin in range(0, n, fold_events):
        if begin and begin % refit_events < fold_events:
            known = ratings_before(ratings, begin)
            # The first fit that has ratings starts afresh: there is nothing to be warm from.
            # A seed for each refit: what is drawn does not depend on the number of refits before.
            rng = np.random.default_rng([seed, begin])
            fitted = fit(
                known, n_users, n_items, settings=settings, rng=rng, start=fitted if refits else None
            )
            items, users = fitted.items.copy(), fitted.users.copy()
            refits += 1
        events = np.arange(begin, min(begin + fold_events, n))
        # A history for each event, up to it alone: the counter rule gives the same in the service.
        histories = _histories_before(ratings, by_user, ratings.user_row[events], events, ratings.item_row)
        folded = fitted.posterior.fold_in_users(items, histories, current=users[ratings.user_row[events]])
        scores = Scorer(fitted.posterior, items).score(
            folded, np.arange(len(events)), ratings.item_row[events], ratings.time[events]
        )
        rating[events], std[events] = scores.rating, scores.std
        # Learn: the users as they are now, then the items that were rated, from all who rated them.
        end = np.full(1, events[-1] + 1)
        changed = np.unique(ratings.user_row[events])
        histories = _histories_before(
            ratings, by_user, changed, np.repeat(end, len(changed)), ratings.item_row
        )
        users[changed] = fitted.posterior.fold_in_users(items, histories, current=users[changed])
        rated = np.unique(ratings.item_row[events])
        histories = _histories_before(ratings, by_item, rated, np.repeat(end, len(rated)), ratings.user_row)
        items[rated] = fitted.posterior.fold_in_items(users, histories, current=items[rated])
    return rating, std, f"{refits} warm refits"


def ratings_before(ratings: Ratings, end: int) -> Ratings:
    """Return the first `end` ratings."""
    return Ratings(ratings.user_row[:end], ratings.item_row[:end], ratings.value[:end], ratings.time[:end])


def _positions(rows: npt.NDArray[np.int32], size: int) -> list[Rows]:
    """Return the positions of the ratings of each row, ascending."""
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(size + 1))
    return [order[bounds[row] : bounds[row + 1]] for row in range(size)]


def _histories_before(
    ratings: Ratings,
    positions: list[Rows],
    rows: npt.NDArray[np.int32],
    before: Rows,
    other: npt.NDArray[np.int32],
) -> Histories:
    """Return histories: the j-th holds the ratings of `rows[j]` at positions under `before[j]`."""
    parts = [
        positions[row][: np.searchsorted(positions[row], end)]
        for row, end in zip(rows.tolist(), before.tolist(), strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    chosen = np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
    return Histories(offsets, other[chosen], ratings.value[chosen], ratings.time[chosen])
