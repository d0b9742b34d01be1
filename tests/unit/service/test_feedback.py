"""What a `recommendation_id` says, and which events follow a showing: values alone."""

import numpy as np

from featurestore.codecs import NO_FEEDBACK, Feedback
from service.feedback.attribution import WINDOW_S, Positive, positives

SHOWN, LIKE, BUY = 7, 3, 4


def events(*some: tuple[int, int, float, float]) -> Feedback:
    """Events (row, type, value, time)."""
    rows, codes, values, times = zip(*some, strict=True)
    return Feedback(
        np.array(rows, np.int32),
        np.array(codes, np.uint8),
        np.array(values, np.float64),
        np.array(times, np.float64),
        np.zeros(len(some), np.int64),
    )


def follow(before: Feedback, *asked: tuple[int, float]) -> list[tuple[int, int]]:
    rows, times = [row for row, _ in asked], [at for _, at in asked]
    found = positives(before, rows, times, [SHOWN], [LIKE, BUY])
    return [(each.place, each.generation) for each in found]


def test_of_each_showing_one_event_counts_within_seven_days() -> None:
    before = events((1, SHOWN, 41.0, 100.0), (2, SHOWN, 42.0, 200.0))
    assert follow(before, (1, 150.0), (2, 250.0), (3, 250.0)) == [(0, 41), (1, 42)]
    # Once an item, however many events of a call.
    assert follow(before, (1, 150.0), (1, 160.0)) == [(0, 41)]
    assert follow(before, (1, 100.0 + WINDOW_S)) == [(0, 41)]
    assert follow(before, (1, 100.0 + WINDOW_S + 1)) == []
    # What was done before the item was shown does not follow from that.
    assert follow(before, (1, 99.0)) == []
    assert follow(NO_FEEDBACK, (1, 150.0)) == []
    assert isinstance(positives(before, [1], [150.0], [SHOWN], [LIKE])[0], Positive)
