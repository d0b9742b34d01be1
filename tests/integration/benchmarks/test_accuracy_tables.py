"""The accuracy benchmark: its goals, what is kept of a run that was stopped, the online loop, cold start."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.datasets import synthetic, thinned
from benchmarks.data.made import draw
from benchmarks.harness import kept
from benchmarks.quality.goals import Found, goals
from evaluation.offline import cold_start as coldstart
from evaluation.offline.jobs import answer
from evaluation.offline.splits import in_time_order, random_splits
from evaluation.question import Question
from evaluation.results.course import Summary
from evaluation.results.lines import Line

pytestmark = pytest.mark.timeout(240)

DECILES = (0.9,) * 10


def summary(player: str, known: int, mse: float, run_mse: tuple[float, ...], coverage: float) -> Summary:
    """How a player did, without the figures that no table shows."""
    return Summary(player, known, mse, run_mse, 0, 0.0, 0.0, 0.0, 0.0, "", coverage)


def test_online_predictions_depend_on_earlier_ratings_alone() -> None:
    question = in_time_order(synthetic(40, 30, 400, seed=2)).question()
    whole = answer("auto", question, seed=1).predicted
    # The last ratings are others: what was predicted before them must not change.
    values = question.train_value.copy()
    values[300:] = np.where(values[300:] > 3, 1.0, 5.0)
    changed = Question(
        **{f.name: getattr(question, f.name) for f in fields(Question)} | {"train_value": values}
    )
    other = answer("auto", changed, seed=1).predicted
    assert np.isfinite(whole.rating).all()
    np.testing.assert_array_equal(whole.rating[:301], other.rating[:301])


@pytest.mark.slow
def test_cold_start_asks_the_same_pairs_at_every_count_and_never_learns_them() -> None:
    data = synthetic(60, 40, 3_000, seed=4)
    task, truth = coldstart.cold_start(data, "user", seed=1)
    assert len(truth) == len(task.test_user) > 0
    new = set(task.test_user.tolist())
    assert new.isdisjoint(task.train_user.tolist())
    assert set(task.first_user.tolist()) == new
    asked = set(zip(task.test_user.tolist(), task.test_item.tolist(), strict=True))
    assert asked.isdisjoint(zip(task.first_user.tolist(), task.first_item.tolist(), strict=True))
    for count in task.counts.tolist():
        question = task.question(count)
        learned = np.bincount(question.train_user, minlength=data.n_users)
        assert {int(learned[user]) for user in new} == {count}
    for side in ("user", "item"):
        for engine in ("auto", "bias"):
            curve = coldstart.curve(data, side, engine, seed=1)
            assert len(curve.rmse) == len(coldstart.COUNTS)
            assert np.isfinite(curve.rmse).all()


def test_what_knows_the_world_of_a_made_set_is_right_about_it() -> None:
    made, again = draw(30_000, 12, seed=3), draw(30_000, 12, seed=3)
    given = made.data.ratings
    np.testing.assert_array_equal(given.value, again.data.ratings.value)
    assert len(given.value) == 30_000
    assert np.isin(given.value, np.arange(0.5, 5.5, 0.5)).all()
    pairs = given.user_row.astype(np.int64) * made.data.n_items + given.item_row
    assert len(np.unique(pairs)) == len(pairs)
    (split,) = random_splits(made.data, 1, 1)
    predicted, truth = made.answer(split.question()).predicted, split.truth()
    error = truth - predicted.rating
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1, atol=1e-5)
    # Neither too high nor too low, and as far off as it says (four standard errors).
    assert abs(error.mean()) < 4 * error.std() / len(error) ** 0.5
    spread = np.mean(error**2 / predicted.std**2)
    assert abs(spread - 1) < 4 * (2 / len(error)) ** 0.5
    assert np.sqrt(np.mean(error**2)) < 0.8 * truth.std()


def test_a_made_set_is_judged_by_what_was_told_its_rank() -> None:
    line = Line(
        "made-4, 9 ratings", "random 1", "auto", "Foldin", rmse=0.82, std_deciles=(0.9,) * 9 + (0.95,)
    )
    told, truth = (
        replace(line, engine=name, rmse=rmse) for name, rmse in (("auto:rank=4:settled", 0.8), ("truth", 0.7))
    )
    rows = {row.work: row for row in goals(Found(lines={"made-4": [line, told, truth]}))}
    row = rows["made-4, 9 ratings: Foldin / told the rank"]
    assert (row.verdict, row.detail) == ("floor", "0.8200 against 0.8000; the truth itself 0.7000")
    worst = rows["made-4, 9 ratings: 90 % intervals, worst tenth by deviation off by"]
    assert worst.verdict == "met"
    assert worst.detail.endswith("; the truth itself 0.050")
    near = replace(truth, std_deciles=(0.9,) * 10)
    rows = {row.work: row for row in goals(Found(lines={"made-4": [line, told, near]}))}
    assert rows[worst.work].verdict == "missed"
    assert not any("told" in each.work for each in goals(Found(lines={"made-4": [line, truth]})))


def test_goals_are_judged_where_their_parts_were_run() -> None:
    line = Line("ml-100k", "u1", "auto", "Foldin", rmse=0.88, seconds=8.0, deciles=DECILES)
    found = Found(lines={"ml-100k": [line], "ablation": [replace(line, rmse=0.5)]})
    rows = {row.work: row for row in goals(found)}
    assert rows["ml-100k u1, Foldin"].verdict == "met"
    assert "ml-100k, mean of u1 to u5" not in rows
    found.lines["ml-100k"] = [replace(line, split=f"u{j}", rmse=0.876) for j in range(1, 6)]
    rows = {row.work: row for row in goals(found)}
    assert rows["ml-100k, mean of u1 to u5"].verdict == "floor"
    small = replace(line, data="small", split="random 1", rmse=0.96)
    found.lines["small"] = [small, replace(small, engine="surprise-svd++", rmse=1.0)]
    found.played = [
        summary("bias", 200, 1.0, (1.0,), float("nan")),
        summary("deployed", 200, 0.5, (0.5,), 0.9),
        summary("deployed", 10_000, 0.045, (0.045,), 0.9),
        summary("ordinal", 10_000, 0.04, (0.04,), 0.9),
    ]
    rows = {row.work: row for row in goals(found)}
    assert rows["small: Foldin / SVD++"].verdict == "met"
    assert rows["environment, 200 known: API / best other player"].values == (0.5,)
    assert rows["environment, 10,000 known, through the API"].verdict == "floor"


def test_kept_rows_come_back_for_the_same_settings_only(tmp_path: Path) -> None:
    rows = [summary("bias", 200, 1.0, (1.0, 1.5), 0.9)]
    path = tmp_path / "x" / "played.json"
    assert kept.load(path, {"seed": 1}, Summary) is None
    kept.save(path, {"seed": 1, "known": (200,)}, rows)
    assert kept.load(path, {"seed": 1, "known": (200,)}, Summary) == rows
    assert kept.load(path, {"seed": 2, "known": (200,)}, Summary) is None


def test_a_fraction_of_a_data_set_keeps_its_order() -> None:
    data = synthetic(60, 40, 1_000, seed=4)
    part = thinned(data, 0.3, seed=1)
    assert 200 <= len(part.ratings.value) < len(data.ratings.value)
    assert (np.diff(part.ratings.time) >= 0).all()
