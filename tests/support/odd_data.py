"""Ratings as they should not come, and do: each must fit, be published, and answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from factors import Ratings, Scale

STARS = Scale(1, 5, 1)
DAY_S = 86_400.0
BEGAN = 1.5e9


@dataclass(frozen=True, slots=True)
class OddData:
    """Ratings of `n_users` users and `n_items` items, no row of which is without a rating unless by chance.

    `constant`: what every prediction must be, None for no such thing; `superseded`: how many of the ratings
    are followed by a later one of the same pair.
    """

    ratings: Ratings
    n_users: int
    n_items: int
    scale: Scale = STARS
    constant: float | None = None
    superseded: int = 0


def world(n_users: int, n_items: int, known: float, scale: Scale = STARS, seed: int = 0) -> OddData:
    """A share of all pairs, rated by biases, three dimensions and noise, in time order over 300 days."""
    rng = np.random.default_rng(seed)
    pair = rng.permutation(n_users * n_items)[: round(known * n_users * n_items)]
    user, item = pair // n_items, pair % n_items
    left, right = rng.normal(size=(n_users, 3)), rng.normal(size=(n_items, 3))
    score = rng.normal(0, 0.5, n_users)[user] + rng.normal(0, 0.5, n_items)[item]
    score += 0.4 * (left[user] * right[item]).sum(axis=1) + rng.normal(0, 0.4, len(pair))
    value = (scale.low + scale.high) / 2 + (scale.high - scale.low) / 4 * score
    value = np.clip(value, scale.low, scale.high)
    if scale.step is not None:
        value = scale.low + np.rint((value - scale.low) / scale.step) * scale.step
    time = BEGAN + np.sort(rng.uniform(0, 300 * DAY_S, len(pair)))
    return OddData(_ratings(user, item, value, time), n_users, n_items, scale)


def _ratings(user: npt.ArrayLike, item: npt.ArrayLike, value: npt.ArrayLike, time: npt.ArrayLike) -> Ratings:
    rows = np.asarray(user, dtype=np.int32), np.asarray(item, dtype=np.int32)
    return Ratings(*rows, np.asarray(value, dtype=np.float64), np.asarray(time, dtype=np.float64))


def _plain(scale: Scale = STARS) -> OddData:
    return world(60, 30, 0.5, scale)


def _valued(data: OddData, value: npt.NDArray[np.float64]) -> OddData:
    return replace(data, ratings=replace(data.ratings, value=value))


def _at(time: Callable[[int], npt.NDArray[np.float64]]) -> OddData:
    data = _plain()
    return replace(data, ratings=replace(data.ratings, time=time(len(data.ratings.value))))


def _two_ratings() -> OddData:
    columns = np.array([0, 1]), np.array([0, 1]), np.array([2.0, 5.0]), np.array([BEGAN, BEGAN + 1])
    return OddData(_ratings(*columns), 2, 2)


def _constant(value: float, scale: Scale) -> OddData:
    data = _plain()
    return replace(_valued(data, np.full(len(data.ratings.value), value)), scale=scale, constant=value)


def _one_heavy_user() -> OddData:
    """Beside few others, one with far more ratings than all of them."""
    others, n = world(60, 200, 0.1).ratings, 3_000
    value = np.random.default_rng(1).integers(1, 6, n)
    user, item = np.append(others.user_row, np.full(n, 60)), np.append(others.item_row, np.arange(n))
    time = np.append(others.time, BEGAN + np.arange(n))
    return OddData(_ratings(user, item, np.append(others.value, value), time), 61, n)


def _off_step() -> OddData:
    data = _plain()
    moved = np.random.default_rng(2).uniform(-0.4, 0.4, len(data.ratings.value))
    return _valued(data, np.clip(data.ratings.value + moved, 1, 5))


def _duplicates() -> OddData:
    """Each pair first with the opposite of what its user says at last, half of them at the same second."""
    data = _plain()
    given, n = data.ratings, len(data.ratings.value)
    time = np.concatenate([given.time - np.where(np.arange(n) % 2, 1.0, 0.0), given.time])
    columns = np.tile(given.user_row, 2), np.tile(given.item_row, 2), np.append(6 - given.value, given.value)
    return replace(data, ratings=_ratings(*columns, time), superseded=n)


def _unsorted() -> OddData:
    data = _plain()
    order = np.random.default_rng(3).permutation(len(data.ratings.value))
    return replace(data, ratings=data.ratings.take(order))


def _one_rating_each(users: bool, items: bool) -> OddData:
    n = 400
    rng = np.random.default_rng(4)
    user, item = (np.arange(n) if alone else rng.integers(0, 20, n) for alone in (users, items))
    liked = 3 + rng.normal(0, 0.6, n)[user] + rng.normal(0, 0.6, n)[item] + rng.normal(0, 0.6, n)
    # Of the few on the other side a pair may come twice; the first of it is left out.
    _, last = np.unique((user * n + item)[::-1], return_index=True)
    kept = np.sort(n - 1 - last)
    value = np.clip(np.rint(liked), 1, 5)
    columns = user[kept], item[kept], value[kept], BEGAN + kept
    return OddData(_ratings(*columns), n if users else 20, n if items else 20)


ODD_DATA: dict[str, Callable[[], OddData]] = {
    "one user": lambda: world(1, 60, 0.8),
    "one item": lambda: world(60, 1, 0.8),
    "two ratings": _two_ratings,
    "constant": lambda: _constant(4.0, STARS),
    "constant at the end of the scale": lambda: _constant(1.0, STARS),
    "constant without steps": lambda: _constant(0.3, Scale(0, 1)),
    "full panel": lambda: world(40, 25, 1.0),
    "one heavy user": _one_heavy_user,
    "all of one day": lambda: _at(lambda n: BEGAN + np.linspace(0, DAY_S - 1, n)),
    "all at one second": lambda: _at(lambda n: np.full(n, BEGAN)),
    "without times": lambda: _at(lambda n: np.full(n, np.nan)),
    "half without times": lambda: _at(lambda n: np.where(np.arange(n) % 2, BEGAN + np.arange(n), np.nan)),
    "off-step values": _off_step,
    "-10 to 10": lambda: _plain(Scale(-10, 10)),
    "-10 to 10 by 1": lambda: _plain(Scale(-10, 10, 1)),
    "0 to 1": lambda: _plain(Scale(0, 1)),
    "half stars": lambda: _plain(Scale(0.5, 5, 0.5)),
    "1 to 10": lambda: _plain(Scale(1, 10, 1)),
    "0 or 1": lambda: _plain(Scale(0, 1, 1)),
    "0 to 100": lambda: _plain(Scale(0, 100)),
    "0 to 100 by 1": lambda: _plain(Scale(0, 100, 1)),
    "duplicates": _duplicates,
    "unsorted": _unsorted,
    "users with one rating each": lambda: _one_rating_each(users=True, items=False),
    "items with one rating each": lambda: _one_rating_each(users=False, items=True),
    "pairs of their own": lambda: _one_rating_each(users=True, items=True),
}
