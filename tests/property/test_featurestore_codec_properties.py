"""Codecs against a plain model: whatever is written is read, whatever its order and repeats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factors import Scale
from featurestore import codecs

WIDE = Scale(-10.0, 10.0)
ROWS = st.integers(0, 2**31 - 1)
FEW_ROWS = st.integers(0, 5)
VALUES = st.one_of(st.floats(-10, 10), st.just(math.nan))
TIMES = st.one_of(st.floats(0, 4e9), st.just(math.nan))
ENTRIES = st.lists(st.tuples(st.one_of(FEW_ROWS, ROWS), VALUES, TIMES), max_size=60)


def effective(entries: list[tuple[int, float, float]]) -> dict[int, tuple[float, float]]:
    """The rule by a dictionary; a re-rated item moves to the end."""
    holds: dict[int, tuple[float, float]] = {}
    for row, value, time in entries:
        holds.pop(row, None)
        if not math.isnan(value):
            holds[row] = (value, time)
    return holds


@given(ENTRIES)
def test_a_history_is_what_the_rule_says(entries: list[tuple[int, float, float]]) -> None:
    found = codecs.unpack_history(b"".join([codecs.pack_entry(*entry) for entry in entries]), WIDE)
    expected = effective(entries)
    assert found.item_row.tolist() == list(expected)
    np.testing.assert_array_equal(found.rating, [value for value, _ in expected.values()])
    np.testing.assert_array_equal(found.time, [time for _, time in expected.values()])


@given(ENTRIES)
def test_compacting_changes_nothing(entries: list[tuple[int, float, float]]) -> None:
    once = codecs.unpack_history(b"".join([codecs.pack_entry(*entry) for entry in entries]), WIDE)
    again = codecs.unpack_history(codecs.pack_history(once), WIDE)
    assert again.item_row.tolist() == once.item_row.tolist()
    np.testing.assert_array_equal(again.rating, once.rating)
    np.testing.assert_array_equal(again.time, once.time)


@given(ENTRIES, st.integers(1, 19))
def test_a_torn_tail_is_told(entries: list[tuple[int, float, float]], extra: int) -> None:
    data = b"".join([codecs.pack_entry(*entry) for entry in entries])
    with pytest.raises(codecs.RecordCorrupt):
        codecs.unpack_history(data + b"\xff" * extra, WIDE)


@given(st.lists(st.integers(0, 2**63 - 1), max_size=8), st.integers(1, 9))
def test_records_are_read_as_written(counters: list[int], width: int) -> None:
    rng = np.random.default_rng(len(counters))
    vectors = rng.normal(size=(len(counters), width)).astype(np.float32)
    n = np.array(counters, dtype=np.int64)
    seen, read = codecs.unpack_records(codecs.pack_records(n, vectors), width)
    assert seen.tolist() == counters
    np.testing.assert_array_equal(read, vectors)
