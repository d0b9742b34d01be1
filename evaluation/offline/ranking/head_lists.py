"""Lists of Foldin's ranking head, alone and as they are served.

Invariant: a list comes from the training ratings alone, by the very function that a trainer fits a head with.
"""

import numpy as np
import numpy.typing as npt

from evaluation.offline.ranking.lists import rows_of, seen_by, top_by_score
from evaluation.question import Array, Predicted, Question, Rows
from factors import (
    BlendedRanker,
    Fitted,
    Histories,
    RankingFit,
    RankingHead,
    Scorer,
    fit_ranking,
    item_statistics,
)

USERS_AT_ONCE = 256  # as many folded in at once take 8 MB at rank 64


def top_by_relevance(question: Question, seed: int) -> Predicted:
    """Rank by the head alone."""
    head = _fit(question, seed).head

    def relevance(users: Rows) -> Array:
        return np.stack([head.scores(histories_of(question, users[j : j + 1])) for j in range(len(users))])

    return Predicted(top=top_by_score(question, relevance), note=_note(head))


def top_by_served_score(
    question: Question, fitted: Fitted, seed: int, *, before_head: bool = False
) -> Predicted:
    """Rank as the service does, by relevance and the rating that `fitted` expects; `before_head`: as long as
    popularity stands for the head.
    """
    users = question.ranked_users()
    if before_head:
        counts = item_statistics(fitted.items).count.astype(np.float64)
        head = RankingHead.of_popularity(counts, question.n_users)
    else:
        head = _fit(question, seed).head
    ranker, scorer = BlendedRanker(head, fitted.posterior), Scorer(fitted.posterior, fitted.items)
    lists: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(users), USERS_AT_ONCE):
        part = users[start : start + USERS_AT_ONCE]
        asked = (fitted.users[part], histories_of(question, part), question.top, seen_by(question, part))
        lists += [found.item_rows for found in ranker.top(scorer, *asked)]
    return Predicted(top=rows_of(lists, question.top), note=_note(head))


def _fit(question: Question, seed: int) -> RankingFit:
    return fit_ranking(
        question.ratings(),
        question.n_users,
        question.n_items,
        rng=np.random.default_rng(seed),
        threads=1,
    )


def histories_of(question: Question, users: Rows) -> Histories:
    """Return the training ratings of `users`, ascending, one history each."""
    known = np.flatnonzero(np.isin(question.train_user, users))
    known = known[np.argsort(question.train_user[known], kind="stable")]
    ends = np.searchsorted(question.train_user[known], users, side="right")
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    return Histories(
        offsets, question.train_item[known], question.train_value[known], question.train_time[known]
    )


def _note(head: RankingHead) -> str:
    parameters = head.parameters
    recency = f"{parameters.recency_boost:g}" if parameters.recency_boost else "off"
    return f"head of rank {parameters.rank}, gamma {parameters.gamma:g}, recency {recency}"
