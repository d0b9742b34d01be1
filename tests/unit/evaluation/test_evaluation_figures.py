"""Figures of an evaluation by hand-made numbers, lines on disk, engines by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation import metrics
from evaluation.errors import EngineFailedError
from evaluation.offline import running
from evaluation.offline.running import Plan, key_of, measure
from evaluation.offline.splits import random_splits
from evaluation.question import Answer, Predicted, Question
from evaluation.report import write_lines
from evaluation.results.lines import Line, LineStore
from factors import Scale
from tests.unit.evaluation.evaluation_data import made

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


def test_lines_are_kept_and_torn_ones_are_not_finished(tmp_path: Path) -> None:
    store = LineStore(tmp_path)
    assert store.load() == {}
    line = Line("d", "u1", "auto", "Foldin", rmse=0.9, deciles=(0.8, 0.9), curve=((1.0, 2.0),), note="rank 8")
    store.append("a", line)
    with (tmp_path / "lines.jsonl").open("ab") as file:
        file.write(b'{"key": "b", "line": {"data": "d", "spl')
    store.append("c", replace(line, engine="bias"))
    kept = store.load()
    assert sorted(kept) == ["a", "c"]
    assert kept["a"].deciles == line.deciles
    assert kept["a"].curve == line.curve
    assert np.isnan(kept["a"].mae)
    rows = write_lines(kept.values(), tmp_path / "x.csv").read_text().splitlines()
    assert rows[1].startswith("d,u1,auto,Foldin,0,0,0.9,,")
    store.clear()
    assert store.load() == {}


def test_a_finished_line_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(engine: str, question: Question, **_: object) -> Answer:
        asked.append(engine)
        if engine == "item-mean":
            raise EngineFailedError("no luck")
        return Answer(Predicted(np.full(len(question.test_user), 3.0)), 0.1, 1.0)

    monkeypatch.setattr(running, "answer", fake)
    plan = Plan(random_splits(made(), 2, seed=1), ("global-mean", "item-mean"), 1)
    store = LineStore(tmp_path)
    first = list(measure(plan, store))
    assert [line.failed for line, _ in first] == [False, True, False, True]
    again = list(measure(plan, store, store.load()))
    assert [known for _, known in again] == [True, False, True, False]  # what failed is tried again
    assert asked == ["global-mean", "item-mean"] * 2 + ["item-mean"] * 2
    keys = {key_of(split, "bias", replace(plan, seed=seed)) for split in plan.splits for seed in (1, 2)}
    assert len(keys) == 4
