"""How wrong predictions are for users, or items, of which 0, 1, 2, ... ratings are known.

Invariant: whatever the count, the same pairs are predicted, and the model is fitted without the new users or
items: they are folded in, as in the product between two fits. Baselines are computed anew for each count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evaluation.metrics import inside
from evaluation.offline.data import DataSet
from evaluation.offline.engines import ATTRIBUTES, AUTO, attributes_of, find, fit_options
from evaluation.offline.jobs import run_apart
from evaluation.offline.splits import Split
from evaluation.question import Array, Question, Rows
from factors import Columns, FitSettings, Histories, Scorer, fit

Side = Literal["user", "item"]
COUNTS = (0, 1, 2, 3, 5, 10, 20)  # about even on a logarithmic axis
NEW_SHARE = 0.2  # of those with enough ratings
LEAST_HELD_OUT = 10  # ratings of each new one beyond the last count
ENGINES = (AUTO, ATTRIBUTES, "item-mean", "user-mean", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart(Question):
    """A question whose training ratings are those without any new user (or item).

    `first_*`: the first ratings of the new ones, of which `first_rank` counts from 0; the held-out ones are
    their later ratings. `side`: 0 for users, 1 for items.
    """

    side: int
    counts: npt.NDArray[np.int64]
    first_user: Rows
    first_item: Rows
    first_value: Array
    first_time: Array
    first_rank: npt.NDArray[np.int64]

    def question(self, count: int) -> Question:
        """Return the question in which `count` ratings of each new one are known, too."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(Question)}
        known = self.first_rank < count
        for column in ("user", "item", "value", "time"):
            first = getattr(self, f"first_{column}")[known]
            values[f"train_{column}"] = np.concatenate([values[f"train_{column}"], first])
        return Question(**values)


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
    data: DataSet, side: Side, seed: int, counts: Sequence[int] = COUNTS
) -> tuple[ColdStart, Array]:
    """Return the task on a data set, and the held-out values. Ratings of a new user (or item) are in time
    order (of the file, where times are unknown).
    """
    ratings = data.ratings
    row = ratings.user_row if side == "user" else ratings.item_row
    n_rows = data.n_users if side == "user" else data.n_items
    enough = np.flatnonzero(np.bincount(row, minlength=n_rows) >= max(counts) + LEAST_HELD_OUT)
    new = np.random.default_rng(seed).permutation(enough)[: max(1, round(len(enough) * NEW_SHARE))]
    is_new = np.isin(row, new)
    # The rank of each rating in time among those of its user (or item).
    time = np.where(np.isfinite(ratings.time), ratings.time, np.arange(len(row)))
    order = np.lexsort((time, row))
    rank = np.empty(len(row), dtype=np.int64)
    rank[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    first, later = is_new & (rank < max(counts)), is_new & (rank >= max(counts))
    # What is left without the first ratings, split into those of the old ones and the later ones of the new.
    rest = Split(replace(data, ratings=data.part(~first)), "cold start", later[~first])
    question = rest.question()
    values = {entry.name: getattr(question, entry.name) for entry in fields(Question)}
    early = data.part(first)
    task = ColdStart(
        **values,
        side=0 if side == "user" else 1,
        counts=np.array(counts, dtype=np.int64),
        first_user=early.user_row,
        first_item=early.item_row,
        first_value=early.value,
        first_time=early.time,
        first_rank=rank[first],
    )
    return task, rest.truth()


def curve(data: DataSet, side: Side, engine: str, seed: int) -> ColdCurve:
    """Return the errors of an engine, run in a process of its own."""
    task, truth = cold_start(data, side, seed)
    arrays, cost = run_apart("benchmarks.quality.cold_start:run", task, {"engine": engine}, seed=seed)
    rating, std = arrays["rating"], arrays["std"]
    rmse = np.sqrt(np.mean((rating - truth) ** 2, axis=1))
    held = [float(inside(truth - r, s).mean()) for r, s in zip(rating, std, strict=True)] if std.size else []
    counts = tuple(int(count) for count in task.counts)
    coverage = tuple(held) or (float("nan"),) * len(counts)
    seconds = float(cost["seconds"])
    return ColdCurve(data.name, side, engine, counts, tuple(rmse.tolist()), coverage, len(truth), seconds)


def run(task: ColdStart, options: Mapping[str, str], seed: int) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Answer a task, for `run_apart`: `rating` and `std` (counts, m), `std` empty without."""
    if options["engine"].split(":")[0] == AUTO:
        attributes = attributes_of(options["engine"], task)
        rating, std = _folded_in(task, fit_options(options["engine"]), attributes, seed)
        return {"rating": rating, "std": std}, ""
    baseline = find(options["engine"])
    questions = [task.question(int(count)) for count in task.counts]
    rating = np.stack([baseline.predict(question, seed).rating for question in questions])
    # What a baseline leaves of the training ratings says nothing of new users and items: no std.
    return {"rating": rating, "std": np.empty(0)}, ""


def _folded_in(
    task: ColdStart, options: dict[str, Any], attributes: Mapping[Side, Columns], seed: int
) -> tuple[Array, Array]:
    question = task.question(0)  # nothing is known of the new ones
    settings = FitSettings(question.scale(), **options)
    rng = np.random.default_rng(seed)
    shape = task.n_users, task.n_items
    fitted = fit(question.ratings(), *shape, settings=settings, rng=rng, attributes=attributes)
    rows, others = (task.first_user, task.first_item)[:: 1 if task.side == 0 else -1]
    new = np.unique(rows).astype(np.int64)
    columns = attributes.get("user" if task.side == 0 else "item")
    of_new = None if columns is None else columns.take(new)
    order = np.lexsort((task.first_rank, rows))  # by row, and within a row in time
    ratings, stds = [], []
    for count in task.counts.tolist():
        part = order[task.first_rank[order] < count]
        offsets = np.searchsorted(rows[part], np.append(new, new[-1] + 1)).astype(np.int64)
        histories = Histories(offsets, others[part], task.first_value[part], task.first_time[part])
        users, items = fitted.users.copy(), fitted.items.copy()
        if task.side == 0:
            users[new] = fitted.posterior.fold_in_users(
                items, histories, current=users[new], attributes=of_new
            )
        else:
            items[new] = fitted.posterior.fold_in_items(
                users, histories, current=items[new], attributes=of_new
            )
        scores = Scorer(fitted.posterior, items).score(users, task.test_user, task.test_item, task.test_time)
        ratings.append(scores.rating)
        stds.append(scores.std)
    return np.stack(ratings), np.stack(stds)
