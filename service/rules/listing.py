"""Makes a list under rules of what a ranking gives.

Invariant: the list is what all items would give that are allowed, not some candidates of them. Boosts are
exact, as items are ranked apart by what multiplies them; so are caps, as the others are ranked again where a
category is full. Diversity alone chooses among the best candidates, as its definition has it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from factors import Bools, Float32s, Float64s, Int64s
from service.rules.columns import Columns
from service.rules.filters import NO_FILTER, Filter
from service.rules.request import Rules
from service.rules.rerank import Selection, boost_groups, unit, with_pinned

# Candidates an item that is wanted, for a list under a cap or with diversity, and at least so many.
_PER_ITEM, _SPARE = 4, 100
# Items wanted times candidates, of which each is compared with each in 2 ms; more are in a thread.
_QUICK_PAIRS = 20_000
# Item rows that are put into groups in 1 ms.
_QUICK_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class Scored:
    """Items, best first: `rows` int64 (m,) by `scores` float64 (m,), made of `relevance`, NaN where nothing
    ranks by that, and the expected `rating`, float64 (m,) both.
    """

    rows: Int64s
    scores: Float64s
    relevance: Float64s
    rating: Float64s

    def at(self, places: Sequence[int] | Int64s | slice) -> "Scored":
        """Return those at `places`, in that order."""
        return Scored(self.rows[places], self.scores[places], self.relevance[places], self.rating[places])


def joined(parts: Sequence[Scored]) -> Scored:
    """Return all items of `parts`, one after the other."""
    columns = zip(*((part.rows, part.scores, part.relevance, part.rating) for part in parts), strict=True)
    rows, scores, relevance, rating = map(np.concatenate, columns)
    return Scored(rows, scores, relevance, rating)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How items are ranked for one request. `top(n, exclude, allowed)`: the best `n` without the rows in
    `exclude`, of those that are `allowed` (n_items,), all where None. `vectors(rows)`: of the items, (m, r).
    `floor`: the score that a boost leaves as it is.
    """

    top: Callable[[int, Int64s, Bools | None], Awaitable[Scored]]
    vectors: Callable[[Int64s], Awaitable[Float32s]]
    floor: float


@dataclass(frozen=True, slots=True)
class Applied:
    """Rules on `n_items` rows. `allowed` (n_items,), None where all are; `exclude` int64 (m,); `boosts`:
    factor and mask; `pinned`: rows by position.
    """

    n_items: int
    allowed: Bools | None
    exclude: Int64s
    boosts: Sequence[tuple[float, Bools]]
    pinned: Mapping[int, int]
    trade_off: float | None
    cap: int | None

    @property
    def empty(self) -> bool:
        """Whether no item is allowed."""
        return self.allowed is not None and not self.allowed.any() and not self.pinned


# Makes the mask of a filter.
Mask = Callable[[Filter], Awaitable[Bools]]


async def apply(
    rules: Rules,
    rows: Mapping[bytes, int],
    mask: Mask,
    both: Callable[[Bools, Bools], Bools],
    *,
    n_items: int,
    shown: Bools | None,
    exclude: Int64s,
) -> Applied:
    """Return `rules` on item rows. `rows`: of the ids that they name; `mask` makes that of a filter, `both`
    what two masks pass; `shown` (n_items,): what may be shown at all, None for everything; `exclude`: rows
    that are left out besides.
    """
    barred = {rows[item_id] for item_id in rules.exclude if item_id in rows}
    allowed = shown
    if rules.filter != NO_FILTER:
        passing = await mask(rules.filter)
        allowed = passing if shown is None else both(passing, shown)
    if rules.candidates is not None:
        candidates = np.zeros(n_items, dtype=np.bool_)
        some = np.array([rows[item_id] for item_id in rules.candidates if item_id in rows], dtype=np.int64)
        candidates[some[some < n_items]] = True
        allowed = candidates if allowed is None else allowed & candidates
    pinned = {
        position: rows[item_id]
        for position, item_id in rules.pinned
        if item_id in rows and rows[item_id] < n_items and rows[item_id] not in barred
        # An editor's choice stands whatever the filter says, but nothing hidden is ever shown.
        if shown is None or shown[rows[item_id]]
    }
    exclude = np.concatenate([exclude, np.array(sorted(barred), dtype=np.int64)])
    boosts = [(factor, await mask(passing)) for factor, passing in rules.boosts]
    return Applied(n_items, allowed, exclude, boosts, pinned, rules.trade_off, rules.cap)


class RuledList:
    """The list of one request: `rules` on what `ranking` gives."""

    def __init__(self, rules: Applied, ranking: Ranking, columns: Columns) -> None:
        self._rules = rules
        self._ranking = ranking
        self._columns = columns

    async def first(self, wanted: int) -> Scored:
        """Return the first `wanted` places."""
        pinned = {position: row for position, row in self._rules.pinned.items() if position <= wanted}
        chosen = await self._chosen(wanted - len(pinned))
        if not pinned:
            return chosen
        # They have scores like the others, as a client may show or sort by these.
        mask = np.zeros(self._rules.n_items, dtype=np.bool_)
        mask[list(pinned.values())] = True
        found = await self._ranking.top(len(pinned), np.zeros(0, dtype=np.int64), mask)
        both = joined([chosen, found])
        place = {int(row): number for number, row in enumerate(both.rows)}
        known = {position: place[row] for position, row in pinned.items() if row in place}
        return both.at(np.array(with_pinned(range(len(chosen.rows)), known), dtype=np.int64))

    async def _chosen(self, wanted: int) -> Scored:
        rules, categories = self._rules, self._columns.categories
        # One that is pinned farther behind is in no other place, either.
        exclude = np.concatenate([rules.exclude, np.array(list(rules.pinned.values()), dtype=np.int64)])
        if rules.cap is None and rules.trade_off is None:
            return await self._boosted(wanted, exclude, rules.allowed)
        selection = Selection(wanted, cap=rules.cap, trade_off=rules.trade_off)
        depth = _PER_ITEM * wanted + _SPARE
        parts: list[Scored] = []
        highest = 0.0
        while not selection.full:
            allowed = rules.allowed
            if closed := selection.closed():
                open_rows = ~categories.equals_any(closed, rules.n_items)
                allowed = open_rows if allowed is None else allowed & open_rows
            found = await self._boosted(depth, exclude, allowed)
            if not len(found.rows):
                break
            gains = found.scores - self._ranking.floor
            # Later candidates are measured by the best of the first ones, too.
            highest = highest or max(float(gains.max()), np.finfo(np.float64).tiny)
            vectors = None if rules.trade_off is None else unit(await self._ranking.vectors(found.rows))
            take = partial(selection.take, categories.of(found.rows), gains / highest, vectors)
            taken = take() if wanted * depth <= _QUICK_PAIRS else await asyncio.to_thread(take)
            parts.append(found.at(np.array(taken, dtype=np.int64)))
            # What was passed over had a full category, and is closed in the next round.
            exclude = np.concatenate([exclude, parts[-1].rows])
        return joined(parts) if parts else await self._ranking.top(0, exclude, None)

    async def _boosted(self, n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        """Return the best `n` by their boosted scores."""
        boosts, top = self._rules.boosts, self._ranking.top
        if not boosts:
            return await top(n, exclude, allowed)
        everywhere = np.ones(self._rules.n_items, dtype=np.bool_) if allowed is None else allowed
        group = partial(boost_groups, boosts, everywhere)
        groups = group() if len(everywhere) <= _QUICK_ROWS else await asyncio.to_thread(group)
        floor = self._ranking.floor
        parts = []
        for factor, rows in groups:
            found = await top(n, exclude, rows)
            parts.append(replace(found, scores=floor + factor * (found.scores - floor)))
        if not parts:
            return await top(0, exclude, None)
        both = joined(parts)
        # Scores of 0 are told apart by relevance, as in the ranking itself.
        relevance = np.nan_to_num(both.relevance)
        return both.at(np.lexsort((both.rows, -both.rating, -relevance, -both.scores))[:n])
