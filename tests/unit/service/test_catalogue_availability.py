"""Which items may be shown when."""

import math
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.catalogue.availability import Availability

INF = math.inf


def put(found: Availability, row: int, start: float, end: float) -> None:
    found.put(np.array([row], dtype=np.int64), np.array([float(start)]), np.array([float(end)]))


def test_a_mask_that_was_given_never_changes() -> None:
    found = Availability(0.0)
    put(found, 1, 10.0, 20.0)
    first = found.mask(5.0, 3)
    assert first is not None
    # A ranking remembers what only such a mask allows.
    assert not first.flags.writeable
    assert found.mask(6.0, 3) is first
    put(found, 2, 10.0, 20.0)
    second = found.mask(7.0, 3)
    assert second is not None
    assert first.tolist() == [True, False, True]
    assert second.tolist() == [True, False, False]
    assert not second.flags.writeable


def test_what_is_put_later_and_later_takes_no_room() -> None:
    # As a feed does that says every hour that an item is there for another day.
    found = Availability(0.0)
    put(found, 0, 1.0, 10.0)
    tracemalloc.start()
    try:
        for moment in range(11, 5_000):
            put(found, 0, 1.0, moment)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50_000
    for now, shown in ((0.5, False), (10.0, True), (4_998.5, True), (4_999.0, False)):
        mask = found.mask(now, 1)
        assert (mask is None) == shown


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(0, 20)), max_size=30),
    st.lists(st.integers(0, 25), min_size=1, max_size=8),
)
def test_it_is_what_each_row_says(spans: list[tuple[int, int, int]], times: list[int]) -> None:
    found, said = Availability(), dict[int, tuple[int, int]]()
    pending = list(spans)
    for now in sorted(times):
        for row, start, end in pending[:4]:
            put(found, row, start, end)
            said[row] = start, end
        del pending[:4]
        expected = [row not in said or said[row][0] <= now < said[row][1] for row in range(6)]
        mask = found.mask(now, 6)
        assert np.array_equal(np.ones(6, dtype=bool) if mask is None else mask, expected)
