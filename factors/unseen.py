"""The prior of rows that came after the fit: new users, new items. Invariant: new is not unpopular.

In a fit, few ratings are a sign: an item that had its time and was rated by few is liked less (its set effect
says so). A row that the fit has not seen had no time yet. It is taken for one of as many ratings as the one
behind an average rating, of which those at hand are a random sample: with `k` of them, the set effects
`beta_j` of who rated, their average `b` and the typical count `N`,

    prior mean = M + sum_j (beta_j - b) / sqrt(max(k, N))

where `M` is the mean of the posterior means: of users, each once; of items, each as often as it was rated,
for so often it is asked for. (MovieLens: with users weighted so too, a new user's error is 0.5 % larger; with
items each once, a new item's 8 %.) A rating by someone whose set effect no fit has learned counts as `b`.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.packing import COUNT
from factors.parameters import Parameters, Side, Unseen
from factors.tables import Bools, Float64s


def learn_unseen(parameters: Parameters, user_rows: Float64s, item_rows: Float64s) -> Parameters:
    """`parameters` with the priors of new rows, from the rows of a fit (both float64)."""
    users, items = parameters.users, parameters.items
    # Nothing in a user's row tells whether he is new where there are no set effects: then all count as known.
    of_users = None
    if items.set_ridge > 0:
        of_users = _unseen(users, user_rows, items, item_rows, user_rows[:, COUNT] > 0)
    of_items = _unseen(items, item_rows, users, user_rows, item_rows[:, COUNT])
    return replace(parameters, users=replace(users, unseen=of_users), items=replace(items, unseen=of_items))


def without_unseen(parameters: Parameters) -> Parameters:
    """`parameters` for a fit, in which every row is seen."""
    users, items = replace(parameters.users, unseen=None), replace(parameters.items, unseen=None)
    return replace(parameters, users=users, items=items)


def _unseen(
    own: Side, rows: Float64s, other: Side, other_rows: Float64s, weight: Float64s | Bools
) -> Unseen | None:
    count, other_count = rows[:, COUNT], other_rows[:, COUNT]
    total = count.sum()
    if total <= 0:
        return None
    mean = weight @ rows[:, own.layout.mean] / weight.sum()
    effect = other_count @ other_rows[:, other.layout.set_effect] / max(other_count.sum(), 1.0)
    return Unseen(mean, effect, float((count @ np.sqrt(count)) / total) ** 2)


@dataclass(frozen=True, slots=True)
class PriorMeans:
    """Prior means of rows with some histories. `base` (b, d) without the ratings; a rating with set effect
    `e` adds `share * (e - pull)`, with `share` (b,) and `pull` (b, d) of its row.
    """

    base: Float64s
    pull: Float64s
    share: Float64s


def prior_means(own: Side, counts: Float64s, new: Bools | None) -> PriorMeans:
    """Of rows with `counts` (b,) ratings; `new` (b,): which of them the fit has not seen."""
    base = np.repeat(own.mean[None], len(counts), axis=0)
    pull = np.zeros_like(base)
    shown = np.maximum(counts, 1.0)
    if own.unseen is not None:
        bare = counts == 0 if new is None else new | (counts == 0)
        base[bare], pull[bare] = own.unseen.mean, own.unseen.effect
        shown[bare] = np.maximum(counts[bare], own.unseen.count)
    return PriorMeans(base, pull, 1.0 / np.sqrt(shown))
