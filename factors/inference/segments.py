"""Weighted sums over the entries of each row, and the products that lead back from rows to entries: the two
operations that every half-step is made of.

Invariant: the result does not depend on which of the ways it is computed, but for the last digit.

Several vectors of a row stand side by side: `k` of length `c` are one of length `k c`. `columns` (n,) says
which row of a table belongs to each entry; None where entry `e` has row `e`.
"""

import numpy as np
import scipy.sparse as sp

from factors.model.types import Float64s, Int64s

# Up to so many entries gathering and `reduceat` are faster than making a sparse matrix (0.1 ms each).
FEW = 2048
# Entries whose packed covariances are in the cache at once.
_ENTRIES_AT_ONCE = 1 << 12


def gathered(table: Float64s, columns: Int64s | None) -> Float64s:
    """Return of each entry its row of `table`, (n, ...)."""
    return table if columns is None else table[columns]


def segment_sums(indptr: Int64s, columns: Int64s | None, weight: Float64s, table: Float64s) -> Float64s:
    """For each row `j` the sum of `weight[e] * table[columns[e]]` over `e` from `indptr[j]` to `indptr[j +
    1]`.

    `indptr` (b + 1,), `table` (m, c). With `weight` (n,) it gives (b, c), with `weight` (k, n) the sums of
    each kind of weight side by side (b, k c).
    """
    rows, n = len(indptr) - 1, weight.shape[-1]
    if rows == 1 and (columns is None or n <= FEW):
        sums = weight @ gathered(table, columns)
        return np.asarray(sums.reshape(1, -1))
    if weight.ndim == 2:
        return np.hstack([segment_sums(indptr, columns, part, table) for part in weight])
    if n > FEW:
        where = np.arange(n) if columns is None else columns
        matrix = sp.csr_array((weight, where, indptr), shape=(rows, len(table)))
        return np.asarray(matrix @ table)
    terms = weight[:, None] * gathered(table, columns)
    sums = np.zeros((rows, table.shape[1]))
    # `reduceat` gives an empty segment the entry that it begins at.
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    if len(filled):
        sums[filled] = np.add.reduceat(terms, indptr[filled], axis=0)
    return sums


def entry_products(
    row: Int64s, columns: Int64s | None, powers: Float64s | None, own: Float64s, table: Float64s
) -> Float64s:
    """For each entry `e` the product of `table[columns[e]]` with what its row has: `own[row[e]]`, or where
    `own` (b, k c) has several vectors, the sum of them weighted with `powers[:, e]`.

    `row` (n,), `table` (m, c), `powers` (k, n), or None for a single vector; gives (n,).
    """
    length = table.shape[1]
    if len(own) == 1:
        if powers is None:
            return gathered(np.asarray(table @ own[0]), columns)
        products = gathered(table @ own.reshape(-1, length).T, columns)
        return np.asarray(np.einsum("nk,kn->n", products, powers))
    result = np.empty(len(row))
    for start in range(0, len(row), _ENTRIES_AT_ONCE):
        part = slice(start, start + _ENTRIES_AT_ONCE)
        near = table[part] if columns is None else table[columns[part]]
        mine = own[row[part]]
        if powers is None:
            result[part] = np.einsum("nc,nc->n", mine, near)
        else:
            products = np.einsum("nkc,nc->nk", mine.reshape(len(near), -1, length), near)
            result[part] = np.einsum("nk,kn->n", products, powers[:, part])
    return result
