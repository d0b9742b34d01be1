"""Contexts of ratings as bytes: what is read is what was written, and damage counts as not given."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from factors import Float32s
from featurestore.contexts import codec as contexts

FLOATS = st.one_of(st.just(math.nan), st.floats(-1024.0, 1024.0, width=32))
TABLES = npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=64).flatmap(
    lambda shape: npst.arrays(np.float32, shape, elements=FLOATS)
)


def same(found: Float32s | None, wanted: Float32s) -> None:
    """Equal up to fields at the end that nothing gives."""
    width = 0 if found is None else found.shape[1]
    given = np.zeros((len(wanted), 0), np.float32) if found is None else found
    np.testing.assert_array_equal(given, wanted[:, :width])
    assert np.isnan(wanted[:, width:]).all()


@settings(max_examples=30)
@given(TABLES)
def test_what_is_read_is_what_was_written(table: Float32s) -> None:
    rows, times = np.arange(len(table)) * 3, np.arange(len(table)) / 7
    cuts = [0, len(table) // 3, len(table)]
    pieces = contexts.pack_entries(rows, times, table, cuts)
    assert [len(contexts.unpack(piece).item_row) for piece in pieces] == [b - a for a, b in pairwise(cuts)]
    found = contexts.unpack(b"".join(pieces))
    assert found.sound
    same(found.value, table)
    assert (found.item_row.tolist(), found.time.tolist()) == (rows.tolist(), times.tolist())
    same(contexts.match(rows, times, found), table)
    same(contexts.unpack_cells(*contexts.pack_cells(table)), table)


def test_the_last_of_a_rating_wins_and_others_are_of_no_rating() -> None:
    rows, times = np.array([1, 2, 1, 1]), np.array([5.0, 5.0, 6.0, 5.0])
    table = np.array([[1.0], [2.0], [3.0], [math.nan]], dtype=np.float32)
    (data,) = contexts.pack_entries(rows, times, table, [0, 4])
    found = contexts.match(np.array([1, 1, 2, 2]), np.array([5.0, 6.0, 5.0, 6.0]), contexts.unpack(data))
    np.testing.assert_array_equal(found, np.array([[math.nan], [3.0], [2.0], [math.nan]], dtype=np.float32))
    assert contexts.match(np.array([9]), np.array([5.0]), contexts.unpack(data)) is None


def test_the_latest_are_read_from_the_end() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(50, 9)).astype(np.float32)
    table[rng.random(table.shape) < 0.5] = np.nan
    (data,) = contexts.pack_entries(np.arange(50), np.arange(50) / 3, table, [0, 50])
    for size in range(0, len(data), 4):
        found = contexts.unpack(data[len(data) - size :], whole=False)
        count = len(found.item_row)
        assert found.sound
        assert found.item_row.tolist() == list(range(50))[50 - count :]
        if count:
            same(found.value, table[-count:])


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    found = contexts.unpack(data)
    assert found.value.shape[0] == len(found.item_row) == len(found.time)
    assert not np.isinf(found.value).any()
