"""The rivals of docs/accuracy.md: they list what is unseen, and are tuned on training ratings alone."""

import numpy as np
import pytest

from benchmarks.rivals.ranking import RANKING_PEERS
from benchmarks.rivals.tuning import BUDGET, inner_question, tuned
from evaluation.offline.ranking.lists import top_by_score
from evaluation.offline.splits import random_splits
from evaluation.question import Question
from tests.unit.evaluation.evaluation_data import made


@pytest.fixture
def question() -> Question:
    return random_splits(made(), 1, seed=1)[0].question(top=8)


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
    assert tried <= min(3, BUDGET)
    inner = inner_question(question)
    known = set(zip(question.train_user.tolist(), question.train_item.tolist(), strict=True))
    for one in asked[:-1]:
        assert len(one.train_value) + len(one.test_user) == len(question.train_value)
        pairs = set(zip(one.test_user.tolist(), one.test_item.tolist(), strict=True))
        assert pairs < known
        assert len(one.train_value) == len(inner.train_value)
    assert asked[-1] is question


@pytest.mark.slow
@pytest.mark.parametrize("engine", sorted(RANKING_PEERS))
def test_each_rival_gives_lists_of_unseen_items(engine: str, question: Question) -> None:
    predicted = RANKING_PEERS[engine].predict(question, 1)
    users = question.ranked_users()
    assert predicted.top.shape == (len(users), 8)
    for user, line in zip(users.tolist(), predicted.top.tolist(), strict=True):
        seen = set(question.train_item[question.train_user == user].tolist())
        shown = [item for item in line if item >= 0]
        assert len(shown) == len(set(shown))
        assert seen.isdisjoint(shown)
