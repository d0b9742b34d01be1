"""Settings of the engines that rank, chosen in one way for all of them.

Invariant: a choice sees training ratings alone, of which `Question.tuning` are held out in the manner of the
test, and each engine may try as many settings as any other (`BUDGET`). NDCG@100 decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from evaluation.offline.ranking.metrics import NDCG_AT, Wanted, ndcg
from evaluation.question import Question, Rows

# About as many short fits as the ranking head's own choice takes.
BUDGET = 30

Setting = tuple[float, ...]
Place = tuple[int, ...]
Rank = Callable[[Question, Setting, int], Rows]
"""Learns with a setting and a seed, and returns the lists of a question."""


def inner_question(question: Question) -> Question:
    """Return the question of which settings are chosen: its pairs are held out of the training ratings."""
    held, kept = question.tuning, ~question.tuning
    return replace(
        question,
        train_user=question.train_user[kept],
        train_item=question.train_item[kept],
        train_value=question.train_value[kept],
        train_time=question.train_time[kept],
        test_user=question.train_user[held],
        test_item=question.train_item[held],
        test_time=question.train_time[held],
        top=NDCG_AT,
    )


def tuned(
    question: Question, rank: Rank, axes: Sequence[Sequence[float]], seed: int
) -> tuple[Rows, Setting, int]:
    """Return the lists of the best setting, that setting, and how many were tried. `axes`: the values of each
    setting, ascending.
    """
    inner = inner_question(question)
    wanted = Wanted.of(
        inner.ranked_users(), inner.test_user, inner.test_item, question.train_value[question.tuning]
    )
    gain = np.ones(len(wanted.row))
    best, tried = search(
        [len(axis) for axis in axes], lambda at: ndcg(rank(inner, _at(axes, at), seed), wanted, gain)
    )
    return rank(question, _at(axes, best), seed), _at(axes, best), tried


def search(sizes: Sequence[int], quality: Callable[[Place], float]) -> tuple[Place, int]:
    """Return the best place that was found on a grid of these sizes, and how many were tried, at most
    `BUDGET`.
    """
    at: Place = tuple(size // 2 for size in sizes)
    known = {at: quality(at)}
    # Coarse steps find the region, single ones the place in it.
    for step in (2, 1):
        better = True
        while better:
            better = False
            for place in _around(at, step, sizes):
                if place not in known and len(known) < BUDGET:
                    known[place] = quality(place)
                    if known[place] > known[at]:
                        at, better = place, True
                        break
    return at, len(known)


def _around(at: Place, step: int, sizes: Sequence[int]) -> list[Place]:
    """Return the places on the grid that differ from `at` by a step in one setting, then those in two."""
    # In two, as what one setting adds another may take back.
    moves = [move for move in product((0, -step, step), repeat=len(sizes)) if 1 <= sum(map(bool, move)) <= 2]
    moves.sort(key=lambda move: sum(map(bool, move)))
    places = (tuple(a + b for a, b in zip(at, move, strict=True)) for move in moves)
    return [place for place in places if all(0 <= i < size for i, size in zip(place, sizes, strict=True))]


def _at(axes: Sequence[Sequence[float]], place: Place) -> Setting:
    return tuple(axis[i] for axis, i in zip(axes, place, strict=True))
