"""Encoded attributes of rows: a sparse matrix whose columns a regression reads.

Invariant: a row without any attribute adds nothing to a prior mean, and the rows that have some add nothing
on average, so that the mean of a side means the same with attributes as without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from factors.model.types import Bools, Float64s


@dataclass(frozen=True, slots=True)
class Columns:
    """Attributes of n rows: `matrix` (n, c) less `center` (c,) in each row that has any entry; a row without
    one is 0.
    """

    # Centred columns would be dense: the products below subtract what the centre adds.
    matrix: sp.csr_array
    center: Float64s

    @staticmethod
    def of(entries: Float64s, center: Float64s, n_rows: int) -> "Columns":
        """Return the columns of what `entries` gives (3, m)."""
        rows, columns, values = entries
        places = rows.astype(np.int64), columns.astype(np.int64)
        return Columns(sp.csr_array((values, places), shape=(n_rows, len(center))), center)

    def entries(self) -> Float64s:
        """Return row, column and value of each entry, (3, m)."""
        row = np.repeat(np.arange(self.rows), np.diff(self.matrix.indptr))
        return np.stack([row, self.matrix.indices, self.matrix.data]).astype(np.float64)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.center)

    @property
    def described(self) -> Bools:
        """Which rows have any attribute, (n,)."""
        return np.asarray(np.diff(self.matrix.indptr) > 0)

    def times(self, effects: Float64s) -> Float64s:
        """Return what the attributes of each row add up to, (n, d), from `effects` (c, d) of the columns."""
        return np.asarray(self.matrix @ effects - self.described[:, None] * (self.center @ effects))

    def transposed_times(self, values: Float64s) -> Float64s:
        """Return the product (c, d) of the transposed columns with `values` (n, d)."""
        return np.asarray(self.matrix.T @ values - np.outer(self.center, self.described @ values))

    def gram(self) -> Float64s:
        """Return the product (c, c) of the columns with themselves."""
        product = (self.matrix.T @ self.matrix).toarray()
        crossed = np.outer(self.center, np.asarray(self.matrix.sum(axis=0)))
        squares = int(self.described.sum()) * np.outer(self.center, self.center)
        return np.asarray(product - crossed - crossed.T + squares)

    def take(self, rows: npt.NDArray[np.integer[Any]] | Bools) -> "Columns":
        """Return those of `rows` (positions, or a mask) alone."""
        return Columns(self.matrix[rows], self.center)

    @staticmethod
    def joined(parts: "Sequence[Columns]") -> "Columns":
        """Return the rows of all `parts`, at least one, which have the same columns, one behind the other."""
        matrices = [part.matrix for part in parts]
        indptr = np.concatenate([[0], *(np.diff(matrix.indptr) for matrix in matrices)]).cumsum()
        index, data = (np.concatenate([getattr(m, name) for m in matrices]) for name in ("indices", "data"))
        shape = (len(indptr) - 1, parts[0].width)
        return Columns(sp.csr_array((data, index, indptr), shape=shape), parts[0].center)

    def resized(self, n_rows: int) -> "Columns":
        """Return the first `n_rows`; rows beyond the end have no attributes."""
        rows, width = min(n_rows, self.rows), self.width
        known = self.matrix[:rows]
        indptr = np.append(known.indptr, np.full(n_rows - rows, known.indptr[-1], known.indptr.dtype))
        return Columns(sp.csr_array((known.data, known.indices, indptr), shape=(n_rows, width)), self.center)
