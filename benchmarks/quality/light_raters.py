"""A defence against accounts that push an item: those that rate little count no more there than is usual.

It is measured beside the fit and is not part of it: see "Accounts made to move one item" in docs/accuracy.md.
Invariant: what counts of an item's ratings depends on its raters' numbers of ratings alone (and on a spread
of user rows where some of equals must go), so that a fold-in could apply the same rule.
"""

from itertools import pairwise

import numpy as np

from factors import Bools, Fitted, Histories, Int32s, Int64s, Ratings

# One rating of an account that rates little always counts: a new item has to begin somewhere.
_ALWAYS = 1


def usual_shares(n_ratings: Int64s) -> Int64s:
    """Return the level of each user with `n_ratings` (n,): level k has the users who, with all who rate less,
    made at most `2^-k` of all ratings.
    """
    order = np.argsort(n_ratings, kind="stable")
    ends = np.searchsorted(n_ratings[order], n_ratings, side="right")
    share = np.cumsum(n_ratings[order])[ends - 1] / n_ratings.sum()
    return np.asarray(np.floor(-np.log2(share)), dtype=np.int64)


def counted(level: Int64s, spread: Int64s) -> Bools:
    """Return which of an item's raters (m,) count: beside those of lower levels no more of each `level` than
    all who rate as little usually are, and one; of equals those of lowest `spread`.
    """
    keep: Bools = np.equal(level, 0)
    for k in np.unique(level[level > 0]):
        usual = 0.5**k
        most = _ALWAYS + int(np.count_nonzero(keep) * usual / (1.0 - usual))
        of_level = np.flatnonzero(level == k)
        keep[of_level[np.argsort(spread[of_level])][:most]] = True
    return keep


def without_surplus(fitted: Fitted, ratings: Ratings) -> Fitted:
    """Return `fitted`, the fit of `ratings`, with each item folded in again from the ratings that count, and
    then all users.
    """
    n_users, posterior, items = len(fitted.users), fitted.posterior, fitted.items.copy()
    levels = usual_shares(np.maximum(np.bincount(ratings.user_row, minlength=n_users), 1))
    spread = np.random.default_rng(0).permutation(n_users)
    order = np.argsort(ratings.item_row, kind="stable")
    borders = np.searchsorted(ratings.item_row[order], np.arange(len(items) + 1))
    rows, parts = [], []
    for row, (start, stop) in enumerate(pairwise(borders)):
        entries = order[start:stop]
        users = ratings.user_row[entries]
        keep = counted(levels[users], spread[users])
        if not keep.all():
            rows.append(row)
            parts.append(entries[keep])
    if rows:
        raters = _histories(ratings, parts, ratings.user_row)
        items[rows] = posterior.fold_in_items(fitted.users, raters, current=fitted.items[rows])
    by_user = np.argsort(ratings.user_row, kind="stable")
    ends = np.searchsorted(ratings.user_row[by_user], np.arange(1, n_users))
    theirs = _histories(ratings, np.split(by_user, ends), ratings.item_row)
    folded = posterior.fold_in_users(items, theirs, current=fitted.users)
    return Fitted(fitted.model, folded, items)


def _histories(ratings: Ratings, parts: list[Int64s], other: Int32s) -> Histories:
    entries = np.concatenate(parts)
    offsets = np.cumsum([0, *map(len, parts)])
    return Histories(offsets, other[entries], ratings.value[entries], ratings.time[entries])
