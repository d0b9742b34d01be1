"""Items of the catalogue, and users, as attributes by row. Invariant: what no regression can read is left
out; no item and no user is refused for it.

Categories are labels as a list is. A title is none: nearly each item has its own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from factors import Attribute, Columns, Encoding, Labels, Numbers
from featurestore.catalogue.item import AttributeValue, CatalogueItem, Time

# No name of an attribute is empty, so this is none of them.
_CATEGORIES = ""
# As attributes of a user are stored.
_VALUES = msgspec.json.Decoder(dict[str, AttributeValue])


@dataclass
class _Texts:
    rows: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def add(self, row: int, labels: Iterable[str]) -> None:
        for label in labels:
            self.rows.append(row)
            self.codes.append(self.known.setdefault(label, len(self.known)))


def attributes_of(items: Iterable[tuple[int, CatalogueItem]]) -> list[Attribute]:
    """Return the attributes of items, each with its row; no row twice."""
    return attributes_by_row((row, item.categories, item.attributes) for row, item in items)


def columns_of_users(encoding: Encoding, stored: Sequence[bytes]) -> Columns:
    """Return the columns (m, c) of users by their attributes as these are stored, empty for none."""
    return encoding.encode(user_attributes_of(enumerate(stored)), len(stored))


def user_attributes_of(users: Iterable[tuple[int, bytes]]) -> list[Attribute]:
    """Return the attributes of users as these are stored, each with its row; no row twice. Of a user whose
    attributes cannot be read there are none.
    """
    return attributes_by_row((row, (), _read(data)) for row, data in users if data)


def _read(data: bytes) -> Mapping[str, AttributeValue]:
    try:
        return _VALUES.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def attributes_by_row(
    rows: Iterable[tuple[int, Sequence[str], Mapping[str, AttributeValue]]],
) -> list[Attribute]:
    """Return the attributes of rows, each with its categories and its values; no row twice."""
    numbers: dict[str, dict[int, float]] = {}
    texts: dict[str, _Texts] = {}
    for row, categories, values in rows:
        if categories:
            texts.setdefault(_CATEGORIES, _Texts()).add(row, categories)
        for name, value in values.items():
            match value:
                case str():
                    texts.setdefault(name, _Texts()).add(row, (value,))
                case list():
                    texts.setdefault(name, _Texts()).add(row, value)
                case Time():
                    numbers.setdefault(name, {})[row] = value.seconds
                case _ if math.isfinite(value):
                    numbers.setdefault(name, {})[row] = float(value)
    found: list[Attribute] = [
        Numbers(name, np.fromiter(of, np.int64, len(of)), np.fromiter(of.values(), np.float64, len(of)))
        for name, of in sorted(numbers.items())
    ]
    found += [
        Labels(name, np.array(of.rows, dtype=np.int64), np.array(of.codes, dtype=np.int64), list(of.known))
        for name, of in sorted(texts.items())
    ]
    return found
