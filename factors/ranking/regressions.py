"""The sparse item term of a set of events: its neighbours, and the regressions on them.

Invariant: compiled loops find the term that numpy finds, but for rounding.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from factors.inference.compiled.loading import Kernel, compile_loops
from factors.inference.compiled.ranking_kernels import ONE, find_cosines, fit_neighbours
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int32s, Int64s
from factors.ranking.neighbours import (
    DAMPING,
    CoOccurrences,
    Neighbours,
    Pairs,
    all_regressions,
    by_rows,
    chosen_by_users,
    most_near,
)

# Cosines of all pairs of items take as many bytes as there are pairs: so many for each event, or 100 MB.
_BYTES_AN_EVENT, _BYTES = 40, 1e8


@dataclass(frozen=True, slots=True)
class NumpyRegressions:
    """The regressions of `together` on the neighbours `pairs`."""

    together: CoOccurrences
    pairs: Pairs
    threads: int

    def fit(self, ridge: float) -> Neighbours:
        """Return the term with the nearest items as neighbours."""
        return self.together.fit(self.pairs, ridge, self.threads)

    def fit_all(self, ridge: float) -> Neighbours:
        """Return the term with all items as neighbours."""
        return self.together.fit_all(ridge)


@dataclass(frozen=True, slots=True)
class CompiledRegressions:
    """The same by `loops`, from what `find_cosines` finds: in its terms `root` (n_items,), `table`, `near`
    (n_items, k) and `n_near` (n_items,).
    """

    root: Float32s
    table: npt.NDArray[np.uint16]
    near: Int32s
    n_near: Int64s
    loops: Mapping[Kernel, Kernel]
    threads: int

    @classmethod
    def of(
        cls, chosen: sp.csr_array, most: int, loops: Mapping[Kernel, Kernel], threads: int
    ) -> "CompiledRegressions":
        """Count who `chosen` (n_users, n_items) what together; up to `most` neighbours an item."""
        by_item, n_items = chosen.tocsc(), chosen.shape[1]
        events = np.diff(by_item.indptr).astype(np.int64)
        item = np.repeat(np.arange(n_items), events)
        count = np.bincount(item, by_item.data.astype(np.float64) ** 2, minlength=n_items)
        root = np.divide(1.0, np.sqrt(count), out=np.zeros(n_items), where=count > 0).astype(np.float32)
        wanted = most_near(min(most, n_items), events)
        near = np.empty((n_items, int(wanted.max(initial=1))), np.int32)
        table = np.empty(n_items * (n_items - 1) // 2, np.uint16)
        found = cls(root, table, near, np.zeros(n_items, np.int64), loops, threads)
        # All that the users of an item chose, and a pass over the items.
        pairs = np.bincount(item, np.diff(chosen.indptr)[by_item.indices], n_items).astype(np.float64)
        sides = (_parts(chosen), _parts(by_item))
        found._run(
            find_cosines, pairs + n_items, wanted, root, *sides[0], *sides[1], table, near, found.n_near
        )
        return found

    def fit(self, ridge: float) -> Neighbours:
        """Return the term with the nearest items as neighbours."""
        weight, n_items = np.zeros(self.near.shape, np.float32), len(self.root)
        work = self.n_near.astype(np.float64) ** 3 + 1.0
        known = (ridge, DAMPING, self.root, self.table, self.near, self.n_near)
        self._run(fit_neighbours, work, *known, weight)
        used = np.arange(self.near.shape[1]) < self.n_near[:, None]
        item = np.repeat(np.arange(n_items, dtype=np.int32), self.n_near)
        # The regressions are by the item that is scored; a history is read by its own items.
        return by_rows(sp.csr_array((weight[used], (self.near[used], item)), shape=(n_items,) * 2))

    def fit_all(self, ridge: float) -> Neighbours:
        """Return the term with all items as neighbours."""
        gram: Float64s = np.zeros((len(self.root), len(self.root)))
        gram[np.tril_indices(len(gram), -1)] = self.table / ONE
        gram += gram.T + np.eye(len(gram))
        size = np.divide(1.0, self.root, out=np.zeros(len(gram)), where=self.root > 0)
        return all_regressions(size[:, None] * gram * size, ridge)

    def _run(self, loop: Kernel, work: Float64s, *arguments: Any) -> None:
        """Run a loop over all items, in parts of about equal `work` (n_items,)."""
        done = np.concatenate([[0.0], np.cumsum(work)])
        shares = np.searchsorted(done, np.linspace(0.0, done[-1], 16 * self.threads + 1))
        edges = np.unique([0, *shares.tolist(), len(work)]).tolist()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="ranking") as pool:
            for part in [pool.submit(self.loops[loop], *pair, *arguments) for pair in pairwise(edges)]:
                part.result()


def regressions(
    by_user: Compressed,
    n_items: int,
    said: Float64s | None,
    *,
    most: int,
    threads: int = 1,
    compiled: bool = False,
) -> NumpyRegressions | CompiledRegressions:
    """Return what fits a term with `most` neighbours an item to the events of the users, of which each says
    so much, see `CoOccurrences.of`. `compiled`: by loops, where cosines are not too many.
    """
    few = n_items**2 <= max(_BYTES, _BYTES_AN_EVENT * len(by_user.other))
    if compiled and few:
        chosen = chosen_by_users(by_user, n_items, said)
        return CompiledRegressions.of(chosen, most, neighbour_loops(), threads)
    together = CoOccurrences.of(by_user, n_items, said)
    # Where all are neighbours none is looked for.
    return NumpyRegressions(together, together.nearest(most if most < n_items else 0), threads)


@lru_cache(maxsize=1)
def neighbour_loops() -> dict[Kernel, Kernel]:
    """Return the loops of the regressions, compiled."""
    own = ("i8[1]", "i4[1]", "f4[1]")
    signatures: dict[Kernel, tuple[str, ...]] = {
        find_cosines: ("i8", "i8", "i8[1]", "f4[1]", *own, *own, "u2[1]=", "i4[2]=", "i8[1]="),
        fit_neighbours: ("i8", "i8", "f4", "f4", "f4[1]", "u2[1]", "i4[2]", "i8[1]", "f4[2]="),
    }
    return compile_loops(signatures, signatures)


def _parts(side: Any) -> tuple[Int64s, Int32s, Float32s]:
    indices = side.indices.astype(np.int32, copy=False)
    return side.indptr.astype(np.int64), indices, side.data
