"""Stored item rows: what comes out of them, for any size of variance, and online is batch through them."""

import numpy as np
import pytest

from factors.model.layout import Layout, stored_width, unpack
from factors.model.quantized_rows import RowCodec
from factors.model.types import Float64s


def rows_of(layout: Layout, scale: float, n: int = 40) -> Float64s:
    rng = np.random.default_rng(layout.rank)
    rows = rng.normal(size=(n, layout.width))
    roots = rng.normal(size=(n, layout.dim, layout.dim)) * 10.0 ** rng.uniform(-2, 0, (n, layout.dim, 1))
    matrices = scale * roots @ roots.transpose(0, 2, 1)
    lower = np.tril_indices(layout.dim)
    rows[:, layout.covariance] = matrices[:, lower[0], lower[1]]
    return rows


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("layout", [Layout(1, 0), Layout(2, 3), Layout(7, 0, moving=True), Layout(50, 0)])
def test_rows_come_out_as_they_went_in(layout: Layout, scale: float) -> None:
    codec = RowCodec(layout, np.append(np.geomspace(0.1, 10.0, layout.rank), 1.0))
    rows = rows_of(layout, scale)
    words = codec.encode(rows)
    assert words.shape == (40, stored_width(layout))
    assert codec.all_finite(words)
    again = codec.decode(words)
    plain = np.ones(layout.width, dtype=np.bool_)
    plain[layout.covariance] = False
    np.testing.assert_array_equal(again[:, plain], rows[:, plain].astype(np.float32))
    r = codec.features
    before, after = (
        unpack(some[:, layout.covariance], layout.dim) * np.outer(r, r)
        for some in (rows, again.astype(np.float64))
    )
    largest = np.einsum("bii->bi", before).max(axis=1)[:, None, None]
    assert (np.abs(after - before) <= largest / 32_000).all()
    variances = np.einsum("bii->bi", after)
    assert (variances > 0).all()
    assert (variances >= np.einsum("bii->bi", before) * (1 - 1e-5) - 0.02 * largest[:, 0] / 32_767).all()
    # Written again, they are the same.
    np.testing.assert_allclose(codec.decode(codec.encode(again)), again, rtol=1e-6)
    weights = np.random.default_rng(0).normal(size=layout.packed)
    expected = np.maximum(again[:, layout.covariance] @ weights, 0.0)
    tolerance = 1e-4 * np.abs(again[:, layout.covariance]) @ np.abs(weights)
    assert (np.abs(codec.quadratic(words, weights) - expected) <= tolerance).all()
