"""Weighted sums over the entries of each row: the one operation that every half-step is made of.

Invariant: the result does not depend on which of the two ways it is computed, but for the last digit.
"""

import numpy as np
import scipy.sparse as sp

from factors.tables import Float64s, Int64s

# Up to so many entries gathering and `reduceat` are faster than making a sparse matrix (0.1 ms each).
_FEW = 2048


def segment_sums(indptr: Int64s, columns: Int64s, weight: Float64s, table: Float64s) -> Float64s:
    """For each row `j` the sum of `weight[e] * table[columns[e]]` over `e` from `indptr[j]` to `indptr[j +
    1]`.

    `indptr` (b + 1,), `columns` and `weight` (n,), `table` (m, c); gives (b, c).
    """
    rows = len(indptr) - 1
    if len(columns) > _FEW:
        matrix = sp.csr_array((weight, columns, indptr), shape=(rows, len(table)))
        return np.asarray(matrix @ table)
    terms = table[columns]
    terms *= weight[:, None]
    if rows == 1:
        return np.asarray(terms.sum(axis=0)[None])
    sums = np.zeros((rows, table.shape[1]))
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    if len(filled):
        sums[filled] = np.add.reduceat(terms, indptr[filled], axis=0)
    return sums
