"""Fits that were measured. Invariant: these are the rows of docs/performance.md, and a test compares them."""

from typing import NamedTuple


class Point(NamedTuple):
    """A fit on two cores: `ratings`, and the seconds until it was live, `cold_s`, and `again_s` after 1 %
    more ratings. From `foldin bench refit`.
    """

    ratings: int
    cold_s: float
    again_s: float


POINTS = (Point(990_099, 14.01, 6.895), Point(4_950_495, 58.09, 34.33), Point(19_801_980, 237.4, 129.2))
