"""Which items may be shown when."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.catalogue.availability import Availability


def put(found: Availability, row: int, start: float, end: float) -> None:
    found.put(np.array([row], dtype=np.int64), np.array([float(start)]), np.array([float(end)]))


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
