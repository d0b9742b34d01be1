"""Engines answer, and their lines can be shown, whatever the ratings are like."""

import pytest

from evaluation.errors import NotInstalledError
from evaluation.offline.data import DataSet
from evaluation.offline.engines import find
from evaluation.offline.ranking.table import ranking_table
from evaluation.offline.running import judge
from evaluation.offline.splits import random_splits
from evaluation.question import Answer
from evaluation.report import engines_table
from tests.support.odd_data import ODD_DATA

RATE = ("global-mean", "user-mean", "item-mean", "bias")
RANK = ("popularity",)


# A data set has no pair twice.
@pytest.mark.parametrize("name", sorted(set(ODD_DATA) - {"duplicates"}))
def test_every_engine_has_a_line(name: str) -> None:
    odd = ODD_DATA[name]()
    data = DataSet(name, odd.ratings, odd.n_users, odd.n_items, odd.scale)
    (split,) = random_splits(data, 1, 1)
    for engine, top in [*((each, 0) for each in RATE), ("popularity", 20)]:
        question = split.question(top)
        answer = Answer(find(engine).predict(question, 1), 0.0, 0.0)
        if top and not len(question.ranked_users()):
            with pytest.raises(NotInstalledError, match="none can be ranked for"):
                judge(split, engine, engine, question, answer)
            continue
        line = judge(split, engine, engine, question, answer)
        assert line.summary().startswith(engine)
        assert len(line.csv_row()) == len(line.csv_columns())
        table = ranking_table([line], name) if top else engines_table([line], name)
        assert table.row_count == 1
