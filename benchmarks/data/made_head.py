"""A ranking head of any size, grown out of a small fit as the tables of `synthetic` are, and what its users
have rated. Invariant: users rate items of the kinds that one user of the small fit rated.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from benchmarks.data.datasets import synthetic
from factors import Histories, Index, Neighbours, RankingHead, fit_ranking, index_of

# Ratings of a user: what a visitor of some weeks has.
RATED = 20
# Neighbours of an item in the sparse term: half of what a fit takes at most, 400 MB of a million items.
NEIGHBOURS = 50
# Of the standard deviation of the small fit's rows, as in `synthetic`.
MOVED_BY = 0.1
_SMALL_USERS, _SMALL_ITEMS, _SMALL_RATINGS = 600, 400, 24_000  # fitted in seconds


@dataclass(frozen=True, slots=True)
class MadeHead:
    """A head with the index of its factors, if that pays. `rated` int32 (n_users, RATED): item rows."""

    head: RankingHead
    index: Index | None
    rated: npt.NDArray[np.int32]

    def history(self, user: int) -> Histories:
        """Return what a user has rated."""
        nothing = np.full(RATED, np.nan)
        return Histories(np.array([0, RATED]), self.rated[user], np.full(RATED, 3.0), nothing)


def make_head(n_users: int, n_items: int, *, seed: int) -> MadeHead:
    """Return a head of that size, with an index from 500 items on, also where a fit would make none."""
    rng = np.random.default_rng(seed)
    world = synthetic(_SMALL_USERS, _SMALL_ITEMS, _SMALL_RATINGS, seed=seed)
    with threadpool_limits(1, user_api="blas"):
        small = fit_ranking(world.ratings, world.n_users, world.n_items, rng=rng).head
    # Each item is of a kind, which is an item of the small fit.
    kind = rng.integers(0, _SMALL_ITEMS, n_items)
    by_kind = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[by_kind], np.arange(_SMALL_ITEMS + 1))

    def of_kinds(kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return an item of each kind."""
        sizes = np.maximum(1, starts[kinds + 1] - starts[kinds])
        place = np.minimum(starts[kinds] + rng.integers(0, sizes), n_items - 1)
        return np.asarray(by_kind[place], np.int32)

    items = small.items[kind]
    step = (MOVED_BY * small.items.std(axis=0)).astype(np.float32)
    items += rng.standard_normal(items.shape, dtype=np.float32) * step
    strongest = [_strongest(small.neighbours, row) for row in range(_SMALL_ITEMS)]
    sizes = np.array([len(rows) for rows, _ in strongest])
    indptr = np.concatenate([[0], np.cumsum(sizes[kind])]).astype(np.int64)
    kinds = np.concatenate([strongest[k][0] for k in kind.tolist()])
    weight = np.concatenate([strongest[k][1] for k in kind.tolist()])
    head = replace(small, items=items, neighbours=Neighbours(indptr, of_kinds(kinds), weight))
    rated = np.empty((n_users, RATED), dtype=np.int32)
    for user in range(n_users):
        liked = world.ratings.item_row[world.ratings.user_row == user % _SMALL_USERS].astype(np.int64)
        rated[user] = of_kinds(rng.choice(liked if len(liked) else np.arange(_SMALL_ITEMS), RATED))
    made = MadeHead(head, None, rated)
    some = [head.fold_in_users(made.history(user))[0] for user in range(min(400, n_users))]
    index = index_of(items, np.array(some, dtype=np.float32), rng, least_items=500)
    return replace(made, index=index)


def _strongest(neighbours: Neighbours, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    part = slice(int(neighbours.indptr[row]), int(neighbours.indptr[row + 1]))
    rows, weight = neighbours.item_row[part].astype(np.int64), neighbours.weight[part]
    best = np.argsort(-np.abs(weight), kind="stable")[:NEIGHBOURS]
    return rows[best], weight[best]
