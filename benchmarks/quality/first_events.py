"""How well do lists find those who will choose a new item, from its first events on?

Invariant: what is compared differs in what is known of the item alone. Of MovieLens 100K, 150 movies with 25
ratings and more are left out of the fit and folded in as a trainer does, with their year and genres and with
so many of their ratings; each is held against those who rated it besides. Beside it: the same without
attributes, and attributes alone.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.data import datasets
from benchmarks.harness.command import Options, read
from evaluation.report import new_console, new_table
from factors import Bools, Float32s, Float64s, Histories, Int64s, Ratings, fit_ranking

EVENTS = (0, 1, 2, 5, 10, 20)
LEAST, MOST_ITEMS = 25, 150


def area(scores: Float64s, chose: Bools, known: Bools) -> float:
    """Return how often one who chose an item stands before one who has not (AUC), of those not `known`."""
    wanted, others = scores[chose & ~known], np.sort(scores[~chose])
    before = np.searchsorted(others, wanted, "left") + np.searchsorted(others, wanted, "right")
    return float(before.mean() / 2 / len(others))


def main(argv: Sequence[str]) -> int:
    """Print a line for each number of events; return 0."""
    options = read(Options, "first_events", __doc__, argv)
    console, rng = new_console(), np.random.default_rng(options.seed)
    data = datasets.ml_100k_described()
    ratings, columns = data.ratings, data.attributes["item"]
    often = np.flatnonzero(np.bincount(ratings.item_row, minlength=data.n_items) >= LEAST)
    new = rng.choice(often, max(2, round(MOST_ITEMS * min(options.scale, 1.0))), replace=False)
    rest = data.part(~np.isin(ratings.item_row, new))
    shape = data.n_users, data.n_items
    found = fit_ranking(rest, *shape, rng=np.random.default_rng(options.seed), attributes=columns)
    # Without events an item has what its attributes say.
    expected, users = found.head.items[new], found.users
    table = new_table("AUC of who chooses a new item", ("events", "as served", "no attributes", "alone"))
    for count in EVENTS:
        given, known, chose = _histories(ratings, new, count, data.n_users, rng)
        served, _ = found.head.fold_in_items(users, given, expected)
        plain, _ = found.head.fold_in_items(users, given)
        cells = [_mean_area(users, items, chose, known) for items in (served, plain, expected)]
        table.add_row(f"{count}", *(f"{cell:.3f}" for cell in cells))
    console.print(table)
    return 0


def _histories(
    ratings: Ratings, items: Int64s, count: int, n_users: int, rng: np.random.Generator
) -> tuple[Histories, Bools, Bools]:
    """Return `count` ratings of each of `items` (m,), whose they are and who rated them at all (m, u)."""
    known, chose = np.zeros((2, len(items), n_users), dtype=np.bool_)
    raters = []
    for place, item in enumerate(items.tolist()):
        who = rng.permutation(ratings.user_row[ratings.item_row == item])
        chose[place, who] = known[place, who[:count]] = True
        raters.append(who[:count])
    other = np.concatenate(raters).astype(np.int32)
    nothing = np.full(len(other), np.nan)
    return Histories(np.arange(len(items) + 1) * count, other, np.ones(len(other)), nothing), known, chose


def _mean_area(users: Float32s, items: Float32s, chose: Bools, known: Bools) -> float:
    scores = items.astype(np.float64) @ users.astype(np.float64).T
    return float(np.mean([area(*each) for each in zip(scores, chose, known, strict=True)]))
