"""Items of the catalogue as attributes by item row. Invariant: what no regression can read is left out; no
item is refused for it.

Categories are labels as a list is. A title is none: nearly each item has its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from factors import Attribute, Labels, Numbers
from featurestore.catalogue.item import CatalogueItem, Time

# No name of an attribute is empty, so this is none of them.
_CATEGORIES = ""


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
    numbers: dict[str, dict[int, float]] = {}
    texts: dict[str, _Texts] = {}
    for row, item in items:
        if item.categories:
            texts.setdefault(_CATEGORIES, _Texts()).add(row, item.categories)
        for name, value in item.attributes.items():
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
