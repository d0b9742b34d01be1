"""Figures of ranked lists by hand and beside a slow reference, their table, and the lists themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.ranking.head_lists import top_by_relevance, top_by_served_score
from evaluation.offline.ranking.lists import top_by_score
from evaluation.offline.ranking.metrics import Wanted, graded_gain, ndcg, ranking_figures, recall
from evaluation.offline.ranking.table import ranking_table
from evaluation.offline.splits import random_splits
from evaluation.question import Question
from evaluation.results.lines import Line
from factors import FitSettings, Histories, Scale, Scorer, fit, fit_ranking
from tests.unit.evaluation.evaluation_data import made

FIVE = Scale(1, 5, 1)


def wanted_of(*ratings: tuple[int, int, float]) -> Wanted:
    user, item, value = (np.array(column) for column in zip(*ratings, strict=True))
    return Wanted.of(np.unique(user), user, item, value.astype(float))


def test_by_hand() -> None:
    top = np.array([[4, 1, 2, 3], [0, 5, -1, -1]], dtype=np.int32)
    # The first user has rated item 1 with 5 and item 9 with 2 stars, the second item 5 with 3.
    wanted = wanted_of((3, 1, 5), (3, 9, 2), (8, 5, 3))
    popularity = np.array([4, 2, 1, 0, 8, 1, 0, 0, 0, 0])
    found = ranking_figures(top, wanted, FIVE, popularity, n_users=8)
    second = 1 / math.log2(3)
    assert found.recall_20 == pytest.approx((1 / 2 + 1) / 2)
    assert found.ndcg_100 == pytest.approx((second / (1 + second) + second) / 2)
    assert found.liked_ndcg_100 == pytest.approx(second)  # the second user has liked nothing
    assert found.graded_ndcg_10 == pytest.approx((15 * second / (15 + second) + second) / 2)
    assert found.coverage_10 == pytest.approx(6 / 10)
    # Of 8 users as many as 8, 2, 1, none, 4 and 1 have the items of the lists; none counts as one.
    assert found.novelty_10 == pytest.approx((0 + 2 + 3 + 3 + 1 + 3) / 6)


def test_users_without_anything_to_find_are_left_out() -> None:
    top, wanted = np.array([[1], [2]], dtype=np.int32), wanted_of((0, 1, 5), (1, 7, 1))
    gain = graded_gain(wanted.value, FIVE)
    assert ndcg(top, wanted, gain) == 1.0
    assert math.isnan(ndcg(top, wanted, np.zeros(2)))
    nothing = Wanted.of(np.array([0, 1]), np.array([5]), np.array([1]), np.array([3.0]))
    assert math.isnan(recall(top, nothing))


def slow_ndcg(top: list[list[int]], gains: list[dict[int, float]], k: int) -> float:
    """One user and one item at a time."""
    found = []
    for ranked, gain in zip(top, gains, strict=True):
        got = sum(gain.get(item, 0.0) / math.log2(place + 2) for place, item in enumerate(ranked[:k]))
        best = sum(g / math.log2(place + 2) for place, g in enumerate(sorted(gain.values())[::-1][:k]))
        if best > 0:
            found.append(got / best)
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(5))
def test_as_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(20 * 30)[:200]
    user, item = (pairs // 30).astype(np.int32), (pairs % 30).astype(np.int32)
    value = rng.integers(1, 6, 200).astype(float)
    users = np.unique(user)[1:]  # one of them has no list
    top = np.stack([rng.permutation(30)[:12] for _ in users]).astype(np.int32)
    top[3, 5:] = -1
    wanted = Wanted.of(users, user, item, value)
    stars = [
        {int(i): v for u, i, v in zip(user, item, value, strict=True) if u == one} for one in users.tolist()
    ]
    gains = [{i: 2 ** (v - 1) - 1 for i, v in one.items()} for one in stars]
    assert ndcg(top, wanted, graded_gain(wanted.value, FIVE), 10) == pytest.approx(
        slow_ndcg(top.tolist(), gains, 10)
    )
    every = [dict.fromkeys(one, 1.0) for one in stars]
    assert ndcg(top, wanted, np.ones(len(wanted.row)), 4) == pytest.approx(slow_ndcg(top.tolist(), every, 4))
    shares = [
        len(set(ranked[:7]) & set(one)) / min(7, len(one))
        for ranked, one in zip(top.tolist(), stars, strict=True)
    ]
    assert recall(top, wanted, 7) == pytest.approx(np.mean(shares))


def test_the_table_has_means_with_standard_errors() -> None:
    skipped = Line("d", "random 1", "neural", "neural", skipped="needs torch")
    lines = [Line("d", f"random {j}", "auto", "Foldin", ndcg_100=0.50 + 0.02 * j) for j in range(2)]
    table = ranking_table([*lines, skipped], "title")
    cells = [cell for column in table.columns for cell in column.cells]
    assert "0.5100 ± 0.0100" in cells
    assert "random x 2" in cells
    assert "skipped: needs torch" in cells


@pytest.fixture
def question() -> Question:
    return random_splits(made(), 1, seed=1)[0].question(top=8)


def test_lists_leave_out_what_was_rated_and_put_ties_in_the_order_of_rows(question: Question) -> None:
    question = replace(question, top=30)
    score = np.arange(20.0) // 4
    top = top_by_score(question, lambda users: np.repeat(score[None], len(users), axis=0))
    for user, line in zip(question.ranked_users().tolist(), top.tolist(), strict=True):
        seen = set(question.train_item[question.train_user == user].tolist())
        expected = [item for item in sorted(range(20), key=lambda i: (-score[i], i)) if item not in seen]
        assert line == expected + [-1] * (30 - len(expected))
        short = top_by_score(
            replace(question, top=3), lambda users: np.repeat(score[None], len(users), axis=0)
        )
        assert short.tolist() == top[:, :3].tolist()


def test_foldin_ranks_by_relevance_times_a_power_of_the_expected_rating(question: Question) -> None:
    scale = question.scale()
    fitted = fit(
        question.ratings(), 30, 20, settings=FitSettings(scale, rank=2), rng=np.random.default_rng(1)
    )
    served = top_by_served_score(question, fitted, 1).top
    head = fit_ranking(question.ratings(), 30, 20, rng=np.random.default_rng(1), hold_out="random").head
    alone = top_by_relevance(question, 1).top
    scorer = Scorer(fitted.posterior, fitted.items)
    every = np.arange(20)
    for line, relevant, user in zip(served, alone, question.ranked_users().tolist(), strict=True):
        own = np.flatnonzero(question.train_user == user)
        # The same history by itself, as the service reads it.
        columns = (question.train_item[own], question.train_value[own], question.train_time[own])
        relevance = head.scores(Histories(np.array([0, len(own)]), *columns))
        relevance[question.train_item[own]] = -np.inf
        rating = scorer.rating(fitted.users, np.full(20, user), every)
        score = np.maximum(relevance, 0) * rating**head.parameters.gamma
        unseen = np.isfinite(relevance)
        expected = [i for i in np.lexsort((every, -relevance, -score)).tolist() if unseen[i]][:8]
        np.testing.assert_allclose(score[line[line >= 0]], score[expected], rtol=1e-5)
        np.testing.assert_allclose(
            relevance[relevant[relevant >= 0]], np.sort(relevance[unseen])[::-1][:8], rtol=1e-5
        )
