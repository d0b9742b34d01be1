"""Top-N by the ranking head and the expected rating together. Invariant: without an index the answer is
exact; with one it is exact among the items that the index finds and those that the sparse term reaches.

What may stand in a list is bounded: the item's relevance times the highest rating of the scale. Candidates
are taken by relevance, and more of them, until no item that is left out can reach the last one of the list;
by an index, more of those in the same lists, as it was measured with these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.compiled.loading import Kernel
from factors.model.layout import FloatTable
from factors.model.types import Bools, Float32s, Float64s, Histories, Int32s, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.ranking.blending import best_first, blended, highest_scores
from factors.ranking.half_steps import GramAxes, Solve, solve_rows
from factors.ranking.head import RankingHead
from factors.serving.compiled_lists import CompiledLists, list_loops
from factors.serving.ivf_index import Index
from factors.serving.mean_table import MeanTable, Products, bar, grown, largest, nth_largest, places
from factors.serving.posterior_draw import drawn_relevance, rate_by_draw
from factors.serving.rating_bounds import RatingBounds
from factors.serving.scoring import Scorer

# An index is looked into as for so many items by factors alone for each of a list: sparse term and ratings
# put others into it.
_PER_ITEM = 3
# More than twice as many candidates as are wanted are rated at first: with these many lists need no others.
_SPARE = 50
# So many times as many, where those did not do.
_MORE = 64
# For a draw each item takes as long as so many multiplications.
_PER_DRAW = 100
# Of candidates few ratings are asked for at first, as they cost the most; then of so many times as many.
_RATED_MORE = 8


@dataclass(frozen=True, slots=True)
class Blended:
    """Items, best first: `item_rows` int64 (n,); `scores`, `relevance`, `rating` float64 (n,), the first made
    of the others.
    """

    item_rows: Int64s
    scores: Float64s
    relevance: Float64s
    rating: Float64s

    def behind(self, offset: int) -> "Blended":
        """Return what stands behind the best `offset`."""
        return self.at(slice(offset, None))

    def followed_by(self, other: "Blended") -> "Blended":
        """Return these, then the other ones."""
        return Blended(
            np.concatenate([self.item_rows, other.item_rows]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.relevance, other.relevance]),
            np.concatenate([self.rating, other.rating]),
        )

    def at(self, places: Int64s | slice) -> "Blended":
        """Return those at `places`, in that order."""
        return Blended(
            self.item_rows[places], self.scores[places], self.relevance[places], self.rating[places]
        )


@dataclass(frozen=True, slots=True)
class ExplainedScore:
    """Why an item has its `score`: `base` plus all `contributions` float64 (n,), of the items `item_rows`
    int32 (n,) of a history, is its `relevance`.
    """

    score: float
    relevance: float
    base: float
    item_rows: Int32s
    contributions: Float64s


@dataclass(frozen=True, slots=True)
class _View:
    """What one call ranks: a head, the array whose first rows are its factors, and these by position."""

    head: RankingHead
    table: Float32s
    means: MeanTable


@dataclass(frozen=True, slots=True)
class _Reached:
    """The rows (m,), ascending, that the sparse term adds `added` float64 (m,) to the relevance of."""

    rows: Int64s
    added: Float64s

    def only(self, exclude: Int64s, allowed: Bools | None) -> "_Reached":
        """Return those that are not in `exclude` and are `allowed`."""
        keep = np.ones(len(self.rows), dtype=np.bool_)
        keep[places(self.rows, exclude)[1]] = False
        if allowed is not None:
            inside = self.rows < len(allowed)
            keep &= inside
            keep[inside] &= allowed[self.rows[inside]]
        return _Reached(self.rows[keep], self.added[keep])

    def add(self, relevance: Float64s, rows: Int64s) -> None:
        """Add to the `relevance` (m,) of `rows` (m,)."""
        hit, place = places(self.rows, rows)
        relevance[hit] += self.added[place]


Rate = Callable[[Int64s], Float64s]


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of `top` is asked: of each user (b,) the row, the features in the head, what the history
    `said`, and what to `exclude`; the other arguments.
    """

    view: _View
    scorer: Scorer
    users: FloatTable
    features: Float32s
    said: list[tuple[Int64s, Float64s]]
    n: int
    exclude: list[Int64s]
    allowed: Bools | None
    bounds: RatingBounds | None

    def rate(self, j: int, rows: Int64s) -> Float64s:
        """Return the expected ratings of `rows` (m,) by the j-th user."""
        return self.scorer.rating(self.users[j : j + 1], np.zeros(len(rows), dtype=np.int64), rows)


class BlendedRanker:
    """Ranks the items of one generation for users. `follow` may run beside rankings in another thread."""

    def __init__(
        self,
        head: RankingHead,
        posterior: PosteriorModel,
        index: Index | None = None,
        *,
        loops: Mapping[Kernel, Kernel] | None = None,
    ) -> None:
        """`index`: of the first rows of the head's factors, if there is one. With it `loops` find candidates,
        without any numpy does; None: those that numba compiles.
        """
        self._posterior = posterior
        self._compiled: CompiledLists | None = None
        if index is not None and (found := list_loops() if loops is None else loops):
            self._compiled = CompiledLists.of(posterior, head.parameters.gamma, found)
        # How the head folds histories in.
        self.solve: Solve
        if self._compiled is None:
            self.solve = partial(solve_rows, known=GramAxes.of(head.parameters.user_gram))
        else:
            self.solve = self._compiled.solve
        means = MeanTable.of(head.items, slice(0, head.parameters.rank), index)
        self._view = _View(head, head.items, means)

    @property
    def head(self) -> RankingHead:
        """The head with the items as they are now."""
        return self._view.head

    def multiplications(
        self, events: int, n: int, excluded: int, allowed: Bools | None = None, *, sampled: bool = False
    ) -> float:
        """Return about how many multiplications one ranking takes: with a history of so many `events`, `n`
        items wanted and so many `excluded`, of those `allowed`, by a draw where `sampled`.
        """
        head, rank = self._view.head, self._view.head.parameters.rank
        reached = len(head.neighbours.item_row) / max(1, len(head.items)) * events
        if sampled:
            table = float(len(head.items) * (rank + _PER_DRAW))
        else:
            table = len(head.items) * rank * self._view.means.share(_PER_ITEM * n + excluded, allowed)
        # Along the axes of the prior a short history inverts a matrix of its own size.
        folded = events * (rank + events) if 2 * events <= rank else (events + rank) * rank
        return table + folded * rank + reached * rank

    def with_room(self, n_items: int) -> RankingHead:
        """Return the head with at least `n_items`; new ones, of which nothing is known, are relevant to no
        user. Copies the factors where there is no room.
        """
        view, before = self._view, len(self._view.head.items)
        if n_items <= before:
            return view.head
        # The first rows may be a file that is mapped, which has no room; the copy has an eighth to spare.
        table = view.table if n_items <= len(view.table) else grown(view.head.items, n_items)
        # Kept although it is not ranked by yet: the room is there when the next item comes.
        self._view = replace(view, table=table)
        neighbours = view.head.neighbours
        # An item that came after the fit says nothing of others, but may stand in a history.
        ends = np.full(n_items - before, neighbours.indptr[-1], dtype=np.int64)
        neighbours = replace(neighbours, indptr=np.concatenate([neighbours.indptr, ends]))
        return replace(view.head, items=table[:n_items], neighbours=neighbours)

    def follow(self, rows: npt.NDArray[np.integer[Any]], head: RankingHead) -> None:
        """Rank by `head`, made by `with_room`, in which the factors of `rows` (m,) are others than before."""
        view = self._view
        changed = np.union1d(np.asarray(rows, np.int64), np.arange(len(view.head.items), len(head.items)))
        # One assignment makes the new state visible: a call that runs has taken the one before.
        self._view = replace(view, head=head, means=view.means.updated(head.items, changed))

    def top(
        self,
        scorer: Scorer,
        users: FloatTable,
        histories: Histories,
        n: int,
        exclude: Sequence[npt.NDArray[np.integer[Any]]],
        *,
        allowed: Bools | None = None,
        rng: np.random.Generator | None = None,
        events: Float64s | None = None,
        bounds: RatingBounds | None = None,
        recency: float | None = None,
    ) -> list[Blended]:
        """Return the best `n` items for each of `users` (b, user_width) with their `histories`, without the
        item rows in `exclude` (b arrays).

        `scorer`: of the ratings. `allowed` (n_items,): the rows that may be returned; one beyond its end may
        not. With `rng` draws of each user's vector in the head, of how relevant items are that have so few
        `events` (n_items,), ratings and others, and of the ratings give the order (Thompson sampling);
        scores, relevance and ratings are the expected ones all the same. Fewer than `n` where the table ends.
        An index is not used for a draw. `bounds`: of the ratings that `scorer` gives. `recency`: in the place
        of the head's `recency_boost`.
        """
        view, b = self._view, len(users)
        if n < 1 or b == 0:
            return [_nothing() for _ in range(b)]
        head, count = view.head.with_recency(recency), len(view.head.items)
        excluded = [np.asarray(rows, np.int64) for rows in exclude]
        excluded = [rows[(rows >= 0) & (rows < count)] for rows in excluded]
        # All users of the block at once: a fold-in is a few calls of LAPACK, whose overhead they share.
        expected, said = head.fold_in_events(histories, self.solve)
        vectors = expected if rng is None else _drawn(head, histories, expected, rng)
        call = _Call(view, scorer, users, vectors.astype(np.float32), said, n, excluded, allowed, bounds)
        if rng is not None:
            return [self._by_draw(call, j, expected[j], rng, events) for j in range(b)]
        answers: list[Blended | None] = [None] * b
        if bounds is not None:
            answers = [self._quickly(call, j) for j in range(b)]
        if all(answer is not None for answer in answers):
            return [answer for answer in answers if answer is not None]
        left = [j for j, answer in enumerate(answers) if answer is None]
        features, without = call.features[left], [excluded[j] for j in left]
        depth = _PER_ITEM * n
        looked_at = view.means.products(features, depth, without, allowed=allowed, spare=_SPARE)
        for j, products in zip(left, looked_at, strict=True):
            answers[j] = self._slowly(call, j, products)
        return [answer for answer in answers if answer is not None]

    def top_within(
        self,
        scorer: Scorer,
        user: FloatTable,
        history: Histories,
        n: int,
        exclude: Int64s,
        *,
        most: int,
        allowed: Bools,
        bounds: RatingBounds,
        recency: float | None = None,
    ) -> Blended | None:
        """Return what `top` does for one `user` (1, user_width), if at most `most` items are to be looked at
        for it by compiled loops, and it is remembered what the mask allows; None where not.
        """
        view = self._view
        if self._compiled is None or n < 1 or view.means.known(allowed) is None:
            return None
        expected, said = view.head.with_recency(recency).fold_in_events(history, self.solve)
        without = exclude[(exclude >= 0) & (exclude < len(view.head.items))]
        features = expected.astype(np.float32)
        call = _Call(view, scorer, user, features, said, n, [without], allowed, bounds)
        return self._quickly(call, 0, most)

    def _quickly(self, call: "_Call", j: int, most: int | None = None) -> Blended | None:
        """Return the list of the j-th user by compiled loops; None where there are none, too little was
        looked at, or more than `most` items would be.
        """
        n, exclude, bounds = call.n, call.exclude[j], call.bounds
        if self._compiled is None or bounds is None:
            return None
        found = self._compiled.find(
            *(call.view.means, call.view.head.neighbours, call.features[j], call.said[j]),
            user=call.users[j],
            bounds=bounds,
            n=n,
            exclude=exclude,
            least=_PER_ITEM * n + len(exclude),
            some=2 * n + _SPARE,
            allowed=call.allowed,
            most=most,
        )
        if found is None:
            return None
        rows, relevance, rest = found
        rated = self._valued(rows, relevance, call.rate(j, rows))
        best = rated.at(best_first(rated.scores, rated.relevance, rated.rating, rated.item_rows)[:n])
        return best if len(best.scores) == n and best.scores[-1] > rest else None

    def _slowly(self, call: "_Call", j: int, products: Products) -> Blended:
        """Return the list of the j-th user, of whom `products` were looked at, in numpy."""
        view, n, features, rate = call.view, call.n, call.features[j], partial(call.rate, j)
        reached = _Reached(*view.head.neighbours.reached(*call.said[j]))
        bounded = None if call.bounds is None else partial(call.bounds.highest, call.users[j])
        own = reached.only(call.exclude[j], call.allowed)
        found = _with_reached(view.means, products, features, own)
        best, more = self._best(view.means, found, n, rate, bounded), _PER_ITEM * n
        while best is None:
            more *= _MORE
            some = features[None], more, [call.exclude[j]]
            (deeper,) = view.means.products(*some, exact=True, allowed=call.allowed)
            found = _with_reached(view.means, deeper, features, own)
            best = self._best(view.means, found, n, rate, bounded)
        return best

    def _by_draw(
        self,
        call: "_Call",
        j: int,
        expected: Float64s,
        rng: np.random.Generator,
        events: Float64s | None,
    ) -> Blended:
        """Return the list of the j-th user by a draw, its features in `call`; `expected` (r,) are the others.
        All items are looked at.
        """
        view, count = call.view, len(call.view.head.items)
        reached = _Reached(*view.head.neighbours.reached(*call.said[j]))
        relevance = np.asarray(view.head.items @ call.features[j], np.float64)
        relevance[reached.rows] += reached.added
        if events is not None:
            # One that came meanwhile has none.
            each = np.concatenate([events[:count], np.zeros(max(0, count - len(events)))])
            relevance = drawn_relevance(relevance, each, rng)
        relevance[call.exclude[j]] = -np.inf
        bar(relevance, call.allowed)
        every = Products(view.means.positions[:count].astype(np.int64), relevance)
        best = self._best(
            view.means, every, call.n, rate_by_draw(self._posterior, call.scorer, call.users[j], rng)
        )
        # Nothing is left out that might belong into the list.
        assert best is not None
        # A client reads what is expected; the draw has decided which items, and in which order.
        rows = best.item_rows
        relevance = view.means.of_rows(expected.astype(np.float32), rows).astype(np.float64)
        reached.add(relevance, rows)
        return self._valued(rows, relevance, call.rate(j, rows))

    def explain(self, history: Histories, item_row: int, rating: float) -> ExplainedScore:
        """Return why an item with this expected `rating` has its score for the user with this one `history`.

        Nothing is known of a row that is negative or beyond the table: it is relevant to no user.
        """
        base, rows, contributions = 0.0, np.zeros(0, dtype=np.int32), np.zeros(0)
        if 0 <= item_row < len(self.head.items):
            base, rows, contributions = self.head.explain(history, item_row)
        relevance = base + float(contributions.sum())
        score = self._valued(np.array([item_row]), np.array([relevance]), np.array([rating])).scores[0]
        return ExplainedScore(float(score), relevance, base, rows, contributions)

    def contributions(self, history: Histories, item_rows: Int64s) -> tuple[Int32s, Float64s]:
        """Return the items of the user's one `history` (n,), and what each adds to the relevance of items
        `item_rows` (m,): (n, m); nothing to one of which nothing is known.
        """
        known = (item_rows >= 0) & (item_rows < len(self.head.items))
        _, rated, parts = self.head.contributions(history, item_rows[known])
        found = np.zeros((len(rated), len(item_rows)))
        found[:, known] = parts
        return rated, found

    def _best(
        self, means: MeanTable, candidates: Products, n: int, rate: Rate, bound: Rate | None = None
    ) -> Blended | None:
        """Return the best `n` of the candidates, whose values are their relevance; None where an item that is
        none may belong among them.
        """
        scale, gamma = self._posterior.model.scale, self.head.parameters.gamma
        relevance = np.asarray(candidates.values, np.float64)
        some = 2 * n + _SPARE
        # In no order: a third of the time of `largest`.
        chosen = (
            np.argpartition(relevance, -some)[-some:] if some < len(relevance) else np.arange(len(relevance))
        )
        chosen = chosen[relevance[chosen] > -np.inf]
        rows = means.rows_at(candidates.positions[chosen])
        found = self._valued(rows, relevance[chosen], rate(rows))
        order, last = _first(found, n)
        able = highest_scores(relevance, gamma, scale) >= max(last[0], 0.0)
        able &= relevance > -np.inf
        able[chosen] = False
        left = np.flatnonzero(able)
        left_rows = means.rows_at(candidates.positions[left])
        # Of each that is left, the highest score that it may have: as tight as its rating is bounded.
        limits = np.full(len(left), scale.high) if bound is None or not len(left) else bound(left_rows)
        highest = self._valued(left_rows, relevance[left], limits)
        while True:
            # What may stand before the last one of the list.
            level = (highest.scores == last[0]) & (highest.relevance >= last[1])
            able = (highest.scores > last[0]) | level
            if not able.any():
                rest = np.array([candidates.rest])
                settled = candidates.rest == -np.inf or last >= (
                    float(highest_scores(rest, gamma, scale)[0]),
                    candidates.rest,
                )
                return found.at(order) if settled else None
            highest, some = highest.at(np.flatnonzero(able)), some * _RATED_MORE
            more = largest(highest.scores, some)
            news = self._valued(
                highest.item_rows[more], highest.relevance[more], rate(highest.item_rows[more])
            )
            highest = highest.at(np.delete(np.arange(len(highest.scores)), more))
            found = found.at(order).followed_by(news)
            order, last = _first(found, n)

    def _valued(self, rows: Int64s, relevance: Float64s, rating: Float64s) -> Blended:
        gamma = self.head.parameters.gamma
        return Blended(
            rows, blended(relevance, rating, gamma, self._posterior.model.scale), relevance, rating
        )


def _with_reached(means: MeanTable, products: Products, user: Float32s, reached: _Reached) -> Products:
    """Return what was looked at for the features `user` (r,), with all that the sparse term reaches, in no
    order and in float64.
    """
    positions, relevance = products.positions, products.values.astype(np.float64)
    own = means.positions[reached.rows].astype(np.int64)
    hit, place = places(positions, own)
    relevance[place] += reached.added[hit]
    # What was not looked at and is not reached has no more than its factors say.
    apart = np.delete(np.arange(len(own)), hit)
    others = means.of_rows(user, reached.rows[apart]) + reached.added[apart]
    both = np.concatenate([positions, own[apart]]), np.concatenate([relevance, others])
    return Products(*both, products.rest)


def _first(found: Blended, n: int) -> tuple[Int64s, tuple[float, float]]:
    """Return the order of the best `n` of what was `found`, and score and relevance of the last of them; -inf
    where there are fewer.
    """
    # All that tie with the last of the list.
    high = np.flatnonzero(found.scores >= nth_largest(found.scores, n))
    tied = found.at(high)
    order = high[best_first(tied.scores, tied.relevance, tied.rating, tied.item_rows)[:n]]
    if len(order) < n:
        return order, (-np.inf, -np.inf)
    return order, (float(found.scores[order[-1]]), float(found.relevance[order[-1]]))


def _nothing() -> Blended:
    return Blended(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(0))


def _drawn(head: RankingHead, histories: Histories, vectors: Float64s, rng: np.random.Generator) -> Float64s:
    """Return a draw of the vector of each user (b, r) round its mean in `vectors` (b, r)."""
    drawn = np.empty_like(vectors)
    for j, vector in enumerate(vectors):
        values, directions = np.linalg.eigh(head.covariance(histories.part(j, j + 1)))
        # Rounding may leave an eigenvalue just below 0.
        noise = rng.standard_normal(len(vector)) * np.sqrt(np.maximum(values, 0.0))
        drawn[j] = vector + directions @ noise
    return drawn
