"""Stored items of the catalogue."""

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
