"""Each benchmark runs at a tiny size; figures of the documents name their commit; data sets run nothing; rivals
are tuned on training ratings alone.
"""

import json
import lzma
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.data import datasets
from benchmarks.harness.recorded import DOCS, FIRST, LAST
from benchmarks.rivals.tuning import BUDGET, inner_question, tuned
from evaluation.offline.ranking.lists import top_by_score
from evaluation.offline.splits import random_splits
from evaluation.question import Question
from processes.blocking import plain_environment, python_command
from tests.unit.evaluation.evaluation_data import made


def rows_of(path: Path) -> list[list[str]]:
    """The cells of the recorded rows."""
    inside = path.read_text().split(FIRST)[1].split(LAST)[0]
    lines = [line for line in inside.split("\n") if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", ["performance", "accuracy"])
def test_every_row_of_the_documents_names_its_commit(name: str) -> None:
    rows = rows_of(DOCS / f"{name}.md")
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 7, row
        assert re.fullmatch(r"[0-9a-f]{7,}\+?|not noted", row[-1]), row


def test_a_pickle_that_wants_to_do_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        datasets.read_frame(lzma.compress(pickle.dumps(Path)))


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


TINY = ("--seconds", "0.2", "--rounds", "1", "--force", "--no-pin")
SIZES = {
    "predict": ("--scale", "0.002"),
    "batch": ("--scale", "0.01"),
    "recommend": ("--scale", "0.001", "--rank", "6"),
    "ratings": ("--scale", "0.01"),
    "fit": ("--scale", "0.0005", "--rank", "6"),
    "refit": ("--scale", "0.002", "--sizes", "1000000"),
    "publish": ("--scale", "0.001"),
    "growth": ("--scale", "0.001"),
    "overload": ("--scale", "0.01"),
    "start": ("--scale", "0.0005", "--rank", "6"),
    "recovery": ("--scale", "0.0005"),
}
ACCURACY = {
    "accuracy": ("--sets", "synthetic", "made-4", "--ratings", "4k", "--scale", "0.05"),
    "ranking": ("--sets", "synthetic", "--scale", "0.03", "--repeats", "1"),
}
ENGINES = {"accuracy": ("auto", "bias", "surprise-svd"), "ranking": ("auto", "popularity", "edlae")}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`foldin bench NAME` as a process of its own."""
    command = python_command("benchmarks", name, *arguments)
    environment = plain_environment(os.environ, {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(SIZES))
def test_prints_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    done = run(name, *TINY, *SIZES[name], "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    written: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["rows"]
    for row in written["rows"]:
        assert (row["median"] is not None) != bool(row["skipped"])
        assert row["verdict"] in {"", "skipped"}  # a tiny size has no verdict


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ACCURACY)
def test_a_line_for_each_engine(name: str, tmp_path: Path) -> None:
    done = run(name, *ACCURACY[name], "--engines", *ENGINES[name], "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = (tmp_path / f"{name}.csv").read_text().splitlines()
    for engine in ENGINES[name]:
        assert any(f",{engine}," in line for line in lines)
