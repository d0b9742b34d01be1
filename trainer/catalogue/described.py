"""Attributes of items since a fit, on top of the fit's own. Invariant: an item has the columns of what the
catalogue said of it last, as the fit encodes them.
"""

from collections.abc import Sequence

import numpy as np

from factors import Columns, Int64s, SideAttributes
from featurestore.catalogue.columns import attributes_of
from featurestore.catalogue.item import CatalogueItem

# Items that change between two fits: each is pushed to every worker. The next fit learns the others.
MOST_CHANGED = 100_000


class DescribedItems:
    """Columns of items: arithmetic alone, not for two threads at once. `attributes` and `columns` (n, c): of
    the fit.
    """

    def __init__(self, attributes: SideAttributes, columns: Columns) -> None:
        self.attributes = attributes
        self._base = columns
        # By item row: columns (1, c) that have come since.
        self._newer: dict[int, Columns] = {}

    def update(self, items: Sequence[tuple[int, CatalogueItem]]) -> list[int]:
        """Take in items, each with its row; return the rows of those whose columns are others than before."""
        if not items:
            return []
        numbered = [(number, item) for number, (_, item) in enumerate(items)]
        found = self.attributes.encoding.encode(attributes_of(numbered), len(items))
        rows = np.array([row for row, _ in items], dtype=np.int64)
        before = self.columns(rows)
        # A column that is at the mean is told from none by its entry alone.
        differs = np.diff(found.matrix.indptr) != np.diff(before.matrix.indptr)
        differs |= np.asarray(abs(found.matrix - before.matrix).sum(axis=1)) > 0
        taken = np.flatnonzero(differs)[: max(0, MOST_CHANGED - len(self._newer))]
        self._newer.update({int(rows[k]): found.take(taken[j : j + 1]) for j, k in enumerate(taken)})
        return [int(row) for row in rows[taken]]

    def columns(self, rows: Int64s) -> Columns:
        """Return the columns (m, c) of items, m > 0; of one that is not known without any entry."""
        none = self._base.take(np.zeros(0, dtype=np.int64)).resized(1)

        def of_fit(row: int) -> Columns:
            return self._base.take(np.array([row])) if row < self._base.rows else none

        return Columns.joined([self._newer.get(row) or of_fit(row) for row in rows.tolist()])
