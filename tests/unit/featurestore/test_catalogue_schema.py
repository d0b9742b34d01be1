"""Types of attributes: inferred, held, refused."""

import pytest

from featurestore.catalogue.item import AttributeType, type_of
from featurestore.catalogue.schema import ValueRefused, parse_time, shown, typed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "boolean"),
        (3, "number"),
        (2.5, "number"),
        ("red", "text"),
        ("20240101", "text"),
        ("2024-13-01", "text"),
        ([], "list"),
        (["a", "b"], "list"),
        ("2024-01-31", "time"),
        ("2024-01-31T10:00:00+02:00", "time"),
        ("2024-01-31 10:00Z", "time"),
    ],
)
def test_a_type_is_inferred_and_survives_being_shown(value: object, expected: AttributeType) -> None:
    found = typed("it", value, None)
    assert type_of(found) == expected
    assert typed("it", shown(found), None) == found


@pytest.mark.parametrize(
    ("held", "value", "why"),
    [
        ("number", "3", "must be a finite number, not this text"),
        ("number", True, "not a boolean"),
        ("number", 10**400, "finite"),
        ("text", 3, "must be a text, not a number"),
        ("list", "red", "a list of texts"),
        ("list", [1], "a list of texts"),
        ("boolean", 1, "true or false"),
        ("time", "yesterday", "ISO 8601"),
        ("time", 1e18, "ISO 8601"),
        (None, {"a": 1}, "must be a number, a text"),
        (None, None, "not this value"),
        (None, float("nan"), "must be a number"),
    ],
)
def test_another_type_is_refused(held: AttributeType | None, value: object, why: str) -> None:
    with pytest.raises(ValueRefused, match=why) as caught:
        typed("colour", value, held)
    assert caught.value.name == "colour"
    assert str(caught.value).startswith("colour ")


@pytest.mark.parametrize(
    "text", ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999", "9999-12-31T23:59:59Z"]
)
def test_the_end_of_time_can_be_shown(text: str) -> None:
    assert shown(typed("until", text, "time")) == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-00:01"])
def test_a_zone_leads_to_no_year_that_cannot_be_shown(text: str) -> None:
    assert parse_time(text) is None
