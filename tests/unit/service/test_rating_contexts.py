"""Contexts in bodies and queries: what is read, and what is named where one cannot be."""

import json
from typing import Any

import numpy as np
import pytest

from factors import Scale
from featurestore.ratings.context_schema import MOST_FIELDS
from service.http.parsing import Query
from service.http.problems import Problem
from service.http.rating_contexts import Given, query_context
from service.routes.predict import PredictBody, checked_contexts
from service.routes.ratings import Rated, parse_ratings
from service.routes.train import checked_variables

SCALE = Scale(1.0, 5.0)
PAIR = {"user_id": "u", "item_id": "i"}


def parsed(context: str) -> Rated:
    row = json.dumps({**PAIR, "rating": 3})
    body = f'[{row}, {row[:-1]}, "context": {context}}}]'
    return parse_ratings(body.encode(), SCALE, 1e9, lines=False)


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ('{"hour": NaN}', "context.hour"),
        ('{"day": 1, "hour": 1e400}', "context.hour"),
        ('{"hour": -Infinity}', "context.hour"),
        (r'{"hour": "\ud800"}', "context.hour"),
        ("5", "context"),
        ('"hour"', "context"),
        ("[1]", "context"),
    ],
)
def test_what_is_no_context_is_named_by_field_and_row(context: str, field: str) -> None:
    with pytest.raises(Problem) as caught:
        parsed(context)
    assert (caught.value.status, caught.value.field, caught.value.row) == (422, field, 1), caught.value.detail


@pytest.mark.parametrize(
    "text", ["", "%7B", "5", "null", "[]", "%7B%22a%22:NaN%7D", "%7B%22a%22:1e400%7D", "%ff"]
)
def test_a_query_with_another_context_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        query_context(Query(f"/predict?context={text}"))
    assert (caught.value.code, caught.value.field) == ("invalid_parameter", "context")


def test_many_pairs_have_one_context_or_one_each() -> None:
    one: dict[str, Any] = {"hour": 1}
    assert checked_contexts(PredictBody(context=one), 3) == Given([one], numbered=False)
    assert checked_contexts(PredictBody(context=[None, one]), 2) == Given([None, one])
    assert checked_contexts(PredictBody(context=[None, {}]), 2) is None
    with pytest.raises(Problem, match="context has 2 entries, and there are 3 pairs"):
        checked_contexts(PredictBody(context=[None, one]), 3)


def test_variables_are_parallel_to_the_ratings() -> None:
    found = checked_variables([[0.5, 1], [2, -3.25]], 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0.5, 1], [2, -3.25]])


@pytest.mark.parametrize(
    ("rows", "row", "why"),
    [
        ([[1.0]], None, "has 1 entries, rating_history 2"),
        ([[1.0], [1.0, 2.0]], 1, "has 1 numbers in its first row, and 2 in row 1"),
        ([[1.0], [1e39]], 1, "of row 1 is too large"),
        ([[0.0] * (MOST_FIELDS + 1)] * 2, None, "may have 32 numbers a row, not 33"),
    ],
)
def test_variables_that_are_not_are_refused(rows: list[list[float]], row: int | None, why: str) -> None:
    with pytest.raises(Problem, match=why) as caught:
        checked_variables(rows, 2)
    assert (caught.value.field, caught.value.row) == ("variables_history", row)
