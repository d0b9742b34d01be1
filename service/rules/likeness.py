"""How alike items are by what the catalogue says of them.

Invariant: an item is as like another as that is like it, and 1 is the same.
"""

import numpy as np

from factors import Float64s, Int64s
from service.rules.columns import Columns


def likeness(columns: Columns, row: int, n: int) -> Float64s:
    """Return how alike each of the first `n` items is to the item of `row` (n,): the share of texts that both
    have, of those that either has (Jaccard). Categories, and attributes that are texts or lists of texts.
    """
    shared, sizes, own = np.zeros(n), np.zeros(n), 0
    for column in columns.texts():
        texts = column.texts_of(row)
        shared += column.shared(texts, n)
        sizes += column.sizes(n)
        own += len(texts)
    either = own + sizes - shared
    return np.divide(shared, either, out=np.zeros(n), where=either > 0)


def best_rows(scores: Float64s, n: int) -> Int64s:
    """Return the rows of the `n` largest of `scores` (m,) above -inf, best first, ties by row."""
    rows = np.flatnonzero(scores > -np.inf)
    if 0 < n < len(rows):
        last = np.partition(scores[rows], len(rows) - n)[len(rows) - n]
        rows = rows[scores[rows] >= last]
    return rows[np.argsort(-scores[rows], kind="stable")][:n]
