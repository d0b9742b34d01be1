"""By how much accounts that are made for it move the predictions of one item (Mobasher et al., 2007).

Invariant: an attack changes nothing but what it adds: its accounts are new, and the predictions compared are
those of all other users. Shills push: they rate one item, the target, as high as the scale goes.

Besides they rate `nothing else`; items at `random`; items at random round their `average`; 20 of the 50 that
most people know as high as the target (`bandwagon`); items as often as they are rated by all, each at its
mean (`popular`; Hurley et al., 2009), also one after the other over the whole time (`slow`) or many of them
(`heavy`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from evaluation.offline.data import DataSet
from factors import (
    FitSettings,
    Fitted,
    Float64s,
    Histories,
    Ratings,
    Scorer,
    fit,
    item_statistics,
)

Attack = Literal["nothing else", "random", "average", "bandwagon", "popular", "slow", "heavy"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
# Of all accounts.
SHARE = 0.01
# Targets by how popular they are: shares of the rated items that are more popular.
POPULARITY = (0.05, 0.3, 0.7)
# Ratings of an account besides the target; the quarter of all users has fewer in MovieLens 100K.
FILLERS = 40
# As many as the busiest quarter of the users of MovieLens 100K has at least.
MANY_FILLERS = 148
# Items that everybody knows, for those who want to look like everybody.
BANDWAGON = 50
# Ratings on which errors are measured.
HELD_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Shift:
    """What an attack on an item with `n_ratings` did, in units of the scale: to the `plain_mean` of its
    ratings, to the mean prediction of all honest users when the item and the accounts were folded in
    (`online`), and after a fit with them (`fitted`). `rmse`: of held-out ratings after that fit,
    `rmse_before` without the attack.
    """

    data: str
    popularity: float
    n_ratings: int
    attack: Attack
    shills: int
    plain_mean: float
    online: float
    fitted: float
    rmse_before: float
    rmse: float


def shills(data: DataSet, target: int, attack: Attack, rng: np.random.Generator) -> Ratings:
    """Return the ratings of the accounts, which are numbered behind the users, all at the last one's time
    unless they are slow.
    """
    ratings, scale = data.ratings, data.scale
    count = np.bincount(ratings.item_row, minlength=data.n_items)
    means = np.bincount(ratings.item_row, ratings.value, data.n_items) / np.maximum(count, 1)
    others = np.flatnonzero((count > 0) & (np.arange(data.n_items) != target))
    overall, spread = ratings.value.mean(), ratings.value.std()
    user: list[npt.NDArray[np.int64]] = []
    item: list[npt.NDArray[np.int64]] = []
    value: list[Float64s] = []
    for k in range(max(1, round(SHARE * data.n_users))):
        rows = np.zeros(0, dtype=np.int64)
        if attack == "bandwagon":
            known = others[np.argsort(-count[others], kind="stable")][:BANDWAGON]
            rows = rng.choice(known, min(FILLERS, len(known)) // 2, replace=False)
            values = np.full(len(rows), scale.high)
        elif attack in ("popular", "slow", "heavy"):
            size = min(MANY_FILLERS if attack == "heavy" else FILLERS, len(others))
            rows = rng.choice(others, size, replace=False, p=count[others] / count[others].sum())
            values = np.clip(np.round(means[rows]), scale.low, scale.high)
        elif attack != "nothing else":
            rows = rng.choice(others, min(FILLERS, len(others)), replace=False)
            centre = means[rows] if attack == "average" else np.full(len(rows), overall)
            values = np.clip(np.round(rng.normal(centre, spread)), scale.low, scale.high)
        else:
            values = np.zeros(0)
        user.append(np.full(len(rows) + 1, data.n_users + k))
        item.append(np.append(rows, target))
        value.append(np.append(values, scale.high))
    users = np.concatenate(user).astype(np.int32)
    times = np.full(len(users), ratings.time.max())
    if attack == "slow":
        times = rng.choice(ratings.time, len(users))
    return Ratings(users, np.concatenate(item).astype(np.int32), np.concatenate(value), times)


def measure_shifts(data: DataSet, seed: int) -> Iterator[Shift]:
    """Yield what each attack did to a target of each popularity."""
    with threadpool_limits(limits=1):
        n = len(data.ratings.value)
        held_out = np.zeros(n, dtype=bool)
        held_out[np.random.default_rng(seed).permutation(n)[: round(HELD_OUT * n)]] = True
        known, test = data.part(~held_out), data.part(held_out)
        settings = FitSettings(data.scale)
        before = fit(known, data.n_users, data.n_items, settings=settings, rng=np.random.default_rng(seed))
        rmse_before = rmse(before, test)
        statistics = item_statistics(before.items)
        count, means = statistics.count, statistics.mean
        by_count = np.argsort(-count, kind="stable")[: np.count_nonzero(count)]
        for popularity in POPULARITY:
            target = int(by_count[int(popularity * len(by_count))])
            honest = predictions(before, target, data.n_users)
            n_ratings, mean = int(count[target]), float(means[target])
            for attack in ATTACKS:
                rng = np.random.default_rng(seed)
                added = shills(replace(data, ratings=known), target, attack, rng)
                every = _together(known, added)
                n_shills = int(added.user_row.max()) + 1 - data.n_users
                # From the fit before, as the trainer does it.
                after = fit(
                    every,
                    data.n_users + n_shills,
                    data.n_items,
                    settings=settings,
                    rng=rng,
                    start=before,
                )
                between = folded(before, every, added, target)
                online, fitted = (
                    float(np.mean(predictions(each, target, data.n_users) - honest))
                    for each in (between, after)
                )
                yield Shift(
                    *(data.name, popularity, n_ratings, attack, n_shills),
                    n_shills * (data.scale.high - mean) / (n_ratings + n_shills),
                    *(online, fitted, rmse_before, rmse(after, test)),
                )


def _together(first: Ratings, second: Ratings) -> Ratings:
    columns = ("user_row", "item_row", "value", "time")
    return Ratings(*(np.concatenate([getattr(each, name) for each in (first, second)]) for name in columns))


def folded(before: Fitted, every: Ratings, added: Ratings, target: int) -> Fitted:
    """Return `before` with the new accounts and then the target folded in, as between two fits."""
    posterior, n_users = before.posterior, len(before.users)
    order = np.argsort(added.user_row, kind="stable")
    new = added.user_row[order] - n_users
    offsets = np.searchsorted(new, np.arange(int(new[-1]) + 2))
    theirs = Histories(offsets, added.item_row[order], added.value[order], added.time[order])
    users = np.concatenate([before.users, posterior.fold_in_users(before.items, theirs)])
    rows = np.flatnonzero(every.item_row == target)
    raters = Histories(np.array([0, len(rows)]), every.user_row[rows], every.value[rows], every.time[rows])
    items = before.items.copy()
    items[target] = posterior.fold_in_items(users, raters, current=items[target][None])[0]
    return Fitted(before.model, before.users, items)


def predictions(fitted: Fitted, target: int, n_users: int) -> Float64s:
    """Return what the first `n_users` users would give an item, at no time in particular."""
    pairs = np.arange(n_users), np.full(n_users, target)
    return Scorer(fitted.posterior, fitted.items).score(fitted.users, *pairs).rating


def rmse(fitted: Fitted, test: Ratings) -> float:
    """Return the root mean square error on `test`."""
    scorer = Scorer(fitted.posterior, fitted.items)
    scores = scorer.score(fitted.users, test.user_row, test.item_row, test.time)
    return float(np.sqrt(np.mean((test.value - scores.rating) ** 2)))
