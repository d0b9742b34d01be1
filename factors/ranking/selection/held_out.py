"""Events held out of training, and how well lists find them. Invariant: a choice has not learned what it is
judged by.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.inference.histories import Compressed
from factors.model.types import Bools, Float32s, Float64s, Histories, Int64s, UInt8s
from factors.ranking.parameters import later_events
from factors.ranking.type_weights import TYPE_CODES, TypeTable, TypeWeight, kept

# A tenth of the events is held out: so many are learned less than will be.
_SHARE = 0.1
# Of users with fewer events none is held out: the history left says nothing of which item came next.
_LEAST = 5
# NDCG@100 decides, as in the literature (Liang et al., 2018); of graded gains people see ten items.
DEPTH, SHORT = 100, 10
# Lists are made of so many users and items at most: 160 MB of scores.
_MOST_USERS, _MOST_SCORES = 2_000, 40_000_000
# A tenth of as many events as a choice needs.
LEAST_WANTED = 100
# Relevance runs from 0 to 4, as judges of search results have it: gains 2^grade - 1 (Burges et al., 2005).
_GRADES = 4


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`known`: the events to learn. Of the `users` (u,) of the lists: `histories`, and what is wanted, `row`
    (m,) among them, `item` (m,), graded `gain` (m,).
    """

    known: Compressed
    users: Int64s
    histories: Histories
    row: Int64s
    item: Int64s
    gain: Float64s

    @classmethod
    def of(
        cls,
        by_user: Compressed,
        n_items: int,
        held: Bools,
        rng: np.random.Generator,
        typed: "Typed | None" = None,
    ) -> "HeldOut":
        """Hold out the entries `held` (n,). `typed`: what tells which of these are wanted; None: all."""
        known, wanted = kept(by_user, ~held), kept(by_user, held)
        if typed is not None:
            wanted = kept(wanted, typed.wanted(wanted))
        users = np.flatnonzero(wanted.counts)
        most = max(1, min(_MOST_USERS, _MOST_SCORES // max(1, n_items)))
        if len(users) > most:
            users = np.sort(rng.choice(users, most, replace=False))
        among = np.full(by_user.rows, -1, dtype=np.int64)
        among[users] = np.arange(len(users))
        asked = among[wanted.row] >= 0
        low, high = by_user.value.min(initial=np.inf), by_user.value.max(initial=-np.inf)
        # Of ratings that are all alike each is as good.
        grade = (wanted.value[asked] - low) / (high - low) if high > low else np.ones(int(asked.sum()))
        row, item = among[wanted.row[asked]], wanted.other[asked]
        listed = kept(known, among[known.row] >= 0)
        indptr = np.concatenate([[0], np.cumsum(listed.counts[users])])
        # As they were written, by which recency goes where times are unknown.
        order = np.lexsort((listed.source, listed.row))
        histories = Histories(
            indptr, listed.other[order].astype(np.int32), listed.value[order], listed.time[order]
        )
        if typed is not None:
            histories = replace(histories, type_code=typed.codes[listed.source[order]])
        return cls(known, users, histories, row, item, np.exp2(_GRADES * grade) - 1.0)

    @property
    def wanted_indptr(self) -> Int64s:
        """Return where what each user wants begins and ends (u + 1,)."""
        return np.searchsorted(self.row, np.arange(len(self.users) + 1))

    def before(self, scores: Float32s, rows: slice) -> Int64s:
        """Return how many items, `DEPTH` where that many and more, stand before each wanted one (m,) of the
        users `rows`, by their `scores` (b, n_items), which are overwritten. What is in a history is not
        listed.
        """
        offsets = self.histories.offsets[rows.start : rows.stop + 1]
        seen = np.repeat(np.arange(len(scores)), np.diff(offsets))
        scores[seen, self.histories.other_row[offsets[0] : offsets[-1]]] = -np.inf
        first, last = np.searchsorted(self.row, [rows.start, rows.stop])
        row = self.row[first:last] - rows.start
        # One more than are listed: what is no better than that one may not be in the list.
        most = min(DEPTH + 1, scores.shape[1])
        best = np.partition(scores, scores.shape[1] - most, axis=1)[:, scores.shape[1] - most :]
        own = scores[row, self.item[first:last]]
        # Equal scores count as ranked before: a list that does not decide wins nothing.
        return np.asarray((best[row] >= own[:, None]).sum(axis=1) - 1)

    def gained(self, before: Int64s, gain: Float64s | None = None, depth: int = DEPTH) -> Float64s:
        """Return NDCG at `depth` (u,) of lists in which so many items stand `before` (m,) each wanted one,
        which is worth 1 or its `gain` (m,).
        """
        gain = np.ones(len(self.row)) if gain is None else gain
        found = np.where(before < depth, gain / np.log2(2.0 + before), 0.0)
        order = np.lexsort((-gain, self.row))
        rank = np.arange(len(order)) - np.searchsorted(self.row[order], self.row[order])
        ideal = np.where(rank < depth, gain[order] / np.log2(2.0 + rank), 0.0)
        sums = (
            np.bincount(self.row, found, len(self.users)),
            np.bincount(self.row[order], ideal, len(self.users)),
        )
        return np.asarray(sums[0] / np.maximum(sums[1], 1e-12))


@dataclass(frozen=True, slots=True)
class Typed:
    """Types of events: their `codes` by the `source` of an entry, what they count to begin with, and the
    codes of the types whose weight a fit chooses.
    """

    codes: UInt8s
    types: tuple[TypeWeight, ...]
    open_codes: frozenset[int]

    def wanted(self, data: Compressed) -> Bools:
        """Return which events (n,) lists are to find: ratings and what users did on purpose; where there are
        too few to choose by, all that was wanted.
        """
        own, table = self.codes[data.source], TypeTable.of(self.types)
        decisive = table.decisive[own]
        return decisive if decisive.sum() >= LEAST_WANTED else table.target[own] > 0

    def wants_any(self, data: Compressed) -> bool:
        """Say whether any event was wanted: dislikes alone tell no item from another."""
        return bool(TypeTable.of(self.types).target[self.codes[data.source]].any())

    def grown(self, data: Compressed, growth: float) -> bool:
        """Say whether a type has enough events to choose its weight by, and had not when it was chosen last,
        or has `growth` times as many.
        """
        counts = self.counts(data)
        return any(
            counts[each.code] >= LEAST_WANTED
            and (each.decided < LEAST_WANTED or counts[each.code] >= growth * each.decided)
            for each in self.types
            if each.code in self.open_codes
        )

    def counted(self, data: Compressed) -> "Typed":
        """Return the same, with the events of `data` as those that the open weights are chosen by."""
        counts = self.counts(data)
        types = (
            replace(each, decided=int(counts[each.code])) if each.code in self.open_codes else each
            for each in self.types
        )
        return replace(self, types=tuple(types))

    def counts(self, data: Compressed) -> Int64s:
        """Return how many events there are of each type, by code."""
        return np.bincount(self.codes[data.source], minlength=TYPE_CODES)

    def ratings(self, data: Compressed) -> Compressed:
        """Return the events that are ratings."""
        return kept(data, self.codes[data.source] == 0)


def hold_out(by_user: Compressed, rng: np.random.Generator) -> tuple[Bools, Bools | None]:
    """Return which events (n,) are held out: of any time, and the latest of each user, None where times do
    not tell which those are.
    """
    random = rng.random(len(by_user.other)) < _SHARE
    if np.isnan(by_user.time).any():
        return random, None
    counts = by_user.counts[by_user.row]
    latest = (later_events(by_user) < np.ceil(_SHARE * counts)) & (counts >= _LEAST)
    before = np.full(by_user.rows, -np.inf)
    np.maximum.at(before, by_user.row[~latest], by_user.time[~latest])
    # Imported ratings may all have the time of the import.
    if not latest.any() or np.mean(by_user.time[latest] > before[by_user.row[latest]]) < 0.5:
        return random, None
    return random, latest
