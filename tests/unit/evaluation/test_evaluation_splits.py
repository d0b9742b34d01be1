"""Data sets and splits of an evaluation: what is asked, what is learned, and that nothing leaks."""

from dataclasses import fields

import numpy as np
import pytest

from evaluation.offline import splits
from evaluation.offline.data import DataSet
from evaluation.question import Question
from processes.errors import CannotStartError
from tests.unit.evaluation.evaluation_data import made


def all_splits(data: DataSet) -> list[splits.Split]:
    return [
        *splits.given_folds(data, [1, 2, 3, 4, 5]),
        splits.given_test(data, 200),
        *splits.random_splits(data, 2, seed=3),
        splits.leave_out(data, 3, seed=3),
        splits.leave_last(data, 3),
        splits.by_time(data),
    ]


def test_a_question_has_no_rating_of_the_test() -> None:
    data = made()
    for split in all_splits(data):
        question = split.question(top=7)
        n_test = int(split.test.sum())
        assert 0 < n_test < 300
        assert len(question.train_value) == 300 - n_test
        assert question.top == 7
        for field in fields(Question):
            if field.name.startswith("test_"):
                assert field.name in {"test_user", "test_item", "test_time", "test_context"}
                assert len(getattr(question, field.name)) == (0 if field.name == "test_context" else n_test)
        assert split.truth().shape == (n_test,)
        assert split.known_of_user().shape == (n_test,)


def test_leave_out_takes_k_of_each_user_who_has_more() -> None:
    data = made()
    split = splits.leave_out(data, 8, seed=1)
    counts = np.bincount(data.ratings.user_row, minlength=30)
    asked = np.bincount(data.ratings.user_row[split.test], minlength=30)
    assert asked.tolist() == np.where(counts > 8, 8, 0).tolist()
    with pytest.raises(CannotStartError, match="smaller -k"):
        splits.leave_out(data, 500, seed=1)


def test_by_time_asks_for_the_latest() -> None:
    data = made()
    split = splits.by_time(data, 0.1)
    assert int(split.test.sum()) == 30
    assert data.ratings.time[split.test].min() > data.ratings.time[~split.test].max()
    with pytest.raises(CannotStartError, match="by time"):
        splits.by_time(made(times=False))


def test_leave_last_takes_the_latest_k_of_each_user_who_has_more() -> None:
    data = made()
    split = splits.leave_last(data, 8)
    user, time = data.ratings.user_row, data.ratings.time
    for one in range(30):
        own = np.flatnonzero(user == one)
        latest = own[np.argsort(time[own])][-8:].tolist() if len(own) > 8 else []
        assert np.flatnonzero(split.test & (user == one)).tolist() == sorted(latest)
    with pytest.raises(CannotStartError, match="by time"):
        splits.leave_last(made(times=False), 8)
    with pytest.raises(CannotStartError, match="smaller -k"):
        splits.leave_last(data, 500)


def test_in_time_order_counts_what_came_before() -> None:
    split = splits.in_time_order(made())
    assert split.sequential
    assert (np.diff(split.data.ratings.time) >= 0).all()
    known = split.known_of_user()
    user = split.data.ratings.user_row
    for j in (0, 7, 150, 299):
        assert known[j] == (user[:j] == user[j]).sum()
    unordered = splits.in_time_order(made(times=False))
    assert unordered.data.digest() == made(times=False).digest()
