"""What computes the half-steps of a fit: numpy, or loops that numba compiles (`compiled`).

Invariant: a fit asks its backend and never tests which one it is; both give the same but for the rounding of
float32 tables.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import TO_THE_END, HalfStep, Iteration, entry_errors, half_step
from factors.inference.histories import Compressed
from factors.model.layout import FloatTable
from factors.model.types import Float32s, Float64s

# Compiling takes 25 s once for each version on a machine, reading it back 1 s. Compiled loops take half the
# time of numpy, which for so many ratings is that long for a first fit and its ranking head.
MANY_RATINGS = 50_000


class RatedSets(Protocol):
    """The matrix of who rated what (rows, others), each row divided by the square root of its count."""

    def times(self, effects: Float64s) -> Float64s:
        """Return the product with `effects` (others, d)."""

    def transposed_times(self, deviations: Float64s) -> Float64s:
        """Return the product of the transposed matrix with `deviations` (rows, d)."""


class HalfStepBackend(Protocol):
    """What a fit needs to be computed over all ratings. `most_apart`: only a fit of fewer ratings has users
    who move and contexts, with which a row is another one at each of its ratings. `at_once`: so many ratings
    take some 100 MB. `threads`: how many it computes with.
    """

    most_apart: float
    at_once: int
    threads: int

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        """Return what `half_step.half_step` returns, for `inputs` without unknown other rows or new rows."""

    def score_errors(
        self, inputs: HalfStepInput, step: HalfStep, other_step: HalfStep, every: int
    ) -> tuple[float, Float64s]:
        """Return the expected sum of squares of ratings less scores, and the mean score of each `every`-th
        entry, given the half-step of `inputs` and the one of the other side after it.
        """

    def values(self, value: FloatTable) -> FloatTable:
        """Return ratings (n,) as they are read."""

    def rated_sets(self, data: Compressed, others: Compressed) -> RatedSets:
        """Return the sets of `data`; `others`: the same ratings by the other side."""

    def product(self, data: Compressed, entries: Float32s, table: Float32s) -> Float32s:
        """Return the matrix (rows, others) that has these `entries` (n,) of `data`, times `table` (others,
        d).
        """


class NumpyBackend:
    """Numpy and scipy."""

    # Each rating takes 2 KB then.
    most_apart: float = MANY_RATINGS
    # At rank 50.
    at_once: int = 100_000
    threads: int = 1

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        """See `HalfStepBackend`."""
        return half_step(inputs, iteration)

    def score_errors(
        self, inputs: HalfStepInput, step: HalfStep, other_step: HalfStep, every: int
    ) -> tuple[float, Float64s]:
        """See `HalfStepBackend`."""
        _ = other_step
        square, mean = entry_errors(inputs, step)
        return float(square.sum()), mean[::every]

    def values(self, value: FloatTable) -> FloatTable:
        """See `HalfStepBackend`."""
        return value

    def rated_sets(self, data: Compressed, others: Compressed) -> RatedSets:
        """See `HalfStepBackend`."""
        return SparseSets(set_matrix(data, others.rows))

    def product(self, data: Compressed, entries: Float32s, table: Float32s) -> Float32s:
        """See `HalfStepBackend`."""
        matrix = sp.csr_array((entries, data.other, data.indptr), shape=(data.rows, len(table)))
        return np.asarray(matrix @ table)


@dataclass(frozen=True, slots=True)
class SparseSets:
    """`RatedSets` as a sparse `matrix`."""

    matrix: sp.csr_array

    def times(self, effects: Float64s) -> Float64s:
        """See `RatedSets`."""
        return np.asarray(self.matrix @ effects)

    def transposed_times(self, deviations: Float64s) -> Float64s:
        """See `RatedSets`."""
        return np.asarray(self.matrix.T @ deviations)


def set_matrix(data: Compressed, n_others: int) -> sp.csr_array:
    """Return the sets of `data` (rows, n_others) as a sparse matrix."""
    scale = 1.0 / np.sqrt(np.maximum(data.counts, 1))
    values = np.repeat(scale, data.counts)
    return sp.csr_array((values, data.other, data.indptr), shape=(data.rows, n_others))
