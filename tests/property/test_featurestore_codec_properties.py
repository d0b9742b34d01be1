"""Codecs against a plain model: whatever is written is read, whatever its order and repeats."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factors import Scale
from featurestore import codecs

WIDE = Scale(-10.0, 10.0)
# With the type of an event above the row of its item.
ROWS = st.integers(0, 2**27 - 1)
FEW_ROWS = st.builds(
    lambda row, code: code << 27 | row, st.integers(0, 5), st.sampled_from([0, 0, 1, 16, 30])
)
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
    rated = {row: pair for row, pair in expected.items() if row < 2**27}
    assert found.item_row.tolist() == list(rated)
    np.testing.assert_array_equal(found.rating, [value for value, _ in rated.values()])
    np.testing.assert_array_equal(found.time, [time for _, time in rated.values()])
    events = [(row, place) for place, row in enumerate(expected) if row >= 2**27]
    feedback = found.feedback
    assert feedback.item_row.tolist() == [row % 2**27 for row, _ in events]
    assert feedback.type_code.tolist() == [row >> 27 for row, _ in events]
    np.testing.assert_array_equal(feedback.value, [expected[row][0] for row, _ in events])
    assert feedback.place.tolist() == [place - k for k, (_, place) in enumerate(events)]
    # As the ranking head reads them, all are in their order.
    merged = codecs.pack_feedback([found, found])
    codes = [row >> 27 for row in expected]
    assert merged.other_row.tolist() == [row % 2**27 for row in expected] * 2
    assert (codes * 2 if events else None) == (
        None if merged.type_code is None else merged.type_code.tolist()
    )


@given(st.lists(st.integers(0, 2**63 - 1), max_size=8), st.integers(1, 9))
def test_records_are_read_as_written(counters: list[int], width: int) -> None:
    rng = np.random.default_rng(len(counters))
    vectors = rng.normal(size=(len(counters), width)).astype(np.float32)
    n = np.array(counters, dtype=np.int64)
    records = codecs.pack_records(n, vectors)
    assert codecs.record_table(n, vectors).tobytes() == b"".join(records)
    assert codecs.damaged_records(b"".join(records), codecs.record_dtype(width).itemsize) == []
    seen, read = codecs.unpack_records(records, width)
    assert seen.tolist() == counters
    np.testing.assert_array_equal(read, vectors)
