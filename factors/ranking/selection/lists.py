"""Lists of the users of held-out events, and how good they are. Invariant: scores of all items are there for
few users at a time.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import scipy.sparse as sp

from factors.inference.compiled.loading import Kernel, compile_loops
from factors.inference.compiled.ranking_kernels import add_neighbours, find_places
from factors.inference.histories import Compressed, compress
from factors.model.types import Float32s, Float64s, Int64s, UInt8s
from factors.ranking.half_steps import Events, solve_rows
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import RankingChoices, RankingParameters, later_events, recency_weights
from factors.ranking.selection.held_out import HeldOut
from factors.ranking.type_weights import TypeTable, event_counts

# Scores that are in memory at once, for each thread: 4 MB.
_SCORES = 1 << 20

Scores = Callable[[slice], Iterable[Float32s]]
"""Yields for a block of users one kind of scores (b, n_items) after the other; they may be overwritten."""


@dataclass(slots=True)
class Lists:
    """Lists of `n_items` items for the users of `held`. `compiled`: by loops."""

    held: HeldOut
    n_items: int
    threads: int
    compiled: bool
    rows: Compressed = field(init=False)
    codes: UInt8s | None = field(init=False)
    later: Int64s = field(init=False)

    def __post_init__(self) -> None:
        histories = self.held.histories
        self.rows = compress(replace(histories, type_code=None), self.n_items)
        self.codes = None if histories.type_code is None else histories.type_code[self.rows.source]
        self.later = later_events(self.rows)

    def users(self, choices: RankingChoices, parameters: RankingParameters, items: Float32s) -> Float32s:
        """Return the users (u, r) folded in, in float32: lists are compared, no answer is given."""
        weight, target = self._types(choices)
        counts = event_counts(self.rows, weight, target)
        recency = self._recency(choices)
        events = Events(
            self.rows.indptr, self.rows.other, recency if weight is None else recency * weight, target
        )
        prior = parameters.prior("user", counts)
        return np.asarray(solve_rows(events, items, prior, self.threads, compiled=self.compiled), np.float32)

    def said(self, choices: RankingChoices) -> Float32s:
        """Return how much each event (n,) of the users says for other items."""
        weight, target = self._types(choices)
        said = self._recency(choices)
        return np.asarray(said if weight is None or target is None else said * weight * target, np.float32)

    def sparse(self, term: Neighbours, said: Float32s, rows: slice) -> Float32s:
        """Return what the sparse `term` gives the users `rows`: (b, n_items)."""
        data = self.rows
        if self.compiled:
            scores = np.zeros((rows.stop - rows.start, self.n_items), np.float32)
            known = (data.indptr, data.other, said, term.indptr, term.item_row, term.weight)
            list_loops()[add_neighbours](rows.start, rows.stop, *known, scores)
            return scores
        indptr, entries = (
            data.indptr[rows.start : rows.stop + 1],
            slice(*data.indptr[[rows.start, rows.stop]]),
        )
        parts = (said[entries], data.other[entries], indptr - indptr[0])
        chosen = sp.csr_array(parts, shape=(rows.stop - rows.start, self.n_items))
        return np.asarray((chosen @ term.matrix()).toarray(), np.float32)

    def places(self, scores: Scores) -> list[Int64s]:
        """Return, for each kind of `scores`, how many items stand before each wanted one (m,) in the list of
        its user.
        """
        size = max(1, _SCORES // self.n_items)
        n_users = len(self.held.users)
        blocks = [slice(start, min(start + size, n_users)) for start in range(0, n_users, size)]

        def found(rows: slice) -> list[Int64s]:
            return [self._before(np.ascontiguousarray(each), rows) for each in scores(rows)]

        with ThreadPoolExecutor(self.threads, thread_name_prefix="ranking") as pool:
            parts = list(pool.map(found, blocks))
        return [np.concatenate(kind) for kind in zip(*parts, strict=True)]

    def qualities(self, scores: Scores) -> list[Float64s]:
        """Return NDCG at `DEPTH` (u,) of each kind of `scores`."""
        return [self.held.gained(before) for before in self.places(scores)]

    def _before(self, scores: Float32s, rows: slice) -> Int64s:
        held, wanted = self.held, self.held.wanted_indptr
        first, last = wanted[rows.start], wanted[rows.stop]
        if self.compiled:
            before = np.empty(len(held.item), np.int64)
            known = (held.histories.offsets, held.histories.other_row, wanted, held.item)
            list_loops()[find_places](rows.start, rows.stop, *known, scores, before)
            return before[first:last]
        return held.before(scores, rows)

    def _types(self, choices: RankingChoices) -> tuple[Float64s | None, Float64s | None]:
        if self.codes is None:
            return None, None
        table = TypeTable.of(choices.types)
        return table.weight[self.codes], table.target[self.codes]

    def _recency(self, choices: RankingChoices) -> Float64s:
        return recency_weights(self.later, choices.recency_boost, choices.recency_span)


@lru_cache(maxsize=1)
def list_loops() -> dict[Kernel, Kernel]:
    """Return the loops of lists, compiled."""
    signatures: dict[Kernel, tuple[str, ...]] = {
        add_neighbours: ("i8", "i8", "i8[1]", "i8[1]", "f4[1]", "i8[1]", "i4[1]", "f4[1]", "f4[2]="),
        find_places: ("i8", "i8", "i8[1]", "i4[1]", "i8[1]", "i8[1]", "f4[2]=", "i8[1]="),
    }
    return compile_loops(signatures, signatures)
