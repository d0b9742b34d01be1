"""Small worlds of ratings for the tests of `factors`."""

import numpy as np
from numpy.typing import ArrayLike

from factors import FitSettings, Fitted, Histories, Ratings, Scale, fit

STARS = Scale(1.0, 5.0, 1.0)


def ratings_of(
    seed: int, *, n_users: int = 40, n_items: int = 30, n: int = 600, timed: bool = True
) -> Ratings:
    """Ratings 1 to 5 from vectors of dimension 2, moods and noise; no pair twice."""
    rng = np.random.default_rng(seed)
    pair = rng.permutation(n_users * n_items)[:n]
    user, item = pair // n_items, pair % n_items
    time = 8.8e8 + 3600.0 * rng.integers(0, 6, n) + rng.integers(0, 60, n)
    mood = rng.normal(0, 0.7, (n_users, 6))[user, ((time - 8.8e8) // 3600).astype(int)]
    left, right = rng.normal(0, 0.8, (n_users, 2)), rng.normal(0, 0.8, (n_items, 2))
    score = 3.0 + (left[user] * right[item]).sum(axis=1) + rng.normal(0, 0.5, n_items)[item]
    value = np.clip(np.rint(score + rng.normal(0, 0.5, n) + (mood if timed else 0.0)), 1, 5)
    if not timed:
        time = np.full(n, np.nan)
    return Ratings(user.astype(np.int32), item.astype(np.int32), value, np.asarray(time, dtype=np.float64))


def ratings(user: ArrayLike, item: ArrayLike, value: ArrayLike, time: ArrayLike = np.nan) -> Ratings:
    """Ratings of these columns; one `time` for all is spread out."""
    values = np.array(value, dtype=np.float64)
    times = np.broadcast_to(np.asarray(time, dtype=np.float64), values.shape).copy()
    return Ratings(np.array(user, dtype=np.int32), np.array(item, dtype=np.int32), values, times)


def fitted_of(ratings: Ratings, *, n_users: int = 40, n_items: int = 30, **settings: object) -> Fitted:
    given = {"scale": STARS, "rank": 3, "sweeps": 6, **settings}
    rng = np.random.default_rng(1)
    return fit(ratings, n_users, n_items, settings=FitSettings(**given), rng=rng)  # type: ignore[arg-type]


def histories_of(ratings: Ratings, n_rows: int, *, by: str = "user") -> Histories:
    own, other = ratings.user_row, ratings.item_row
    if by == "item":
        own, other = other, own
    order = np.argsort(own, kind="stable")
    offsets = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(own, minlength=n_rows), out=offsets[1:])
    return Histories(offsets, other[order], ratings.value[order], ratings.time[order])


def history(rows: list[int], values: list[float], times: list[float] | None = None) -> Histories:
    n = len(rows)
    at = np.array([np.nan] * n if times is None else times, np.float64)
    return Histories(np.array([0, n]), np.array(rows, np.int32), np.array(values, np.float64), at)
