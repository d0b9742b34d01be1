"""Engines that rank, on small data: exact steps, constraints, lists, and how their settings are chosen."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from evaluation.errors import NotInstalledError
from evaluation.offline.engines import find
from evaluation.offline.ranking import ials, peers
from evaluation.offline.ranking.head_lists import top_by_relevance, top_by_served_score
from evaluation.offline.ranking.lists import top_by_score
from evaluation.offline.ranking.tuning import BUDGET, inner_question, search, tuned
from evaluation.offline.splits import random_splits
from evaluation.question import Question
from factors import FitSettings, Histories, Scorer, fit, fit_ranking
from tests.unit.evaluation.evaluation_data import made


@pytest.fixture
def question() -> Question:
    return random_splits(made(), 1, seed=1)[0].question(top=8)


@pytest.mark.parametrize("rank", [3, 12])
def test_a_half_step_of_ials_is_the_minimum(rank: int) -> None:
    rng = np.random.default_rng(1)
    known = (rng.random((15, 20)) < 0.3).astype(float)
    known[4] = 0
    chosen = sparse.csr_matrix(known)
    items, alpha, ridge = rng.normal(size=(20, rank)), 0.3, 0.02
    users = ials.half_step(chosen, items, alpha, ridge)
    for user, row in zip(users, chosen.toarray(), strict=True):
        # The loss of one user, with a weight for each item: 1 + alpha if chosen, else alpha.
        weight = row + alpha
        normal = items.T @ (weight[:, None] * items) + ridge * (row.sum() + alpha * 20) * np.eye(rank)
        np.testing.assert_allclose(user, np.linalg.solve(normal, items.T @ row), atol=1e-9)


def test_ials_solves_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    chosen = sparse.csr_matrix((rng.random((40, 20)) < 0.3).astype(float))
    items = rng.normal(size=(20, 5))
    whole = ials.half_step(chosen, items, 0.1, 0.01)
    monkeypatch.setattr(ials, "NUMBERS_AT_ONCE", 300)
    np.testing.assert_allclose(ials.half_step(chosen, items, 0.1, 0.01), whole, atol=1e-9)


@pytest.mark.parametrize("shape", [(25, 10), (10, 25)])
def test_edlae_meets_its_constraint_and_is_the_minimum(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    known = (rng.random(shape) < 0.4).astype(float)
    penalty = 2.0 + 0.5 * known.sum(axis=0)
    shifted, diagonal = peers.shifted_inverse(known, penalty)
    inverse = np.linalg.inv(known.T @ known + np.diag(penalty))
    np.testing.assert_allclose(diagonal, np.diag(inverse))
    np.testing.assert_allclose(shifted, known @ inverse, atol=1e-12)
    weights = np.eye(shape[1]) - inverse / np.diag(inverse)
    np.testing.assert_allclose(np.diag(weights), 0.0, atol=1e-12)
    # Off the diagonal the gradient of |X - X B|^2 + |sqrt(penalty) B|^2 is 0.
    gradient = known.T @ (known @ weights - known) + penalty[:, None] * weights
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0.0, atol=1e-9)


def test_edlae_of_a_large_catalogue_is_skipped(question: Question) -> None:
    large = replace(question, n_users=30_000, n_items=30_000)
    with pytest.raises(NotInstalledError, match="20,000"):
        peers.edlae(large, (1.0, 0.5), 1)


def test_neighbours_are_those_of_the_shrunk_cosine(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ITEMS_AT_ONCE", 7)
    top = peers.neighbours(question, (3, 2.0), 1)
    known = np.zeros((30, 20))
    known[question.train_user, question.train_item] = 1
    counts = known.sum(axis=0)
    cosine = (known.T @ known) / (np.sqrt(np.outer(counts, counts)) + 2.0)
    np.fill_diagonal(cosine, 0)
    for item in range(20):
        cosine[cosine[:, item] < np.sort(cosine[:, item])[-3], item] = 0
    expected = top_by_score(question, lambda users: (known[users] @ cosine).astype(np.float32))
    # Sums in another order: what differs may only be ties.
    scores = np.where(known > 0, -np.inf, known @ cosine)
    for user, one, other in zip(question.ranked_users(), top, expected, strict=True):
        np.testing.assert_allclose(scores[user][one], scores[user][other], atol=1e-5)


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


def test_a_choice_sees_training_ratings_alone(question: Question) -> None:
    asked: list[Question] = []

    def rank(question: Question, setting: tuple[float, ...], _: int) -> np.ndarray:
        asked.append(question)
        # The higher the setting, the more of what is wanted is found.
        wanted = question.test_item if setting[0] > 2 else 19 - question.test_item
        score = np.zeros((30, 20))
        score[question.test_user, wanted] = 1
        return top_by_score(question, lambda users: score[users])

    _, setting, tried = tuned(question, rank, [(1.0, 2.0, 3.0)], 1)
    assert setting[0] == 3.0
    assert tried <= 3
    inner = inner_question(question)
    known = set(zip(question.train_user.tolist(), question.train_item.tolist(), strict=True))
    for one in asked[:-1]:
        assert len(one.train_value) + len(one.test_user) == len(question.train_value)
        pairs = set(zip(one.test_user.tolist(), one.test_item.tolist(), strict=True))
        assert pairs < known
        assert len(one.train_value) == len(inner.train_value)
    assert asked[-1] is question


def test_the_search_finds_the_top_of_a_hill_within_its_budget() -> None:
    tried: list[tuple[int, ...]] = []

    def quality(place: tuple[int, ...]) -> float:
        tried.append(place)
        return -abs(place[0] - 6) - abs(place[1] - 1) - 0.5 * abs(place[0] + place[1] - 7)

    assert search((8, 8), quality)[0] == (6, 1)
    assert len(tried) == len(set(tried)) <= BUDGET
    steps = iter(range(10_000))
    assert search((100, 100, 100), lambda _: float(next(steps)))[1] == BUDGET


@pytest.mark.parametrize(
    "engine", ["popularity", "item-knn", pytest.param("ials", marks=pytest.mark.slow), "edlae"]
)
def test_each_rival_gives_lists_of_unseen_items(engine: str, question: Question) -> None:
    predicted = find(engine).predict(question, 1)
    users = question.ranked_users()
    assert predicted.top.shape == (len(users), 8)
    for user, line in zip(users.tolist(), predicted.top.tolist(), strict=True):
        seen = set(question.train_item[question.train_user == user].tolist())
        shown = [item for item in line if item >= 0]
        assert len(shown) == len(set(shown))
        assert seen.isdisjoint(shown)


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
