"""How wrong predictions are for users, or items, of whom 0, 1, 2, ... ratings are known.

Invariant: whatever the count, the same pairs are asked for, and the model has never seen the new ones: it is
fitted without them, and they are folded in, as the product does between two fits. Baselines are computed anew
with the ratings that are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from evaluation.metrics import inside
from evaluation.offline.engines import AUTO, find, fit_options
from evaluation.offline.jobs import run_apart
from evaluation.offline.question import Array, Question, Rows

if TYPE_CHECKING:
    from evaluation.offline.data import DataSet

Side = Literal["user", "item"]
COUNTS = (0, 1, 2, 3, 5, 10, 20)
NEW_SHARE = 0.2  # of those with enough ratings
LEAST_ASKED = 10  # ratings of each new one beyond the last count
ENGINES = (AUTO, "item-mean", "user-mean", "bias")


@dataclass(frozen=True, slots=True)
class ColdStart:
    """`train_*`: ratings of all who are not new; `first_*`: the first ratings of those who are, of which
    `first_place` counts from 0; `test_*`: their later ones, without the ratings. `side`: 0 users, 1 items.
    """

    n_users: int
    n_items: int
    low: float
    high: float
    step: float
    side: int
    counts: npt.NDArray[np.int64]
    train_user: Rows
    train_item: Rows
    train_value: Array
    train_time: Array
    first_user: Rows
    first_item: Rows
    first_value: Array
    first_time: Array
    first_place: npt.NDArray[np.int64]
    test_user: Rows
    test_item: Rows
    test_time: Array

    def question(self, count: int) -> Question:
        """What a baseline learns when `count` ratings of each new one are known."""
        kept = self.first_place < count
        return Question(
            n_users=self.n_users,
            n_items=self.n_items,
            low=self.low,
            high=self.high,
            step=self.step,
            train_user=np.concatenate([self.train_user, self.first_user[kept]]),
            train_item=np.concatenate([self.train_item, self.first_item[kept]]),
            train_value=np.concatenate([self.train_value, self.first_value[kept]]),
            train_time=np.concatenate([self.train_time, self.first_time[kept]]),
            test_user=self.test_user,
            test_item=self.test_item,
            test_time=self.test_time,
        )


@dataclass(frozen=True, slots=True)
class ColdCurve:
    """Errors of an engine by the number of ratings known; `coverage` of its 90 % intervals, NaN without."""

    data: str
    side: Side
    engine: str
    counts: tuple[int, ...]
    rmse: tuple[float, ...]
    coverage: tuple[float, ...]
    n_test: int
    seconds: float


def cold_start(
    data: "DataSet", side: Side, seed: int, counts: Sequence[int] = COUNTS
) -> tuple[ColdStart, Array]:
    """The task on a data set, and the ratings asked for. A fifth of those with enough ratings are new; their
    ratings come in the order of time (of the file, where times are unknown).
    """
    ratings = data.ratings
    row = ratings.user_row if side == "user" else ratings.item_row
    n_rows = data.n_users if side == "user" else data.n_items
    enough = np.flatnonzero(np.bincount(row, minlength=n_rows) >= max(counts) + LEAST_ASKED)
    new = np.random.default_rng(seed).permutation(enough)[: max(1, round(len(enough) * NEW_SHARE))]
    is_new = np.isin(row, new)
    time = np.where(np.isfinite(ratings.time), ratings.time, np.arange(len(row)))
    order = np.lexsort((time, row))
    place = np.empty(len(row), dtype=np.int64)
    place[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    first, asked = is_new & (place < max(counts)), is_new & (place >= max(counts))
    train, early, late = data.part(~is_new), data.part(first), data.part(asked)
    scale = data.scale
    task = ColdStart(
        n_users=data.n_users,
        n_items=data.n_items,
        low=scale.low,
        high=scale.high,
        step=scale.step or 0.0,
        side=0 if side == "user" else 1,
        counts=np.array(counts, dtype=np.int64),
        train_user=train.user_row,
        train_item=train.item_row,
        train_value=train.value,
        train_time=train.time,
        first_user=early.user_row,
        first_item=early.item_row,
        first_value=early.value,
        first_time=early.time,
        first_place=place[first],
        test_user=late.user_row,
        test_item=late.item_row,
        test_time=late.time,
    )
    return task, late.value


def curve(data: "DataSet", side: Side, engine: str, seed: int) -> ColdCurve:
    """The errors of an engine, run in a process of its own."""
    task, truth = cold_start(data, side, seed)
    arrays, cost = run_apart("evaluation.offline.cold_start:run", task, {"engine": engine}, seed=seed)
    rating, std = arrays["rating"], arrays["std"]
    rmse = np.sqrt(np.mean((rating - truth) ** 2, axis=1))
    held = [float(inside(truth - r, s).mean()) for r, s in zip(rating, std, strict=True)] if std.size else []
    counts = tuple(int(count) for count in task.counts)
    coverage = tuple(held) or (float("nan"),) * len(counts)
    seconds = float(cost["seconds"])
    return ColdCurve(data.name, side, engine, counts, tuple(rmse.tolist()), coverage, len(truth), seconds)


def run(task: ColdStart, options: Mapping[str, str], seed: int) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """What `run_apart` calls: `rating` and `std` (counts, m), `std` empty without."""
    if options["engine"].split(":")[0] == AUTO:
        rating, std = _folded_in(task, fit_options(options["engine"]), seed)
        return {"rating": rating, "std": std}, ""
    baseline = find(options["engine"])
    questions = [task.question(int(count)) for count in task.counts]
    rating = np.stack([baseline.predict(question, seed).rating for question in questions])
    # What a baseline leaves of the training ratings says nothing of new users and items: no std.
    return {"rating": rating, "std": np.empty(0)}, ""


def _folded_in(task: ColdStart, options: dict[str, Any], seed: int) -> tuple[Array, Array]:
    from factors import (
        FitSettings,
        Histories,
        Scorer,
        fit,
    )

    question = task.question(0)  # nothing is known of the new ones
    settings = FitSettings(question.scale(), **options)
    rng = np.random.default_rng(seed)
    fitted = fit(question.ratings(), task.n_users, task.n_items, settings=settings, rng=rng)
    rows, others = (task.first_user, task.first_item)[:: 1 if task.side == 0 else -1]
    new = np.unique(rows)
    order = np.lexsort((task.first_place, rows))
    ratings, stds = [], []
    for count in task.counts.tolist():
        part = order[task.first_place[order] < count]
        offsets = np.searchsorted(rows[part], np.append(new, new[-1] + 1)).astype(np.int64)
        histories = Histories(offsets, others[part], task.first_value[part], task.first_time[part])
        users, items = fitted.users.copy(), fitted.items.copy()
        if task.side == 0:
            users[new] = fitted.posterior.fold_in_users(items, histories, current=users[new])
        else:
            items[new] = fitted.posterior.fold_in_items(users, histories, current=items[new])
        scores = Scorer(fitted.posterior, items).score(users, task.test_user, task.test_item, task.test_time)
        ratings.append(scores.rating)
        stds.append(scores.std)
    return np.stack(ratings), np.stack(stds)
