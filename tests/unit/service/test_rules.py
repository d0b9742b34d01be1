"""What filters say."""

from typing import Any

import pytest

from featurestore.catalogue.schema import Types
from service.http.problems import Problem
from service.rules.filter_parsing import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, parse_filter

TYPES: Types = {"year": "number", "country": "text", "tags": "list", "added": "time"}
SCIFI = {"key": "categories", "match": {"value": "science fiction"}}


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ([], "/filter"),
        ({"most": []}, "/filter/most"),
        ({"must": [3]}, "/filter/must/0"),
        ({"must": [SCIFI, {"key": "price", "match": {"value": 1}}]}, "/filter/must/1/key"),
        ({"must": [{"key": "year", "match": {"value": 1}, "range": {"gt": 1}}]}, "/filter/must/0"),
        ({"must": [{"key": "year", "match": {"text": "1"}}]}, "/filter/must/0/match/text"),
        ({"must": [{"key": "year", "match": {"value": "1972"}}]}, "/filter/must/0/match/value"),
        ({"must": [{"key": "year", "match": {"any": [1, None]}}]}, "/filter/must/0/match/any/1"),
        ({"must": [{"key": "year", "range": {"gt": 10**400}}]}, "/filter/must/0/range/gt"),
        ({"must": [{"key": "year", "range": {"gt": 1, "gte": 1}}]}, "/filter/must/0/range"),
        ({"must": [{"key": "country", "range": {"gt": "a"}}]}, "/filter/must/0/range"),
        ({"must": [{"key": "added", "range": {"gt": "yesterday"}}]}, "/filter/must/0/range/gt"),
        ({"must": [{"has_id": [True]}]}, "/filter/must/0/has_id/0"),
        ({"must": [{"a/b~c": 1}]}, "/filter/must/0/a~1b~0c"),
        ({"must": [SCIFI] * (MAX_CONDITIONS + 1)}, f"/filter/must/{MAX_CONDITIONS}"),
        ({"must": [{"has_id": ["a"] * (MAX_VALUES + 1)}]}, "/filter/must/0/has_id"),
        ({"must": [{"key": "tags", "match": {"any": [""] * (MAX_VALUES + 1)}}]}, "/filter/must/0/match/any"),
    ],
)
def test_what_is_wrong_is_named(condition: Any, field: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_filter(condition, TYPES, "/filter")
    assert (refused.value.code, refused.value.field) == ("invalid_rule", field)


def test_filters_may_not_stand_too_deep() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"must": [nested(depth - 1)]} if depth > 1 else {}

    parse_filter(nested(MAX_DEPTH), {}, "/filter")
    with pytest.raises(Problem, match="deep"):
        parse_filter(nested(MAX_DEPTH + 1), {}, "/filter")
    with pytest.raises(Problem, match="deep"):
        parse_filter(nested(500), {}, "/filter")
