"""Stored item rows: what comes out of them, for any size of variance, and online is batch through them."""

import numpy as np
import pytest

from factors import FactorsError, Scorer, from_bytes, posterior_of, to_bytes
from factors.model.layout import Layout, item_layout, stored_width, unpack
from factors.model.quantized_rows import RowCodec
from factors.model.types import Float64s
from tests.unit.factors.factors_world import fitted_of, histories_of, ratings_of


def rows_of(layout: Layout, scale: float, n: int = 40) -> Float64s:
    """Rows with covariances of about `scale` of any shape."""
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


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_stays_so(wrong: float) -> None:
    layout = Layout(3, 1)
    codec = RowCodec(layout, np.ones(4))
    for column in range(layout.width):
        rows = rows_of(layout, 1.0)
        rows[7, column] = wrong
        with np.errstate(over="ignore"):
            words = codec.encode(rows)
        assert not codec.all_finite(words), column
    # Codes may look like anything.
    words = codec.encode(rows_of(layout, 1.0))
    words[:, codec.codes] = np.nan
    assert codec.all_finite(words)


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e8])
def test_online_is_batch_for_any_size_of_variance(link: str, size: float) -> None:
    given = ratings_of(12)
    fitted = fitted_of(given, link=link)
    rows = fitted.posterior.item_codec.decode(fitted.items)
    rows[:, item_layout(fitted.model).covariance] *= np.float32(size)
    # As it is published and read back.
    model = from_bytes(to_bytes(fitted.model))
    words = fitted.posterior.item_codec.encode(rows).tobytes()
    items = np.frombuffer(words, dtype=np.float32).reshape(-1, model.item_width)
    together = posterior_of(model).fold_in_users(items, histories_of(given, 40))
    assert np.isfinite(together).all()
    if size == 1.0:
        np.testing.assert_allclose(
            together[:, : 2 + model.rank], fitted.users[:, : 2 + model.rank], atol=1e-5
        )
    for user in (0, 9, 39):
        own = histories_of(given, 40).part(user, user + 1)
        alone, atol = posterior_of(model).fold_in_users(items, own)[0], 1e-5 * max(1.0, size**0.5)
        np.testing.assert_allclose(alone, together[user], rtol=1e-4, atol=atol)
    users, rated = np.divmod(np.arange(40 * 30), 30)
    scores = Scorer(posterior_of(model), items).score(together, users, rated)
    assert np.isfinite(scores.rating).all()
    assert (scores.std > 0).all()


def test_a_model_of_another_format_is_refused() -> None:
    with pytest.raises(FactorsError, match="format"):
        from_bytes(to_bytes(fitted_of(ratings_of(1)).model).replace(b"foldin-model-1", b"foldin-model-2"))
