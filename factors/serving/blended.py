"""Top-N by the ranking head and the expected rating together. Invariant: without an index the answer is
exact; with one it is exact among the items that the index finds and those that the sparse term reaches.

What may stand in a list is bounded: the item's relevance times the highest rating of the scale. Candidates
are taken by relevance, and more of them, until no item that is left out can reach the last one of the list;
by an index, more of those in the same lists, as it was measured with these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.model.layout import FloatTable
from factors.model.types import Bools, Float32s, Float64s, Histories, Int32s, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.ranking.blending import best_first, blended, highest_score
from factors.ranking.head import RankingHead
from factors.serving.ivf_index import Index
from factors.serving.mean_table import MeanTable, grown
from factors.serving.posterior_draw import PosteriorDraw
from factors.serving.scoring import Scorer

# Candidates for a list of n by factors alone, at first: with these most lists need no second look.
_PER_ITEM, _SPARE = 3, 50
# So many times as many, where those did not do: about what ten lists of an index of a million items hold.
_MORE = 64


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
        part = slice(offset, None)
        return Blended(self.item_rows[part], self.scores[part], self.relevance[part], self.rating[part])


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
class _Asked:
    """One user: `vector` float64 (r,); `reached` (m,), ascending, the rows that the sparse term adds `added`
    (m,) to.
    """

    head: RankingHead
    vector: Float64s
    reached: Int64s
    added: Float64s

    def dense(self, rows: Int64s) -> Float64s:
        """Return what the factors make of `rows` (m,)."""
        # In float32, as the search multiplies: a bound taken from one must hold in the other.
        return (self.head.items[rows] @ self.vector.astype(np.float32)).astype(np.float64)

    def relevance(self, rows: Int64s) -> Float64s:
        """Return the relevance of `rows` (m,)."""
        return self.with_added(rows, self.dense(rows))

    def with_added(self, rows: Int64s, dense: Float64s) -> Float64s:
        """Return the relevance of `rows` (m,) of which the factors make `dense` (m,)."""
        relevance = dense.copy()
        hit, place = _places(self.reached, rows)
        relevance[hit] += self.added[place]
        return relevance


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Rows (m,) with their relevance (m,), most relevant first; no other row is more relevant than `rest`."""

    rows: Int64s
    relevance: Float64s
    rest: float


Rate = Callable[[Int64s], Float64s]


class BlendedRanker:
    """Ranks the items of one generation for users. `follow` may run beside rankings in another thread."""

    def __init__(self, head: RankingHead, posterior: PosteriorModel, index: Index | None = None) -> None:
        """`index`: of the first rows of the head's factors, if there is one."""
        self._posterior = posterior
        means = MeanTable.of(head.items, slice(0, head.parameters.rank), index)
        self._view = _View(head, head.items, means)

    @property
    def head(self) -> RankingHead:
        """The head with the items as they are now."""
        return self._view.head

    def multiplications(self, events: int, depth: int) -> float:
        """Return about how many multiplications one ranking takes: with a history of so many `events`,
        `depth` items wanted and excluded.
        """
        head, rank = self._view.head, self._view.head.parameters.rank
        reached = len(head.neighbours.item_row) / max(1, len(head.items)) * events
        table = len(head.items) * rank * self._view.means.share(_PER_ITEM * depth + _SPARE)
        return table + (events + rank) * rank * rank + reached * rank

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
        exact: bool = False,
    ) -> list[Blended]:
        """Return the best `n` items for each of `users` (b, user_width) with their `histories`, without the
        item rows in `exclude` (b arrays).

        `scorer`: of the ratings. `allowed` (n_items,): the rows that may be returned; one beyond its end may
        not. With `rng` a draw of each user's vector in the head, and one from the posteriors of the ratings,
        give the order (Thompson sampling); scores, relevance and ratings are the expected ones all the same.
        Fewer than `n` where the table ends. An index is not used where `exact`.
        """
        view, b = self._view, len(users)
        if n < 1 or b == 0:
            return [_nothing() for _ in range(b)]
        head, count = view.head, len(view.head.items)
        excluded = [np.asarray(rows, np.int64) for rows in exclude]
        excluded = [rows[(rows >= 0) & (rows < count)] for rows in excluded]
        # All users of the block at once: a fold-in is a few calls of LAPACK, whose overhead they share.
        expected = head.fold_in_users(histories)
        parts = [histories.part(j, j + 1) for j in range(b)]
        vectors = expected
        if rng is not None:
            pairs = zip(expected, parts, strict=True)
            vectors = np.stack([_drawn(head, part, vector, rng) for vector, part in pairs])
        features = vectors.astype(np.float32)

        depth = _PER_ITEM * n + _SPARE

        def nearest(some: Sequence[int], wanted: int) -> list[Int64s]:
            barred = [excluded[j] for j in some]
            return view.means.best(features[some], wanted, barred, exact=exact, allowed=allowed, within=depth)

        first = nearest(range(b), depth)
        answers = []
        for j, found in enumerate(first):
            asked = _Asked(head, vectors[j], *head.reached(parts[j]))
            rate = partial(_expected, scorer, users[j : j + 1])
            order = rate if rng is None else _draw(self._posterior, scorer, users[j], rng)
            best = self._best(_candidates(asked, found, depth, excluded[j], allowed), n, order)
            more = depth
            while best is None:
                more *= _MORE
                candidates = _candidates(asked, nearest([j], more)[0], more, excluded[j], allowed)
                best = self._best(candidates, n, order)
            if rng is not None:
                # A client reads what is expected; the draw has decided which items, and in which order.
                rows = best.item_rows
                best = self._valued(rows, replace(asked, vector=expected[j]).relevance(rows), rate(rows))
            answers.append(best)
        return answers

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

    def _best(self, candidates: _Candidates, n: int, rate: Rate) -> Blended | None:
        """Return the best `n` of the candidates; None where an item that is none may belong among them."""
        scale, gamma = self._posterior.model.scale, self.head.parameters.gamma
        rows, relevance = candidates.rows, candidates.relevance
        rating = np.zeros(0)
        looked_at = min(len(rows), 2 * n + _SPARE)
        while True:
            # Ratings are what costs most of a candidate, so few are asked for at first.
            rating = np.concatenate([rating, rate(rows[len(rating) : looked_at])])
            found = self._valued(rows[:looked_at], relevance[:looked_at], rating)
            # All that tie with the last of the list.
            high = np.flatnonzero(found.scores >= _nth(found.scores, n))
            some = found.scores[high], found.relevance[high], rating[high], found.item_rows[high]
            order = high[best_first(*some)[:n]]
            left_out = float(relevance[looked_at]) if looked_at < len(rows) else -np.inf
            left_out = max(left_out, candidates.rest)
            last = (-np.inf, -np.inf)
            if len(order) == n:
                last = float(found.scores[order[-1]]), float(found.relevance[order[-1]])
            if left_out == -np.inf or last >= (highest_score(left_out, gamma, scale), left_out):
                return self._valued(found.item_rows[order], found.relevance[order], rating[order])
            # No candidate is left that could settle it: more are wanted.
            if looked_at == len(rows):
                return None
            looked_at = min(len(rows), 2 * looked_at)

    def _valued(self, rows: Int64s, relevance: Float64s, rating: Float64s) -> Blended:
        gamma = self.head.parameters.gamma
        return Blended(
            rows, blended(relevance, rating, gamma, self._posterior.model.scale), relevance, rating
        )


def _candidates(
    asked: _Asked, found: Int64s, depth: int, exclude: Int64s, allowed: Bools | None
) -> _Candidates:
    """Return the rows `found` by factors alone, with those that the sparse term reaches. Fewer than `depth`:
    they are all that is left.
    """
    reached = asked.reached
    if allowed is not None:
        reached = reached[reached < len(allowed)]
        reached = reached[allowed[reached]]
    # Rows that are reached ascend: looking few others up in them takes a fifth of the time of `isin`.
    _, barred = _places(reached, exclude)
    reached = np.delete(reached, barred)
    # A row may be both.
    reached = np.delete(reached, _places(np.sort(found), reached)[0])
    rows = np.concatenate([found, reached])
    dense = asked.dense(rows)
    # What is not reached has no more than its factors say, and all that say more are found.
    rest = -np.inf if len(found) < depth else float(dense[: len(found)].min())
    relevance = asked.with_added(rows, dense)
    order = np.argsort(-relevance, kind="stable")
    return _Candidates(rows[order], relevance[order], rest)


def _places(ascending: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
    """Return which of `rows` (m,) are among distinct `ascending` ones, and the place of each of these."""
    place = np.searchsorted(ascending, rows)
    hit = np.flatnonzero(place < len(ascending))
    hit = hit[ascending[place[hit]] == rows[hit]]
    return hit, place[hit].astype(np.int64)


def _nth(scores: Float64s, n: int) -> float:
    """Return the n-th largest score, -inf where there are fewer."""
    return float(np.partition(scores, len(scores) - n)[len(scores) - n]) if n <= len(scores) else -np.inf


def _nothing() -> Blended:
    return Blended(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(0))


def _expected(scorer: Scorer, user: FloatTable, rows: Int64s) -> Float64s:
    return scorer.rating(user, np.zeros(len(rows), dtype=np.int64), rows)


def _draw(posterior: PosteriorModel, scorer: Scorer, user: FloatTable, rng: np.random.Generator) -> Rate:
    """Return what rates rows by one draw of the user; a row that is not in the table is an unknown item."""
    draw = PosteriorDraw(posterior, user, rng)

    def rate(rows: Int64s) -> Float64s:
        inside = rows < len(scorer.items)
        items = np.where(inside[:, None], scorer.items[np.where(inside, rows, 0)], posterior.prior_item)
        return draw.ratings(items)

    return rate


def _drawn(head: RankingHead, history: Histories, vector: Float64s, rng: np.random.Generator) -> Float64s:
    """Return a draw of a user's vector (r,) round its mean `vector`."""
    values, directions = np.linalg.eigh(head.covariance(history))
    # Rounding may leave an eigenvalue just below 0.
    noise = rng.standard_normal(len(vector)) * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(vector + directions @ noise)
