"""Deltas as bytes: what was written is read, and nothing else."""

import numpy as np
import pytest

from featurestore.errors import GenerationBroken
from featurestore.generations.deltas import decode_deltas, encode_delta

FIELDS = (b"r", b"v", b"c", b"h", b"k")


def test_a_delta_with_another_checksum_is_a_broken_generation() -> None:
    values = encode_delta(np.array([3], np.int32), np.ones((1, 4), np.float32))
    written = dict(zip((b"r", b"v", b"c"), values, strict=True))
    assert decode_deltas([(b"1-1", written)], 4, "0", b"deltas").rows.tolist() == [3]
    for field in (b"r", b"v", b"c"):
        damaged = written | {field: bytes([written[field][0] ^ 1]) + written[field][1:]}
        with pytest.raises(GenerationBroken, match="deltas: entry 1-1"):
            decode_deltas([(b"1-1", damaged)], 4, "0", b"deltas")


def entry(rows: list[int], factors: list[list[float]] | None) -> dict[bytes, bytes]:
    """An entry of rows of two numbers, each the row's own."""
    some = np.array(rows, np.int32)
    table = None if factors is None else np.array(factors, np.float32)
    vectors = np.repeat(some[:, None], 2, axis=1).astype(np.float32)
    return dict(zip(FIELDS, encode_delta(some, vectors, table), strict=False))


def test_factors_go_with_their_rows() -> None:
    nan = float("nan")
    entries = [
        (b"1-1", entry([5, 2, 9], [[1, 1, 1], [2, 2, 2], [nan, nan, nan]])),
        # As a trainer of version 0.1.0 writes it: the factors so far stay.
        (b"1-2", entry([2], None)),
        (b"1-3", entry([5], [[3, 3, 3]])),
    ]
    found = decode_deltas(entries, 2, "0", b"deltas", 3)
    assert found.rows.tolist() == [2, 5, 9]
    assert (found.ranked.tolist(), found.factors[:, 0].tolist()) == ([2, 5], [2.0, 3.0])
    merged = found.factors_of(np.array([9, 2, 5, 11], np.int32))
    np.testing.assert_array_equal(merged[:, 0], [nan, 2.0, 3.0, nan])
    # A reader without a head leaves them.
    without = decode_deltas(entries, 2, "0", b"deltas")
    assert (without.rows.tolist(), len(without.ranked), without.factors.shape) == ([2, 5, 9], 0, (0, 0))
    assert len(decode_deltas([], 2, "7-7", b"deltas", 3).ranked) == 0
