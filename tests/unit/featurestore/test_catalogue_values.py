"""Attributes of the catalogue: types are inferred, held, refused; what is stored is read as written."""

import pytest

from featurestore.catalogue.item import AttributeType, type_of
from featurestore.catalogue.schema import shown, typed

TYPED: dict[AttributeType, list[object]] = {
    "boolean": [True],
    "number": [3, 2.5],
    "text": ["red", "20240101", "2024-13-01"],
    "list": [[], ["a", "b"]],
    "time": ["2024-01-31", "2024-01-31T10:00:00+02:00", "2024-01-31 10:00Z"],
}


@pytest.mark.parametrize("expected", TYPED)
def test_a_type_is_inferred_and_survives_being_shown(expected: AttributeType) -> None:
    for value in TYPED[expected]:
        found = typed("it", value, None)
        assert type_of(found) == expected
        assert typed("it", shown(found), None) == found
