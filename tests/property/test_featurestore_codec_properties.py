"""Codecs against a plain model: whatever is written is read, whatever its order and repeats."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History
from featurestore.users.histories import Look, due_after, pack_sample

WIDE = Scale(-10.0, 10.0)
# Items with the type of an event.
ROWS = st.tuples(st.integers(0, 2**27 - 1), st.just(0))
FEW_ROWS = st.tuples(st.integers(0, 5), st.sampled_from([0, 0, 1, 16, 31]))
Pair = tuple[int, int]
VALUES = st.one_of(st.floats(-10, 10), st.just(math.nan))
TIMES = st.one_of(st.floats(0, 4e9), st.just(math.nan))
ENTRIES = st.lists(st.tuples(st.one_of(FEW_ROWS, ROWS), VALUES, TIMES), max_size=60)


def effective(entries: list[tuple[Pair, float, float]]) -> dict[Pair, tuple[float, float]]:
    """The rule by a dictionary; a re-rated item moves to the end."""
    holds: dict[Pair, tuple[float, float]] = {}
    for pair, value, time in entries:
        holds.pop(pair, None)
        if not math.isnan(value):
            holds[pair] = (value, time)
    return holds


@given(ENTRIES)
def test_a_history_is_what_the_rule_says(entries: list[tuple[Pair, float, float]]) -> None:
    stored = b"".join([codecs.pack_entry(row, value, at, code) for (row, code), value, at in entries])
    found = codecs.unpack_history(stored, WIDE)
    expected = effective(entries)
    rated = {row: said for (row, code), said in expected.items() if code == 0}
    assert found.item_row.tolist() == list(rated)
    np.testing.assert_array_equal(found.rating, [value for value, _ in rated.values()])
    np.testing.assert_array_equal(found.time, [time for _, time in rated.values()])
    events = [(pair, place) for place, pair in enumerate(expected) if pair[1]]
    feedback = found.feedback
    assert feedback.item_row.tolist() == [row for (row, _), _ in events]
    assert feedback.type_code.tolist() == [code for (_, code), _ in events]
    np.testing.assert_array_equal(feedback.value, [expected[pair][0] for pair, _ in events])
    assert feedback.place.tolist() == [place - k for k, (_, place) in enumerate(events)]
    # As the ranking head reads them, all are in their order.
    merged = codecs.pack_feedback([found, found])
    codes = [code for _, code in expected]
    assert merged.other_row.tolist() == [row for row, _ in expected] * 2
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


# Ratings, and events of two types, of thirty items.
THIRTY = st.tuples(st.integers(0, 29), st.sampled_from([0, 0, 1, 2]))


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(THIRTY, st.sampled_from([1.0, 2.0, math.nan])), max_size=25), st.booleans()
        )
    )
)
def test_a_sample_and_what_came_since_say_what_holds(
    batches: list[tuple[list[tuple[Pair, float]], bool]],
) -> None:
    stored, n, sample, latest = b"", 0, None, 8
    for batch, compacts in batches:
        stored += b"".join([codecs.pack_entry(row, value, 0.0, code) for (row, code), value in batch])
        n += len(batch)
        # As `look` does, with answers of 24 entries.
        since = n - (int.from_bytes(sample[:8], "little") if sample else 0)
        tail = stored[-codecs.ENTRY_BYTES * (max(since, latest) if since <= 24 else 24) :]
        look = Look(n, None, tail, len(stored), sample)
        part = look.part
        read = codecs.unpack_history(stored if part is None else part, WIDE)
        # A sample holds more items than there are here: nothing is missing either.
        truth = codecs.unpack_history(stored, WIDE)
        assert _ratings(read) == _ratings(truth)
        if part is None or look.whole or since >= latest:
            due = due_after(look.entries, read.entries)
            sample = pack_sample(n, look.missing, due, read, codecs.has_events(stored))
        if compacts:
            # By a reader that has written no sample.
            stored = codecs.pack_history(truth)


def _ratings(history: History) -> dict[Pair, float]:
    entries = np.frombuffer(codecs.pack_history(history), codecs.ENTRY_DTYPE)
    return {(row, code): rating for row, code, rating, _ in entries.tolist()}
