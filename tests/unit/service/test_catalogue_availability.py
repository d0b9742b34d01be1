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


def test_nothing_said_bars_nothing() -> None:
    found = Availability()
    assert found.mask(0.0, 5) is None
    put(found, 2, -INF, INF)
    assert found.mask(0.0, 5) is None


def test_a_row_is_shown_in_its_span() -> None:
    found = Availability()
    put(found, 1, 10.0, 20.0)
    for now, shown in ((5.0, False), (10.0, True), (19.9, True), (20.0, False)):
        mask = found.mask(now, 3)
        assert (mask is None) == shown
        assert mask is None or mask.tolist() == [True, shown, True]


def test_what_is_put_again_takes_no_room() -> None:
    found = Availability()
    put(found, 0, 10.0, 20.0)
    tracemalloc.start()
    try:
        for _ in range(5_000):
            put(found, 0, 10.0, 20.0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # An entry takes some 100 bytes.
    assert held < 50_000
    assert found.mask(15.0, 1) is None


def test_a_mask_that_was_handed_out_never_changes() -> None:
    found = Availability()
    put(found, 0, INF, INF)
    first = found.mask(0.0, 2)
    assert first is found.mask(1.0, 2), "the same while nothing changes, so that rankings share a product"
    put(found, 1, INF, INF)
    second = found.mask(1.0, 2)
    assert first is not None
    assert second is not None
    assert (first.tolist(), second.tolist()) == ([False, True], [False, False])


def test_a_longer_table_is_covered() -> None:
    found = Availability()
    put(found, 0, INF, INF)
    mask = found.mask(0.0, 10_000)
    assert mask is not None
    assert len(mask) == 10_000
    assert mask.sum() == 9_999


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
