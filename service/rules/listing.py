"""Makes a list under rules of what a ranking gives.

Invariant: the list is what all items would give that are allowed, not some candidates of them. Boosts are
exact, as items are ranked apart by what multiplies them; so are caps, as the others are ranked again where a
category is full, deeper each time, so that there are few rankings whatever the categories. Diversity alone
chooses among the best candidates, as its definition has it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from factors import Bools, Float32s, Float64s, Int64s
from service.rules.columns import Columns, InThread, ListColumn
from service.rules.filters import NO_FILTER, Filter, known_rows, mask_of_rows
from service.rules.request import Rules
from service.rules.rerank import Selection, boost_groups, unit, with_pinned

# Candidates an item that is wanted, for a list under a cap or with diversity, and at least so many.
_PER_ITEM, _SPARE = 4, 100
# Places of a diverse list that are filled from the same candidates: another number for each page would give
# pages that do not join. Three hundred candidates are found by an index, and few lists go farther.
_BLOCK = 50
# So many times deeper each ranking under a cap: of a million items the sixth has all that have room.
_DEEPER = 8
# Items wanted times candidates, of which each is compared with each in 2 ms; more are in a thread.
_QUICK_PAIRS = 20_000
# Item rows that are put into groups in 1 ms.
_QUICK_ROWS = 200_000
# Candidates whose categories are counted in 1 ms.
_QUICK_CANDIDATES = 1_000

T = TypeVar("T")


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


# The best `n` without the rows of an array, of those that are allowed (n_items,), all where None.
Top = Callable[[int, Int64s, Bools | None], Awaitable[Scored]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """How items are ranked for one request. `vectors(rows)`: of the items, (m, r).
    `floor`: the score that a boost leaves as it is, and that of an item of which nothing is known.
    """

    top: Top
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

    async def passing(wanted: Filter) -> Bools | None:
        """Return which rows pass a filter and may be shown (n_items,), None where all do."""
        if wanted == NO_FILTER:
            return shown
        found = await mask(wanted)
        return found if shown is None else both(found, shown)

    barred = set(known_rows(rules.exclude_items, rows).tolist())
    allowed = await passing(rules.filter)
    if rules.candidate_items is not None:
        candidates = mask_of_rows(known_rows(rules.candidate_items, rows), n_items)
        allowed = candidates if allowed is None else allowed & candidates
    may_pin = await passing(rules.pins_pass) if rules.pinned else shown
    pinned = {
        position: rows[item_id]
        for position, item_id in rules.pinned
        if item_id in rows and rows[item_id] < n_items and rows[item_id] not in barred
        # An editor's choice stands whatever the filter says, but nothing hidden is ever shown.
        if may_pin is None or may_pin[rows[item_id]]
    }
    exclude = np.concatenate([exclude, np.array(sorted(barred), dtype=np.int64)])
    boosts = [(factor, await mask(passing)) for factor, passing in rules.boosts]
    return Applied(n_items, allowed, exclude, boosts, pinned, rules.diversity, rules.per_category)


class RuledList:
    """The list of one request: `rules` on what `ranking` gives. What takes long is done by `in_thread`."""

    def __init__(
        self, rules: Applied, ranking: Ranking, columns: Columns, in_thread: InThread = asyncio.to_thread
    ) -> None:
        self._rules = rules
        self._ranking = ranking
        self._columns = columns
        self._in_thread = in_thread
        # What the last ranking allowed, and its groups: those of a long diverse list allow the same.
        self._groups: tuple[Bools | None, list[tuple[float, Bools]]] | None = None

    async def first(self, wanted: int) -> Scored:
        """Return the first `wanted` places."""
        if self._rules.empty:
            return await self._ranking.top(0, self._rules.exclude, None)
        pinned = {position: row for position, row in self._rules.pinned.items() if position <= wanted}
        chosen = await self._chosen(wanted - len(pinned))
        if not pinned:
            return chosen
        # They have scores like the others, as a client may show or sort by these.
        mask = mask_of_rows(np.array(list(pinned.values())), self._rules.n_items)
        found = await self._ranking.top(len(pinned), np.zeros(0, dtype=np.int64), mask)
        # Lists such as the most loved rank nothing that is not rated.
        unranked = np.setdiff1d(list(pinned.values()), found.rows)
        floor = np.full(len(unranked), self._ranking.floor)
        both = joined([chosen, found, Scored(unranked, floor, np.full(len(unranked), np.nan), floor)])
        place = {int(row): number for number, row in enumerate(both.rows)}
        at = {position: place[row] for position, row in pinned.items()}
        return both.at(np.array(with_pinned(range(len(chosen.rows)), at), dtype=np.int64))

    async def _chosen(self, wanted: int) -> Scored:
        rules = self._rules
        # One that is pinned farther behind is in no other place, either.
        exclude = np.concatenate([rules.exclude, np.array(list(rules.pinned.values()), dtype=np.int64)])
        if rules.cap is None and rules.trade_off is None:
            return await self._boosted(wanted, exclude, rules.allowed)
        selection = Selection(wanted, cap=rules.cap, trade_off=rules.trade_off)
        await self._hold_pinned(selection)
        if rules.trade_off is None:
            return await self._capped(selection, _PER_ITEM * wanted + _SPARE, exclude)
        return await self._diverse(selection, exclude)

    async def _hold_pinned(self, selection: Selection) -> None:
        """Count the items that are pinned, those of later pages too: each page is of the same list."""
        rows = np.array(list(self._rules.pinned.values()), dtype=np.int64)
        if not len(rows):
            return
        vectors = None if self._rules.trade_off is None else unit(await self._ranking.vectors(rows))
        names = await self._read(partial(self._columns.categories.of, rows), quick=True)
        selection.hold(names, vectors)

    async def _diverse(self, selection: Selection, exclude: Int64s) -> Scored:
        """Return what `selection` takes of all items, a block of places after the other, each from the best
        that are left.
        """
        rules, depth, parts, best = self._rules, _PER_ITEM * _BLOCK + _SPARE, list[Scored](), 0.0
        # Under a cap each category has as many candidates for a place as the whole list has for one.
        cap = None if rules.cap is None else _PER_ITEM * rules.cap
        while not selection.full:
            closed = selection.closed()
            candidates = await self._capped(Selection(depth, cap=cap), depth, exclude, closed)
            if not len(candidates.rows):
                break
            gains = candidates.scores - self._ranking.floor
            # The best score of the list is in its first block.
            best = best or max(float(gains.max()), np.finfo(np.float64).tiny)
            parts.append(await self._marginal(selection, candidates, gains / best))
            exclude = np.concatenate([exclude, parts[-1].rows])
            if len(parts[-1].rows) < _BLOCK and not selection.full:
                # Where items have several categories the candidates may be too few: the next best are behind.
                parts.append(await self._capped(selection, depth, exclude))
                break
        return joined(parts) if parts else await self._ranking.top(0, exclude, None)

    async def _capped(
        self, selection: Selection, depth: int, exclude: Int64s, without: Sequence[str] = ()
    ) -> Scored:
        """Return the best items that `selection` has room for, of no category in `without`; the first ranking
        is `depth` deep.
        """
        rules, categories = self._rules, self._columns.categories
        parts: list[Scored] = []
        while not selection.full:
            allowed = rules.allowed
            if closed := [*selection.closed(), *without]:
                passing = partial(_without, categories, closed, allowed, rules.n_items)
                allowed = await self._read(passing, quick=rules.n_items <= _QUICK_ROWS)
            found = await self._boosted(depth, exclude, allowed)
            take = partial(_taken, selection, categories, found)
            parts.append(await self._read(take, quick=len(found.rows) <= _QUICK_CANDIDATES))
            if len(found.rows) < depth:
                # These were all that had room.
                break
            # What was passed over had a full category, and is closed in the next round.
            exclude = np.concatenate([exclude, parts[-1].rows])
            depth = min(_DEEPER * depth, rules.n_items)
        return joined(parts) if parts else await self._ranking.top(0, exclude, None)

    async def _marginal(self, selection: Selection, candidates: Scored, relevance: Float64s) -> Scored:
        """Return what `selection` takes of candidates for a block by marginal relevance."""
        vectors = unit(await self._ranking.vectors(candidates.rows))

        def take() -> Scored:
            names = self._columns.categories.of(candidates.rows)
            taken = selection.take(names, relevance, vectors, _BLOCK)
            return candidates.at(np.array(taken, dtype=np.int64))

        compared = (_BLOCK + selection.n_chosen) * len(candidates.rows)
        return await self._read(take, quick=compared <= _QUICK_PAIRS)

    async def _read(self, compute: Callable[[], T], *, quick: bool) -> T:
        return await self._columns.read(compute, self._in_thread, quick=quick)

    async def _boosted(self, n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        """Return the best `n` by their boosted scores."""
        boosts, top = self._rules.boosts, self._ranking.top
        if not boosts:
            return await top(n, exclude, allowed)
        floor = self._ranking.floor
        parts = []
        for factor, rows in await self._groups_of(allowed):
            found = await top(n, exclude, rows)
            parts.append(replace(found, scores=floor + factor * (found.scores - floor)))
        if not parts:
            return await top(0, exclude, None)
        both = joined(parts)
        # Scores of 0 are told apart by relevance, as in the ranking itself.
        relevance = np.nan_to_num(both.relevance)
        return both.at(np.lexsort((both.rows, -both.rating, -relevance, -both.scores))[:n])

    async def _groups_of(self, allowed: Bools | None) -> list[tuple[float, Bools]]:
        """Return the groups of what is `allowed`, those of the ranking before where that allowed the same."""
        if self._groups is not None and self._groups[0] is allowed:
            for _, rows in self._groups[1]:
                # A ranking remembers what such a mask allows. Not from the first use on, the only one
                # of most lists: it would push out masks of filters, which other calls have.
                rows.flags.writeable = False
            return self._groups[1]
        everywhere = np.ones(self._rules.n_items, dtype=np.bool_) if allowed is None else allowed
        group = partial(boost_groups, self._rules.boosts, everywhere)
        groups = group() if len(everywhere) <= _QUICK_ROWS else await self._in_thread(group)
        self._groups = allowed, groups
        return groups


def _without(categories: ListColumn, closed: Sequence[str], allowed: Bools | None, n: int) -> Bools:
    """Return which of `n` rows are allowed and have no category that is closed (n,)."""
    open_rows = ~categories.equals_any(closed, n)
    return open_rows if allowed is None else allowed & open_rows


def _taken(selection: Selection, categories: ListColumn, found: Scored) -> Scored:
    return found.at(np.array(selection.take(categories.of(found.rows), found.scores, None), dtype=np.int64))


def best_rows(scores: Float64s, n: int) -> Int64s:
    """Return the rows of the `n` largest of `scores` (m,) above -inf, best first, ties by row."""
    rows = np.flatnonzero(scores > -np.inf)
    if 0 < n < len(rows):
        last = np.partition(scores[rows], len(rows) - n)[len(rows) - n]
        rows = rows[scores[rows] >= last]
    return rows[np.argsort(-scores[rows], kind="stable")][:n]
