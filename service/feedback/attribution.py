"""Which positive events follow a showing. Invariant: of each showing of an item one event counts, at most
seven days later; what a user had done before the item was shown again does not.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from factors import Float64s, UInt8s
from featurestore.codecs import Feedback

# As long as someone may think about a purchase; windows of shops and advertisers are 1 to 30 days.
WINDOW_S = 7 * 86_400.0


class Positive(NamedTuple):
    """An event that counts: its place among those that were asked, and the generation that had shown it."""

    place: int
    generation: int


def positives(
    before: Feedback,
    rows: Sequence[int],
    times: Sequence[float],
    shown: Collection[int],
    positive: Collection[int],
) -> list[Positive]:
    """Return which events of one user count: on items `rows` (m,), at `times` (m,), in their order.

    `before`: the user's events before these; `shown`, `positive`: codes of the types that mean so.
    """
    found: list[Positive] = []
    counted: set[int] = set()
    is_shown, is_positive = _of(before.type_code, shown), _of(before.type_code, positive)
    for place, (row, at) in enumerate(zip(rows, times, strict=True)):
        own = before.item_row == row
        showings = np.flatnonzero(own & is_shown)
        if row in counted or not len(showings):
            continue
        # Entries stand in the order of arrival; clients may send what is older later.
        last = showings[np.argmax(before.time[showings])]
        since = before.time[last]
        answered = (before.time[own & is_positive] >= since).any()
        if 0.0 <= at - since <= WINDOW_S and not answered:
            counted.add(row)
            found.append(Positive(place, int(before.value[last])))
    return found


def with_showings(
    before: Feedback, rows: Sequence[int], times: Float64s, generations: Float64s, shown: Sequence[int]
) -> Feedback:
    """Return a user's events with showings of items `rows` (m,) at `times` (m,) by `generations` (m,) behind
    them.
    """
    if not len(rows):
        return before
    return Feedback(
        np.append(before.item_row, np.array(rows, dtype=np.int32)),
        np.append(before.type_code, np.full(len(rows), shown[0], dtype=np.uint8)),
        np.append(before.value, generations),
        np.append(before.time, times),
        np.append(before.place, np.zeros(len(rows), dtype=np.int64)),
    )


def _of(codes: UInt8s, some: Collection[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.isin(codes, [*some])
