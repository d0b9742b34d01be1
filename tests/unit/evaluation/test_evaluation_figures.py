"""Figures of ratings, lists and plays by hand and beside slow references; splits, which leak nothing."""

import csv
import math
import sys
from dataclasses import fields, replace
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from environment.client import KnownRatings, Pair
from environment.world import WorldOptions, make_world
from evaluation import metrics
from evaluation.course.protocol import write_files
from evaluation.course.seat import MISSING_ERROR
from evaluation.offline import splits
from evaluation.offline.data import DataSet
from evaluation.offline.ranking.head_lists import top_by_relevance, top_by_served_score
from evaluation.offline.ranking.lists import top_by_score
from evaluation.offline.ranking.metrics import Wanted, ranking_figures
from evaluation.offline.splits import random_splits
from evaluation.players import LOCAL_PLAYERS, Player, make_player
from evaluation.players.model import model_players
from evaluation.question import Predicted, Question
from evaluation.report import new_table, print_whole
from evaluation.results.course import EvaluationReport, Result, Tally
from factors import FitSettings, Histories, Ratings, Scale, Scorer, fit, fit_ranking
from processes.errors import CannotStartError

FIVE = Scale(1, 5, 1)


def test_log_likelihood_is_of_the_step_where_there_are_steps() -> None:
    truth = np.array([1.0, 4.0])
    probabilities = np.array([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.25, 0.45]], dtype=np.float32)
    rating, std = np.array([1.0, 4.0]), np.array([1.0, 1.0])
    stepped = metrics.log_likelihood(Predicted(rating, std, probabilities), truth, FIVE)
    assert stepped == pytest.approx(np.log([0.5, 0.25]).mean(), rel=1e-6)
    # Without probabilities: the mass of a normal, everything beyond the ends included.
    normal = metrics.log_likelihood(Predicted(rating, std), truth, FIVE)
    assert normal == pytest.approx(np.log([0.6914625, 0.3829249]).mean(), rel=1e-6)
    density = metrics.log_likelihood(Predicted(rating, std), truth, Scale(1, 5))
    assert density == pytest.approx(-0.5 * np.log(2 * np.pi))
    assert np.isnan(metrics.log_likelihood(Predicted(rating), truth, FIVE))


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
        short = top_by_score(replace(question, top=3), lambda who: np.repeat(score[None], len(who), axis=0))
        assert short.tolist() == top[:, :3].tolist()


def test_foldin_ranks_by_relevance_times_a_power_of_the_expected_rating(question: Question) -> None:
    settings = FitSettings(question.scale(), rank=2)
    fitted = fit(question.ratings(), 30, 20, settings=settings, rng=np.random.default_rng(1))
    served = top_by_served_score(question, fitted, 1).top
    head = fit_ranking(question.ratings(), 30, 20, rng=np.random.default_rng(1)).head
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
        best = np.sort(relevance[unseen])[::-1][:8]
        np.testing.assert_allclose(relevance[relevant[relevant >= 0]], best, rtol=1e-5)


def tally(*errors: float, missing: int = 0) -> Tally:
    squared = [*errors, *[MISSING_ERROR] * missing]
    return Tally(np.array(squared), np.array([0.002] * len(errors) + [np.nan] * missing))


REPORT = EvaluationReport(
    results=(
        Result("constant", 200, 1, tally(1.0, 3.0), 0.0, 0.5, ""),
        Result("constant", 200, 2, tally(4.0, 4.0), 0.0, 0.5, ""),
        Result("deployed", 200, 1, tally(0.5, missing=1), 2.0, 3.0, "ids of its own"),
        Result("deployed", 200, 2, tally(0.5, 0.5), 2.0, 3.0, "ids of its own"),
        Result("constant", 900, 1, tally(2.0, 2.0), 0.0, 0.5, ""),
    ),
    steps=2,
    seed=9,
    same_worlds=True,
)


def test_the_figure_is_the_mean_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = REPORT.summaries()[0]
    assert (constant.mse, constant.run_mse, REPORT.mse("constant")) == (3.0, (2.0, 4.0), 2.0)
    # Without what draws pictures the rest is written.
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install foldin[evaluate]" in write_files(REPORT, tmp_path)[-1]
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text("utf-8").splitlines()))
    assert (len(rows), rows[5]["squared_error"], rows[5]["answer_ms"]) == (10, "1000.000000", "")


def made(n: int = 300, *, times: bool = True, seed: int = 1) -> DataSet:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(600)[:n]
    time = rng.uniform(1e9, 2e9, n) if times else np.full(n, np.nan)
    user, item = (column.astype(np.int32) for column in np.divmod(pairs, 20))
    ratings = Ratings(user, item, rng.integers(1, 6, n).astype(float), time)
    return DataSet("made", ratings, 30, 20, FIVE)


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


def test_what_is_left_out_is_k_of_each_user_who_has_more_or_the_latest() -> None:
    data, untimed = made(), made(times=False)
    user, time = data.ratings.user_row, data.ratings.time
    drawn, last = splits.leave_out(data, 8, seed=1), splits.leave_last(data, 8)
    for one in range(30):
        own = np.flatnonzero(user == one)
        latest = own[np.argsort(time[own])][-8:].tolist() if len(own) > 8 else []
        assert np.flatnonzero(last.test & (user == one)).tolist() == sorted(latest)
        assert np.count_nonzero(drawn.test & (user == one)) == len(latest)
    timed = splits.by_time(data, 0.1)
    assert int(timed.test.sum()) == 30
    assert time[timed.test].min() > time[~timed.test].max()
    for why, split in (
        ("smaller -k", partial(splits.leave_out, data, 500, seed=1)),
        ("smaller -k", partial(splits.leave_last, data, 500)),
        ("by time", partial(splits.leave_last, untimed, 8)),
        ("by time", partial(splits.by_time, untimed)),
    ):
        with pytest.raises(CannotStartError, match=why):
            split()


NO_ROWS = np.zeros(0, dtype=np.int64)
EMPTY = KnownRatings(4, 6, NO_ROWS, NO_ROWS, np.zeros(0))


def local(name: str) -> Player:
    return make_player(name, seed=0, api=None, tag="t", brought=model_players())


async def error_of(name: str, seed: int, steps: int = 300) -> float:
    world = make_world(seed, WorldOptions())
    known = slice(0, 10_000)
    columns = world.user[known].astype(np.int64), world.item[known].astype(np.int64)
    player = local(name)
    await player.prepare(KnownRatings(100, 300, *columns, world.rating[known].astype(float)))
    squared = []
    for event in range(10_000, 10_000 + steps):
        pair, rating = Pair(int(world.user[event]), int(world.item[event])), float(world.rating[event])
        squared.append((await player.predict(pair) - rating) ** 2)
        await player.learn(pair, rating)
    await player.close()
    return float(np.mean(squared))


async def test_each_player_beats_the_simpler_one() -> None:
    errors = [await error_of(name, 21) for name in LOCAL_PLAYERS]
    assert errors == sorted(errors, reverse=True)
    assert errors[LOCAL_PLAYERS.index("constant")] < 2.1
    assert errors[LOCAL_PLAYERS.index("als")] < 0.2


@pytest.mark.parametrize("name", [*LOCAL_PLAYERS, "variational"])
async def test_a_player_without_any_history_answers_on_the_scale_and_learns(name: str) -> None:
    player = local(name)
    await player.prepare(EMPTY)
    for user, item in ((0, 0), (3, 5), (9, 2), (2, 40), (50, 50)):
        assert 1 <= await player.predict(Pair(user, item)) <= 5
        await player.learn(Pair(user, item), 5.0)
        assert 1 <= await player.predict(Pair(user, item)) <= 5
    if name in {"random", "constant"}:
        return
    random = np.random.default_rng(1)
    users, items = np.divmod(random.permutation(400)[:200], 20)
    player = local(name)
    await player.prepare(KnownRatings(20, 20, users, items, random.integers(1, 6, 200).astype(float)))
    before = await player.predict(Pair(0, 0))
    assert name != "variational" or player.std > 0
    for item in set(range(1, 20)) - set(items[users == 0].tolist()):
        await player.learn(Pair(0, item), 5.0)
    assert await player.predict(Pair(0, 0)) != before
    # One who came after the history, with an item that did.
    await player.learn(Pair(25, 30), 4.0)
    assert 1 <= await player.predict(Pair(25, 4)) <= 5
    await player.close()


def test_no_figure_and_no_name_is_cut_where_the_terminal_is_narrow() -> None:
    names, figures = ("split", "engine"), [f"figure {n}" for n in range(9)]
    table = new_table("title", (*names, *figures, "note"), left=(*names, "note"))
    values = [f"0.{n}4321" for n in range(9)]
    table.add_row("random x 3", "variational, attributes", *values, "a note of some length that folds")
    console = Console(width=80, record=True, file=StringIO())
    print_whole(console, table)
    said = console.export_text()
    shown = [value for value in values if value in said]
    assert shown == values[: len(shown)] != []
    assert all(name in " ".join(said.split()) for name in figures)
    assert "variational, attributes" in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80
