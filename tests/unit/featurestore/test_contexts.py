"""Contexts of ratings: their schema, and their bytes; damage counts as not given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from featurestore.ratings import context_schema
from featurestore.ratings.context_schema import ContextField, ContextRefused, ContextSchema, Values
from tests.support.waiting import some


def extended(schema: ContextSchema, given: Sequence[Values | None]) -> ContextSchema:
    return schema.extended(schema.lacking(given))


HOUR = ContextField("hour", "number")
DEVICE = ContextField("device", "category", ("phone", "desk"))


def test_categories_are_appended_and_rows_come_back() -> None:
    given: list[Values | None] = [{"hour": 14, "device": "phone"}, None, {"device": " desk", "new": True}, {}]
    told = (HOUR, ContextField("device", "category"), ContextField("new", "number"))
    schema = extended(ContextSchema().merged(ContextSchema(told)), given)
    assert schema.fields == (HOUR, DEVICE, told[2])
    rows = some(schema.rows(given))
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
        ({"hour": " "}, "finite"),
        ({"new": 1}, "'new' is no field of a context; there are hour, device; PUT /schema names one"),
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
    rows = some(there.rows(given))
    recoded = both.recoded(np.concatenate([rows, [[0, 7]]]).astype(np.float32), there)
    assert [both.named(row) for row in recoded] == [*given, {"hour": 0}], "a code that there is not is none"
    assert both.merged(there) is both
    with pytest.raises(ContextRefused, match="'device' is a category here, and a number there"):
        here.merged(ContextSchema((ContextField("device", "number"),)))
    for field, why in (
        (ContextField("age", "number", ("old",)), "no categories"),
        (ContextField("x" * 65, "number"), "1 to 64 bytes"),
        (ContextField("on", "category", (" ",)), "without a name"),
    ):
        with pytest.raises(ContextRefused, match=why):
            here.merged(ContextSchema((field,)))


def test_a_field_that_is_deleted_leaves_its_place_and_frees_its_name() -> None:
    number = ContextField("device", "number")
    named = ContextSchema((DEVICE, HOUR)).without("device").merged(ContextSchema((number,)))
    assert named.kinds == (None, "number", "number")
    rows = some(named.rows([{"device": 3}]))
    assert named.named(np.array([1, 5, 3], np.float32)) == {"hour": 5, "device": 3}
    np.testing.assert_array_equal(rows[0], np.array([np.nan, np.nan, 3], np.float32))
    assert context_schema.schema_from_bytes(context_schema.schema_to_bytes(named)) == named
    # An archive says what the store says, place by place, and has what a store has lost.
    before = ContextSchema((DEVICE, HOUR))
    assert before.continued(named) == named == named.continued(before)
    with pytest.raises(ContextRefused, match="'hour' is another field, 'device', there"):
        ContextSchema((HOUR,)).continued(named)
    # What is put back from a copy names nothing anew that was deleted since.
    gone = before.without("device")
    assert gone.merged(before, keep_deleted=True) == gone
    row = np.array([[1, 5]], np.float32)
    assert gone.recoded(row, before).tolist() == before.recoded(row, gone).tolist() == row.tolist()
