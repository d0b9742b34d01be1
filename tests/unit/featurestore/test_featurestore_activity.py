"""How much items are rated of late, beside a slow sum over their ratings; damaged bytes are refused."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import GenerationBroken
from featurestore.generations import activity as activity_module
from featurestore.generations.activity import (
    HALF_LIFE_S,
    activity_from_bytes,
    activity_to_bytes,
    positives_from_bytes,
    positives_to_bytes,
)

DAY_S = 86_400.0
NOW_S = 2e9
TIMES = st.lists(st.floats(0, 60).map(lambda days: days * DAY_S) | st.just(math.nan), max_size=5)


def packed(by_item: list[list[float]]) -> bytes:
    indptr = np.cumsum([0, *map(len, by_item)]).astype(np.int64)
    return activity_to_bytes(indptr, np.array([time for times in by_item for time in times]), now_s=NOW_S)


@settings(max_examples=30)
@given(st.lists(TIMES, max_size=6), st.floats(0, 60), st.sampled_from([1, 2, 5, 1 << 20]))
def test_a_rating_counts_half_as_much_with_each_week(
    by_item: list[list[float]], days: float, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity_module, "_AT_ONCE", at_once)
        activity = activity_from_bytes(packed(by_item), len(by_item))
    now_s = activity.weighed_s + days * DAY_S
    expected = [
        sum(2 ** (-(now_s - time) / HALF_LIFE_S) for time in times if not math.isnan(time))
        for times in by_item
    ]
    assert activity.at(now_s).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("late_s", [NOW_S * 1000, 1e15, NOW_S + DAY_S])
def test_a_time_of_a_wrong_clock_is_as_one_of_now(late_s: float) -> None:
    expected = activity_from_bytes(packed([[NOW_S - 60.0, NOW_S], [NOW_S - 7 * DAY_S]]), 2).at(NOW_S)
    found = activity_from_bytes(packed([[NOW_S - 60.0, late_s], [NOW_S - 7 * DAY_S]]), 2).at(NOW_S)
    assert found.tolist() == expected.tolist()
    # As well where events that are no ratings have it.
    times, indptr = np.array([NOW_S]), np.array([0, 1, 1])
    others = indptr, np.array([late_s])
    data = activity_to_bytes(indptr, times, others, now_s=NOW_S)
    assert activity_from_bytes(data, 2).at(NOW_S).tolist() == pytest.approx([2.0, 0.0], rel=1e-4)


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


def test_positive_events_are_followed_and_damaged_bytes_refused() -> None:
    table = np.array([[0.5, 2.0], [0.0, 0.0], [3.0, 3.0]], dtype=np.float32)
    data = positives_to_bytes(table)
    positives = positives_from_bytes(memoryview(data), 3)
    assert positives.weights.tolist() == [0.5, 0.0, 3.0]
    assert positives.counts_of(np.array([0, 2, 7])).tolist() == [2, 3, 0]
    # An item that came after the fit, and one of which events were taken back.
    news = np.array([[1.0, 4.0], [2.0, 2.0]], dtype=np.float32)
    later = positives.updated(np.array([4, 2]), news, 5)
    assert later.weights.tolist() == [0.5, 0.0, 2.0, 0.0, 1.0]
    assert later.gained(np.array([0, 2, 4, 9])).tolist() == [0.0, 0.0, 4.0, 0.0]
    assert positives.fitted.tolist() == table.tolist()
    for wrong in (data[:-1], data + b"\0", b"x" + data[1:], positives_to_bytes(np.full((3, 2), np.nan))):
        with pytest.raises(GenerationBroken):
            positives_from_bytes(wrong, 3)
    for wrong in (data, positives_to_bytes(-table[:2])):
        with pytest.raises(GenerationBroken):
            positives_from_bytes(wrong, 2)
