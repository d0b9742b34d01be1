"""The accuracy benchmark: splits, what predictors see, coverage, the online loop."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.harness.command import BenchmarkError
from benchmarks.harness.datasets import synthetic
from benchmarks.harness.jobs import Answer, NotInstalledError, Question, answer

pytestmark = pytest.mark.timeout(240)


def test_given_splits_ask_for_each_rating_once() -> None:
    data = synthetic(30, 20, 300, seed=1)
    splits = accuracy.given_splits(data, [1, 2, 3, 4, 5])
    asked = np.sum([split.test for split in splits], axis=0)
    assert asked.max() == 1
    assert asked.sum() == len(data.ratings.value) // 5 * 5
    assert splits[0].test[0]
    assert not splits[1].test[0]


def test_a_question_has_no_rating_of_the_test() -> None:
    data = synthetic(30, 20, 300, seed=1)
    split = accuracy.random_splits(data, 1, seed=1)[0]
    question = split.question()
    n_test = int(split.test.sum())
    assert len(question.train_value) == len(data.ratings.value) - n_test
    for field in fields(Question):
        value = np.asarray(getattr(question, field.name))
        if field.name.startswith("test_"):
            assert value.shape == (n_test,)
            assert field.name in {"test_user", "test_item", "test_time"}


def test_coverage_by_decile_of_the_count() -> None:
    counts = np.arange(100)
    coverage = accuracy.Coverage(counts >= 50, counts)
    assert coverage.deciles() == (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)


def test_predictions_that_are_not_finite_are_refused() -> None:
    split = accuracy.random_splits(synthetic(30, 20, 300, seed=1), 1, seed=1)[0]
    truth = split.truth()
    given = Answer(np.full(len(truth), np.nan), np.empty(0), 1.0, 1.0)
    with pytest.raises(BenchmarkError, match="not finite"):
        accuracy.judge(split, "engine", given, truth)


def test_an_engine_that_fails_says_why() -> None:
    question = accuracy.random_splits(synthetic(30, 20, 300, seed=1), 1, seed=1)[0].question()
    with pytest.raises(BenchmarkError, match="no engine is called nobody"):
        answer("nobody", question, seed=1)


def test_an_engine_whose_library_is_missing_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "surprise.py").write_text("raise ModuleNotFoundError('', name='surprise')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    question = accuracy.random_splits(synthetic(30, 20, 300, seed=1), 1, seed=1)[0].question()
    with pytest.raises(NotInstalledError, match="surprise is not installed"):
        answer("Surprise SVD", question, seed=1)


def test_online_predictions_depend_on_earlier_ratings_alone() -> None:
    data = synthetic(40, 30, 400, seed=2)
    split = accuracy.in_time_order(data)
    question = split.question()
    whole = answer("foldin online", question, seed=1)
    # The last ratings are others: what was predicted before them must not change.
    values = question.train_value.copy()
    values[300:] = np.where(values[300:] > 3, 1.0, 5.0)
    changed = Question(
        **{f.name: getattr(question, f.name) for f in fields(Question)} | {"train_value": values}
    )
    other = answer("foldin online", changed, seed=1)
    assert np.isfinite(whole.rating).all()
    np.testing.assert_array_equal(whole.rating[:301], other.rating[:301])
