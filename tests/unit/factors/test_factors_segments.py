"""Sums over the entries of rows and products back to entries: every way of computing them gives the same."""

import numpy as np
import pytest

from factors.inference.segments import FEW, entry_products, segment_sums
from factors.model.types import Float64s, Int64s


def entries_of(counts: list[int], kinds: int) -> tuple[Int64s, Int64s, Int64s, Float64s, Float64s]:
    rng = np.random.default_rng(len(counts))
    n = sum(counts)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    weights = rng.normal(size=(kinds, n))
    return indptr, row, rng.integers(0, 9, n), weights, rng.normal(size=(9, 4))


@pytest.mark.parametrize("counts", [[], [0], [1], [7], [FEW + 1], [0, 3, 0, 2], [FEW, 5]])
@pytest.mark.parametrize("kinds", [1, 3])
def test_sums_are_those_of_a_loop(counts: list[int], kinds: int) -> None:
    indptr, row, columns, weights, table = entries_of(counts, kinds)
    expected = np.zeros((len(counts), kinds, 4))
    for kind in range(kinds):
        np.add.at(expected[:, kind], row, weights[kind][:, None] * table[columns])
    side_by_side = expected.reshape(len(counts), kinds * 4)
    weight = weights[0] if kinds == 1 else weights
    np.testing.assert_allclose(segment_sums(indptr, columns, weight, table), side_by_side, atol=1e-9)
    np.testing.assert_allclose(segment_sums(indptr, None, weight, table[columns]), side_by_side, atol=1e-9)


@pytest.mark.parametrize("counts", [[], [0], [1], [7], [0, 3, 0, 2], [3000, 5000]])
@pytest.mark.parametrize("kinds", [1, 3])
def test_products_are_those_of_a_loop(counts: list[int], kinds: int) -> None:
    _, row, columns, weights, table = entries_of(counts, kinds)
    own = np.random.default_rng(1).normal(size=(len(counts), kinds * 4))
    powers = None if kinds == 1 else weights
    by_kind = own[row].reshape(len(row), kinds, 4)
    products = np.einsum("nkc,nc->nk", by_kind, table[columns])
    expected = products[:, 0] if powers is None else (products * powers.T).sum(axis=1)
    np.testing.assert_allclose(entry_products(row, columns, powers, own, table), expected, atol=1e-9)
    np.testing.assert_allclose(entry_products(row, None, powers, own, table[columns]), expected, atol=1e-9)
