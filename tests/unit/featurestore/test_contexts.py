"""Contexts of ratings: their schema, and their bytes; damage counts as not given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from featurestore.ratings.context_schema import ContextField, ContextRefused, ContextSchema, Values


def extended(schema: ContextSchema, given: Sequence[Values | None]) -> ContextSchema:
    return schema.extended(schema.lacking(given))


HOUR = ContextField("hour", "number")
DEVICE = ContextField("device", "category", ("phone", "desk"))


def test_fields_are_inferred_and_rows_come_back() -> None:
    given: list[Values | None] = [{"hour": 14, "device": "phone"}, None, {"device": "desk", "new": True}, {}]
    schema = extended(ContextSchema(), given)
    assert schema.fields == (HOUR, DEVICE, ContextField("new", "number"))
    assert schema.kinds == ("number", "category", "number")
    rows = schema.rows(given)
    assert rows is not None
    assert rows.dtype == np.float32
    nan = np.nan
    expected = [[14, 0, nan], [nan] * 3, [nan, 1, 1], [nan] * 3]
    np.testing.assert_array_equal(rows, np.array(expected, dtype=np.float32))
    assert [schema.named(row) for row in rows] == [given[0], {}, {"device": "desk", "new": 1}, {}]
    # An older row is shorter, and one of a store that knows more is longer.
    assert schema.named(rows[0, :1]) == {"hour": 14}
    assert ContextSchema((HOUR,)).named(rows[0]) == {"hour": 14}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"hour": "noon"}, "'hour' must be a finite number, true or false, not a text"),
        ({"hour": [1]}, "not a list"),
        ({"hour": 1e39}, "finite"),
        ({"hour": 10**400}, "finite"),
        ({"hour": float("nan")}, "finite"),
        ({"device": 3}, "'device' must be a text of at most 64 bytes, not a number"),
        ({"new": {}}, "'new' must be a finite number, true or false, or a text"),
        ({"": 1}, "1 to 64 bytes"),
        ({"x" * 65: 1}, "1 to 64 bytes"),
        ({"device": "x" * 65}, "at most 64 bytes"),
    ],
)
def test_a_context_of_a_rating_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ContextRefused, match=why) as refused:
        extended(ContextSchema((HOUR, DEVICE)), [None, given])
    assert refused.value.row == 1
    assert refused.value.name == next(iter(given))[:64]


def test_schemas_of_two_stores_become_one_and_rows_keep_their_meaning() -> None:
    here = ContextSchema((DEVICE,))
    there = ContextSchema((HOUR, ContextField("device", "category", ("tv", "desk"))))
    both = here.merged(there)
    assert both.fields == (ContextField("device", "category", ("phone", "desk", "tv")), HOUR)
    given: list[Values | None] = [{"hour": 3, "device": "tv"}, {"device": "desk"}, {"hour": 5}]
    rows = there.rows(given)
    assert rows is not None
    recoded = both.recoded(np.concatenate([rows, [[0, 7]]]).astype(np.float32), there)
    assert [both.named(row) for row in recoded] == [*given, {"hour": 0}], "a code that there is not is none"
    assert both.merged(there) is both
    with pytest.raises(ContextRefused, match="'device' is a category here, and a number there"):
        here.merged(ContextSchema((ContextField("device", "number"),)))
    with pytest.raises(ContextRefused, match="no categories"):
        here.merged(ContextSchema((ContextField("age", "number", ("old",)),)))
