"""Attributes of the catalogue: types are inferred, held, refused; what is stored is read as written."""

import pytest

from featurestore.catalogue.item import AttributeType, type_of
from featurestore.catalogue.schema import shown, typed


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
