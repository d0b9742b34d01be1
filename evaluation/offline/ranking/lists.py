"""Ranked lists from scores of all items. Invariant: a list has no item that its user has rated in training,
and items of equal score come in the order of their rows, the same on every machine.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.question import Question, Rows, no_top

Scores = npt.NDArray[np.floating[Any]]
SCORES_AT_ONCE = 4_000_000  # 32 MB of float64


def seen_by(question: Question, users: Rows) -> list[Rows]:
    """Return the item rows that each user has rated in training."""
    order = np.argsort(question.train_user, kind="stable")
    bounds = np.searchsorted(question.train_user[order], np.stack([users, users + 1]))
    return [question.train_item[order[start:end]] for start, end in bounds.T.tolist()]


def rows_of(found: Sequence[npt.NDArray[np.int64]], top: int) -> Rows:
    """Return lists of item rows as an array (u, top), -1 where there is no item."""
    table = np.full((len(found), top), -1, dtype=np.int32)
    for line, item_rows in zip(table, found, strict=True):
        line[: len(item_rows)] = item_rows
    return table


def top_by_score(question: Question, score: Callable[[Rows], Scores]) -> Rows:
    """Return lists by `score(users)`, (len(users), n_items); empty for no `top`."""
    if not question.top:
        return no_top()
    users = question.ranked_users()
    top = np.full((len(users), question.top), -1, dtype=np.int32)
    block = max(1, SCORES_AT_ONCE // max(question.n_items, 1))
    for start in range(0, len(users), block):
        part = users[start : start + block]
        scores = np.array(score(part))  # a copy: rated items are struck out in it
        for row, seen in zip(scores, seen_by(question, part), strict=True):
            row[seen] = -np.inf
        _best(scores, top[start : start + block])
    return top


def _best(scores: Scores, top: Rows) -> None:
    """Write the best items of `scores` (u, n_items) to `top` (u, n)."""
    n = min(top.shape[1], scores.shape[1])
    # Only what reaches the n-th best score is sorted: of 9,000 items that takes a tenth of the time.
    least = -np.partition(-scores, n - 1, axis=1)[:, n - 1 : n]
    user, item = np.nonzero((scores >= least) & np.isfinite(scores))
    order = np.lexsort((item, -scores[user, item], user))
    user, item = user[order], item[order]
    rank = np.arange(len(user)) - np.searchsorted(user, user)
    kept = rank < n
    top[user[kept], rank[kept]] = item[kept]
