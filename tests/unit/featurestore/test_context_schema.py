"""The schema of contexts: what is inferred, what is refused, and rows that keep their meaning."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from featurestore.ratings.context_schema import (
    ContextField,
    ContextRefused,
    ContextSchema,
    UnknownContextField,
    Values,
    schema_from_bytes,
    schema_to_bytes,
)


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


def test_what_is_known_is_not_changed() -> None:
    schema = ContextSchema((HOUR, DEVICE))
    assert extended(schema, [{"hour": 3, "device": "desk"}, None, {"other": None}]) is schema
    more = extended(schema, [{"device": "tv", "where": "home"}])
    assert more.fields == (HOUR, ContextField("device", "category", ("phone", "desk", "tv")), more.fields[2])
    assert more.rows([{"device": "desk"}]) is not None


def test_nothing_given_is_no_rows() -> None:
    assert ContextSchema((HOUR,)).rows([None, {}, {"hour": None}, {"unknown": None}]) is None


def test_a_fraction_comes_back_as_it_was_given() -> None:
    schema = ContextSchema((HOUR,))
    rows = schema.rows([{"hour": 0.1}])
    assert rows is not None
    assert schema.named(rows[0]) == {"hour": 0.1}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"hour": "noon"}, "'hour' must be a finite number, true or false, not a text"),
        ({"hour": [1]}, "not a list"),
        ({"hour": {"a": 1}}, "not an object"),
        ({"hour": 1e39}, "finite"),
        ({"hour": 10**400}, "finite"),
        ({"hour": float("nan")}, "finite"),
        ({"device": 3}, "'device' must be a text of at most 64 bytes, not a number"),
        ({"device": True}, "not a number"),
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


def test_there_are_limits() -> None:
    fields = {f"v{k}": 0 for k in range(32)}
    full = extended(ContextSchema(), [fields])
    assert len(full.fields) == 32
    with pytest.raises(ContextRefused, match=r"'v32' is one field too many: a context may have 32"):
        extended(full, [None, None, {"v32": 0}])
    texts: list[Values | None] = [{"device": str(k)} for k in range(256)]
    many = extended(ContextSchema(), texts)
    with pytest.raises(ContextRefused, match="'device' has 256 categories") as refused:
        extended(many, [*texts, {"device": "256"}])
    assert refused.value.row == 256


def test_a_question_may_have_unknown_categories_but_no_unknown_fields() -> None:
    schema = ContextSchema((HOUR, DEVICE))
    rows = schema.rows([{"hour": 1, "device": "tv"}])
    assert rows is not None
    np.testing.assert_array_equal(rows, [[1, np.nan]])
    with pytest.raises(UnknownContextField, match="'day' is no field of a context; there are hour, device"):
        schema.rows([None, {"day": 3}])
    with pytest.raises(ContextRefused, match="'hour' must be a finite number"):
        schema.rows([{"hour": "noon"}])


def test_the_largest_number_can_be_sent_again() -> None:
    schema, largest = ContextSchema((HOUR,)), float(np.finfo(np.float32).max)
    rows = schema.rows([{"hour": largest}, {"hour": -largest}])
    assert rows is not None
    shown = [schema.named(row) for row in rows]
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
    np.testing.assert_array_equal(schema.rows(shown), rows)
    with pytest.raises(ContextRefused, match="finite"):
        schema.rows([{"hour": 2.0**128 - 2.0**103}])


def test_what_is_retired_keeps_its_number_and_is_not_shown() -> None:
    schema = ContextSchema((HOUR, DEVICE, ContextField("typo", "number")))
    rows = schema.rows([{"hour": 1, "device": "desk", "typo": 2}, {"device": "phone"}])
    assert rows is not None
    less = schema.without("typo").without("device", "phone")
    assert [each.name for each in less.shown] == ["hour", "device"]
    assert less.retired == [(1, 0), (2, None)]
    assert [less.named(row) for row in rows] == [{"hour": 1, "device": "desk"}, {}]
    more = extended(less, [{"new": 1, "device": "tv"}])
    assert [each.name for each in more.fields] == ["hour", "device", "typo", "new"]
    np.testing.assert_array_equal(more.rows([{"device": "tv", "new": 7}]), [[np.nan, 2, np.nan, 7]])
    # A question: as what no rating was given with.
    with pytest.raises(UnknownContextField, match="'typo' is no field of a context; there are hour, device"):
        less.rows([{"typo": 1}])
    assert less.rows([{"hour": 1, "device": "phone"}]) is not None
    for given, why in (
        ({"typo": 1}, "'typo' is retired: leave it out, or bring it back with PUT /schema"),
        ({"device": "phone"}, "'device' has retired its category 'phone'"),
    ):
        with pytest.raises(ContextRefused, match=why) as refused:
            less.lacking([None, given])
        assert refused.value.row == 1
    for name, category in (("typo", None), ("none", None), ("device", "phone"), ("device", "none")):
        with pytest.raises(UnknownContextField):
            less.without(name, category)
    # Told again it means what it did; of another kind it would be another field.
    told = ContextSchema((ContextField("typo", "number"), ContextField("device", "category", ("phone",))))
    back = more.merged(told)
    assert back.retired == []
    assert [back.named(row) for row in rows] == [
        {"hour": 1, "device": "desk", "typo": 2},
        {"device": "phone"},
    ]
    with pytest.raises(
        ContextRefused, match=r"'typo' is a number here \(it is retired\), and a category there"
    ):
        less.merged(ContextSchema((ContextField("typo", "category"),)))


def test_what_another_store_has_retired_and_what_this_one_has() -> None:
    here = ContextSchema((HOUR, DEVICE)).without("hour").without("device", "desk")
    there = (
        ContextSchema((DEVICE, HOUR, ContextField("old", "number"))).without("old").without("device", "phone")
    )
    both = here.merged(there, keep_retired=True)
    assert both.retired == [(0, None), (1, 1), (2, None)], (
        "here it stays retired, and what is new comes as it is"
    )
    # As the archive follows the store.
    assert here.merged(there).retired == [(1, 0), (2, None)]
    assert here.merged(ContextSchema((HOUR, DEVICE))).retired == []


def test_retiring_makes_room_for_others() -> None:
    full = extended(ContextSchema(), [{f"v{k}": 0 for k in range(32)}])
    turned = full
    for k in range(32):
        turned = extended(turned.without(f"v{k}"), [{f"w{k}": 0}])
    assert len(turned.fields) == 64
    with pytest.raises(ContextRefused, match="'v0' is one field too many: a context may have 32"):
        turned.merged(ContextSchema((ContextField("v0", "number"),)))
    with pytest.raises(ContextRefused, match="'x' is one field too many: a store has at most 64"):
        extended(turned.without("w0"), [{"x": 0}])
    assert schema_from_bytes(schema_to_bytes(turned)) == turned
    many = extended(ContextSchema(), [{"device": str(k)} for k in range(256)])
    for k in range(768):
        many = extended(many.without("device", str(k)), [{"device": str(256 + k)}])
    with pytest.raises(ContextRefused, match="'device' has 1024 categories, those included that are retired"):
        extended(many.without("device", "768"), [{"device": "one more"}])
    assert schema_from_bytes(schema_to_bytes(many)) == many


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


def test_bytes_come_back_and_others_are_refused() -> None:
    schema = ContextSchema((HOUR, DEVICE))
    assert schema_from_bytes(schema_to_bytes(schema)) == schema
    twice = schema_to_bytes(ContextSchema((HOUR, HOUR)))
    many = schema_to_bytes(ContextSchema(tuple(ContextField(str(k), "number") for k in range(33))))
    code = schema_to_bytes(ContextSchema((ContextField("a", "category", ("x",), retired_codes=(1,)),)))
    assert schema_from_bytes(schema_to_bytes(schema.without("hour"))) == schema.without("hour")
    for data in (b"", b"{}", b"[1]", b'{"format":3,"fields":[]}', twice, many, code):
        with pytest.raises(ValueError, match=r"schema of contexts|too many"):
            schema_from_bytes(data)
