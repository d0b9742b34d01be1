"""Ratings learned one by one without a refit, against a fit of all of them: what do they cost?

Invariant: every prediction is made of the ratings before it alone, and both contestants learn the ratings
that are asked for in the same way, one after the other. MovieLens 100K and a rating environment whose tastes
drift, in the order of time: fitted on the first 60 %, the next 20 % are learned by folding in both sides, and
the last 20 % are predicted from there and from a fresh fit of the first 80 %.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.data import datasets
from benchmarks.harness.command import Options, read
from environment.world import WorldOptions, make_world
from evaluation.offline.online import Learner
from evaluation.report import new_console
from factors import FitSettings, Ratings, Scale, fit

# Both sides are folded in after each block of so many: a four-hundredth of MovieLens 100K.
FOLD_EVENTS = 250
# How fast tastes move in the environment: not at all, slowly, fast.
DRIFTS = (0.0, 0.5, 2.0)
# 40 % of the pairs of an environment.
EVENTS = 12_000


def compare(ratings: Ratings, shape: tuple[int, int], scale: Scale, seed: int) -> dict[str, float]:
    """Return the RMSE of both on the last fifth, as of its beginning and learning on."""
    n = len(ratings.value)
    begin, end = round(0.6 * n), round(0.8 * n)

    def fitted_on(first: int) -> Learner:
        known, rng = ratings.take(np.arange(first)), np.random.default_rng(seed)
        return Learner(ratings, fit(known, *shape, settings=FitSettings(scale), rng=rng))

    streamed = fitted_on(begin)
    for start in range(begin, end, FOLD_EVENTS):
        streamed.learn(np.arange(start, min(start + FOLD_EVENTS, end)))
    errors = {}
    for name, learner in (("stream", streamed), ("refit", fitted_on(end))):
        still = learner.predict(np.arange(end, n)).rating
        blocks = [np.arange(start, min(start + FOLD_EVENTS, n)) for start in range(end, n, FOLD_EVENTS)]
        learning = np.concatenate([learner.learn(block).rating for block in blocks])
        for how, predicted in (("as of then", still), ("learning on", learning)):
            errors[f"{name}, {how}"] = float(np.sqrt(np.mean((predicted - ratings.value[end:]) ** 2)))
    return errors


def main(argv: Sequence[str]) -> int:
    """Print both errors of each data set; return 0."""
    options = read(Options, "stream", __doc__, argv)
    console = new_console()
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
