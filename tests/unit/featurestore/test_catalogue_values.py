"""Attributes of the catalogue: types are inferred, held, refused; what is stored is read as written."""

import pytest

from featurestore.catalogue.item import (
    AttributeType,
    AttributeValue,
    CatalogueItem,
    Time,
    pack_item,
    type_of,
    unpack_item,
)
from featurestore.catalogue.schema import ValueRefused, parse_time, shown, typed
from featurestore.errors import StoreDamaged


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "boolean"),
        (2.5, "number"),
        (3, "number"),
        ("red", "text"),
        (["red"], "list"),
        (Time(9.0), "time"),
    ],
)
def test_a_value_comes_back_with_its_type(value: AttributeValue, expected: AttributeType) -> None:
    item = CatalogueItem("dune", "Dune", ["sf"], {"it": value}, available_until=5.0)
    read = unpack_item(pack_item(item), "key")
    assert read == item
    assert type_of(value) == type_of(read.attributes["it"]) == expected


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[]", b'{"title": "no id"}', b'{"item_id": "a", "attributes": {"b": {}}}']
)
def test_other_bytes_name_the_key(data: bytes) -> None:
    with pytest.raises(StoreDamaged, match="foldin:catalogue"):
        unpack_item(data, "foldin:catalogue")


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


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-00:01"])
def test_a_zone_leads_to_no_year_that_cannot_be_shown(text: str) -> None:
    assert parse_time(text) is None
