"""How much items are rated of late, beside a slow sum over their ratings; damaged bytes are refused."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import GenerationBroken
from featurestore.generations.activity import HALF_LIFE_S, activity_from_bytes, activity_to_bytes

DAY_S = 86_400.0
TIMES = st.lists(st.floats(0, 60).map(lambda days: days * DAY_S) | st.just(math.nan), max_size=5)


def packed(by_item: list[list[float]]) -> bytes:
    indptr = np.cumsum([0, *map(len, by_item)]).astype(np.int64)
    return activity_to_bytes(indptr, np.array([time for times in by_item for time in times]))


@given(st.lists(TIMES, max_size=6), st.floats(0, 60))
def test_a_rating_counts_half_as_much_with_each_week(by_item: list[list[float]], days: float) -> None:
    activity = activity_from_bytes(packed(by_item), len(by_item))
    now_s = activity.weighed_s + days * DAY_S
    expected = [
        sum(2 ** (-(now_s - time) / HALF_LIFE_S) for time in times if not math.isnan(time))
        for times in by_item
    ]
    assert activity.at(now_s).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_no_time_of_a_rating_is_in_it() -> None:
    moment = 1_234_567_890.123
    assert struct.pack("<d", moment) not in packed([[moment], [moment - DAY_S]])


def test_what_came_in_since_counts_whole() -> None:
    activity = activity_from_bytes(packed([[0.0, 0.0], [0.0], []]), 3)
    # Item 0 has lost a rating, 1 has two more, 3 came later.
    later = activity.updated(np.array([0, 1, 3]), np.array([1, 3, 4]), 4)
    assert later.at(HALF_LIFE_S).tolist() == pytest.approx([1.0, 2.5, 0.0, 4.0])
    again = later.updated(np.array([1]), np.array([2]), 5000)
    assert again.at(HALF_LIFE_S)[:5].tolist() == pytest.approx([1.0, 1.5, 0.0, 4.0, 0.0])
    assert len(again.at(0.0)) == 5000
    # However long ago, ratings tell items apart of which nothing came in.
    old = activity.at(1e12)
    assert old[0] > old[1] > old[2] == 0


def test_bytes_that_are_not_what_was_written_are_refused() -> None:
    data = packed([[0.0], [DAY_S]])
    assert activity_from_bytes(data, 2).counts.tolist() == [1, 1]
    nan = struct.pack("<f", math.nan)
    for broken in (
        b"",
        data[:-1],
        data + b"\0",
        data.replace(b"activity-1", b"activity-2"),
        data[:36] + nan + data[40:],
        data[:36] + struct.pack("<f", -1.0) + data[40:],
        data[:20] + struct.pack("<d", math.inf) + data[28:],
    ):
        with pytest.raises(GenerationBroken):
            activity_from_bytes(broken, 2)
    with pytest.raises(GenerationBroken):
        activity_from_bytes(data, 3)
