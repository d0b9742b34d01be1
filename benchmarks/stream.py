"""Ratings learned one by one without a refit, against a fit of all of them: what do they cost?

Invariant: every prediction is made of the ratings before it alone, and both contestants learn the ratings
that are asked for in the same way, one after the other. MovieLens 100K and a rating environment whose tastes
drift, in the order of time: fitted on the first 60 %, the next 20 % are learned by folding in both sides, and
the last 20 % are predicted from there and from a fresh fit of the first 80 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.data import datasets
from benchmarks.harness.command import end_in_order, parser
from environment.world import WorldOptions, make_world
from evaluation.report import new_console
from factors import (
    FitSettings,
    Fitted,
    Histories,
    Ratings,
    Scale,
    Scorer,
    fit,
    posterior_of,
)

# Both sides are folded in after each block of so many: a four-hundredth of MovieLens 100K.
FOLD_EVENTS = 250
# How fast tastes move in the environment: not at all, slowly, fast.
DRIFTS = (0.0, 0.5, 2.0)
# 40 % of the pairs of an environment.
EVENTS = 12_000
Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Learner:
    """A fit that goes on learning. `users`, `items`: its tables as of now."""

    fitted: Fitted
    ratings: Ratings
    by_user: list[Rows]
    by_item: list[Rows]
    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]

    def predict(self, events: Rows) -> npt.NDArray[np.float64]:
        """Predict the ratings of `events`, all as of now."""
        ratings = self.ratings
        scores = Scorer(self.fitted.posterior, self.items).score(
            self.users, ratings.user_row[events], ratings.item_row[events], ratings.time[events]
        )
        return scores.rating

    def learn(self, events: Rows) -> npt.NDArray[np.float64]:
        """Predict each of `events` (ascending), its user folded in from all before it; then fold in the users
        and items in `events`.
        """
        ratings, model = self.ratings, self.fitted.model
        user_row, item_row = ratings.user_row, ratings.item_row
        past = self._histories(self.by_user, user_row[events], events, item_row)
        now = posterior_of(model).fold_in_users(self.items, past, current=self.users[user_row[events]])
        scores = Scorer(posterior_of(model), self.items).score(
            now, np.arange(len(events)), item_row[events], ratings.time[events]
        )
        # Users first, then items, from the tables of the moment: as service and trainer do it.
        end = int(events[-1]) + 1
        users, items = np.unique(user_row[events]), np.unique(item_row[events])
        past = self._histories(self.by_user, users, np.full(len(users), end), item_row)
        self.users[users] = posterior_of(model).fold_in_users(self.items, past, current=self.users[users])
        past = self._histories(self.by_item, items, np.full(len(items), end), user_row)
        self.items[items] = posterior_of(model).fold_in_items(self.users, past, current=self.items[items])
        return scores.rating

    def _histories(
        self, positions: list[Rows], rows: npt.NDArray[np.int32], before: Rows, other: npt.NDArray[np.int32]
    ) -> Histories:
        parts = [
            positions[row][: np.searchsorted(positions[row], end)]
            for row, end in zip(rows.tolist(), before.tolist(), strict=True)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        chosen = np.concatenate(parts).astype(np.int64)
        return Histories(offsets, other[chosen], self.ratings.value[chosen], self.ratings.time[chosen])


def fitted_on(ratings: Ratings, first: int, shape: tuple[int, int], scale: Scale, seed: int) -> Learner:
    """Return a learner fitted on the `first` ratings."""
    known = Ratings(
        ratings.user_row[:first], ratings.item_row[:first], ratings.value[:first], ratings.time[:first]
    )
    fitted = fit(known, *shape, settings=FitSettings(scale), rng=np.random.default_rng(seed))
    by_user, by_item = (
        _positions(rows, size) for rows, size in zip((ratings.user_row, ratings.item_row), shape, strict=True)
    )
    return Learner(fitted, ratings, by_user, by_item, fitted.users.copy(), fitted.items.copy())


def _positions(rows: npt.NDArray[np.int32], size: int) -> list[Rows]:
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(size + 1))
    return [order[bounds[row] : bounds[row + 1]] for row in range(size)]


def compare(ratings: Ratings, shape: tuple[int, int], scale: Scale, seed: int) -> dict[str, float]:
    """Return the RMSE of both on the last fifth, as of its beginning and learning on."""
    n = len(ratings.value)
    begin, end = round(0.6 * n), round(0.8 * n)
    streamed = fitted_on(ratings, begin, shape, scale, seed)
    for start in range(begin, end, FOLD_EVENTS):
        streamed.learn(np.arange(start, min(start + FOLD_EVENTS, end)))
    errors = {}
    for name, learner in (("stream", streamed), ("refit", fitted_on(ratings, end, shape, scale, seed))):
        still = learner.predict(np.arange(end, n))
        blocks = [np.arange(start, min(start + FOLD_EVENTS, n)) for start in range(end, n, FOLD_EVENTS)]
        learning = np.concatenate([learner.learn(block) for block in blocks])
        for how, predicted in (("as of then", still), ("learning on", learning)):
            errors[f"{name}, {how}"] = float(np.sqrt(np.mean((predicted - ratings.value[end:]) ** 2)))
    return errors


def main(argv: Sequence[str]) -> int:
    """Print both errors of each data set; return 0."""
    options = parser("stream", __doc__).parse_args(argv)
    console = new_console()
    end_in_order()
    data = datasets.ml_100k()
    n = round(len(data.ratings.value) * min(options.scale, 1))
    ordered = data.part(np.argsort(data.ratings.time, kind="stable")[:n])
    work = [("ml-100k", ordered, (data.n_users, data.n_items), data.scale)]
    for drift in DRIFTS:
        world = make_world(options.seed, WorldOptions(drift=drift))
        given = Ratings(
            world.user[:EVENTS],
            world.item[:EVENTS],
            world.rating[:EVENTS].astype(np.float64),
            np.arange(EVENTS, dtype=np.float64),
        )
        work.append((f"environment, drift {drift:g}", given, (100, 300), Scale(1, 5, 1)))
    for name, ratings, shape, scale in work:
        errors = compare(ratings, shape, scale, options.seed)
        ratio = errors["stream, learning on"] / errors["refit, learning on"]
        found = ", ".join(f"{how} {error:.4f}" for how, error in errors.items())
        console.print(f"{name}: RMSE {found}; stream / refit {ratio:.4f}", highlight=False)
    return 0
