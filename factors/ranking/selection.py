"""Chooses how a ranking head is fitted. Invariant: training events decide alone, by lists of a part of them
that was held out.

One setting after the other is moved as long as lists get better (NDCG@100); of recency there is as little
as is as good within a standard error. The fits are short, and go on from each other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Scale, UInt8s
from factors.ranking.blending import blended
from factors.ranking.choices import HoldOut, RankingChoices
from factors.ranking.expected import expected_ratings
from factors.ranking.head import RankingHead
from factors.ranking.held_out import LEAST_WANTED, SHORT, HeldOut, Typed, hold_out
from factors.ranking.neighbours import CoOccurrences, Neighbours, no_neighbours
from factors.ranking.parameters import RankingParameters
from factors.ranking.training import fit_factors, said

# Of fewer events less than a hundred are held out, and chance would choose.
LEAST_EVENTS = 1_000
# Of more events those of random users are looked at, and of the items the most chosen: a minute at most.
_MOST_EVENTS, _MOST_ITEMS = 200_000, 20_000
# Ranks differ little in what they choose; sweeps from nothing, and from the factors of another choice.
_RANK, _FIRST_SWEEPS, _SWEEPS = 48, 8, 3
# Steps of a choice, fine enough that the best of two neighbours is within the error of the best between them.
_RIDGE_STEP, _STEP, _POWER_STEP = 3.0, 2.0, 0.25
# A choice that wants more moves than these gains next to nothing by them.
_MOVES = 3
# From without a sparse term to where the factors hardly count: both predict a 1 where an event is.
_SPARSE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Up to so many items each may be a neighbour of each: 32 MB.
_ALL_NEIGHBOURS = 2_000
# From hardly any to where earlier events hardly count; spans from the latest few to a session.
_BOOSTS, _SPANS = (1.0, 2.0, 4.0, 8.0, 16.0), (2.0, 5.0, 10.0, 20.0)
# 0 leaves ratings out; at 2 they decide more than what is relevant.
_GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# What liked items may cost of plain NDCG.
_COST = 0.005


def choose(
    by_user: Compressed,
    n_items: int,
    how: HoldOut,
    rng: np.random.Generator,
    threads: int = 1,
    *,
    types: Typed | None = None,
) -> tuple[RankingChoices, dict[str, float]]:
    """Return the choices for the events `by_user`, and figures of how they were made. `types`: where there
    are events that are no ratings.
    """
    decided = float(len(by_user.other))
    begin = RankingChoices() if types is None else RankingChoices(types=types.types)
    # A single user is not to be all that is looked at.
    sample, n_items = _sample(by_user.thinned(), n_items, rng)
    if len(sample.other) < LEAST_EVENTS:
        return begin, {}
    held, how = hold_out(sample, how, rng)
    search = _Search(HeldOut.of(sample, n_items, held, rng, types), n_items, threads, begin, types)
    choices = search.weights(search.settings(replace(begin, decided=decided)))
    if how == "latest":
        choices = search.recency(choices)
    # An event of another type has the highest rating.
    scale = Scale(float(sample.value.min()), float(sample.value.max()))
    choices, figures = search.gamma(choices, scale, rng)
    rank, sweeps = RankingChoices().rank, RankingChoices().sweeps
    latest = {"ranking_latest": float(how == "latest")}
    return replace(choices, rank=rank, sweeps=sweeps), {**figures, **latest}


@dataclass(slots=True)
class _Search:
    """The fits of a search, from the choices `begin` on. `factors` and `found` are those of the best choices
    so far.
    """

    held: HeldOut
    n_items: int
    threads: int
    begin: RankingChoices
    typed: Typed | None = None
    together: CoOccurrences = field(init=False)
    factors: tuple[RankingParameters, Float32s] | None = None
    neighbours: Neighbours = field(init=False)

    def __post_init__(self) -> None:
        known = self.held.known
        self.together = CoOccurrences.of(known, self.n_items, said(known, self.begin, self._codes))
        self.neighbours = no_neighbours(self.n_items)

    def settings(self, choices: RankingChoices) -> RankingChoices:
        """Return choices of the sparse term, then of the factors beside it."""
        choices = replace(choices, rank=_RANK, sweeps=_FIRST_SWEEPS)
        self.factors = self._fit(choices)
        choices = replace(choices, sweeps=_SWEEPS)
        dense = self._head(choices, self.factors).dense(self.held.histories, threads=self.threads)
        terms: dict[tuple[int, float], tuple[float, Float64s, Neighbours]] = {}

        most, start = choices.neighbours, choices.neighbour_ridge
        pairs = self.together.nearest(most)

        def sparse(most: int, ridge: float) -> float:
            every = most >= self.n_items
            term = self.together.fit_all(ridge) if every else self.together.fit(pairs, ridge, self.threads)
            weight, quality = self._weighted(dense, term)
            terms[most, ridge] = weight, quality, term
            return float(quality.mean())

        ridge = climb(start, lambda value, up: value * _RIDGE_STEP**up, lambda value: sparse(most, value))
        best = most, ridge
        if most < self.n_items <= _ALL_NEIGHBOURS:
            sparse(self.n_items, ridge)
            if _surely_better(terms[self.n_items, ridge][1], terms[best][1]):
                best = self.n_items, ridge
        weight, _, self.neighbours = terms[best]
        choices = replace(choices, neighbours=best[0], neighbour_ridge=best[1], sparse_weight=weight)
        for name in ("negatives", "ridge"):
            choices = self._moved(choices, name, lambda value, up: value * _STEP**up)
        for name in ("user_power", "item_power"):
            choices = self._moved(choices, name, lambda value, up: value + _POWER_STEP * up)
        dense = self._head(choices, self._best()).dense(self.held.histories, threads=self.threads)
        weight, _ = self._weighted(dense, self.neighbours)
        return replace(choices, sparse_weight=weight)

    @property
    def _codes(self) -> UInt8s | None:
        return None if self.typed is None else self.typed.codes

    def weights(self, choices: RankingChoices) -> RankingChoices:
        """Return choices with the weight of one type after the other moved to where lists are best."""
        if self.typed is None:
            return choices
        events = self.typed.counts(self.held.known)
        for code in sorted(self.typed.open_codes):
            # Of fewer, chance would choose.
            if events[code] >= LEAST_WANTED:
                choices = self._weight_moved(choices, code)
        return choices

    def _weight_moved(self, choices: RankingChoices, code: int) -> RankingChoices:
        found: dict[float, tuple[RankingChoices, tuple[RankingParameters, Float32s]]] = {}

        def measure(value: float) -> float:
            types = (replace(each, weight=value) if each.code == code else each for each in choices.types)
            return self._measured(replace(choices, types=tuple(types)), found, value)

        weight = next(each.weight or 1.0 for each in choices.types if each.code == code)
        best = climb(weight, lambda value, up: value * _RIDGE_STEP**up, measure)
        chosen, self.factors = found[best]
        return chosen

    def _measured(
        self,
        choices: RankingChoices,
        found: dict[float, tuple[RankingChoices, tuple[RankingParameters, Float32s]]],
        value: float,
    ) -> float:
        """Return how good lists are with these choices, and keep the factors with `value`."""
        found[value] = choices, self._fit(choices)
        term = self.neighbours.scaled(choices.sparse_weight)
        return float(self.held.quality(self._relevance(choices, found[value][1], term)).mean())

    def recency(self, choices: RankingChoices) -> RankingChoices:
        """Return choices with as little recency as is as good as the best."""
        qualities = {choices: self._quality(choices)}
        for boost in _BOOSTS:
            for span in _SPANS:
                tried = replace(choices, recency_span=span, recency_boost=boost)
                qualities[tried] = self._quality(tried)
        best = max(qualities, key=lambda choices: float(qualities[choices].mean()))
        # The least boost that is as good within a standard error (Breiman et al., 1984): it costs least where
        # the next event is not what is asked for. None at all where the best one is better by chance.
        allowed = (tried for tried in qualities if not _surely_better(qualities[best], qualities[tried]))
        return next(allowed)

    def gamma(
        self, choices: RankingChoices, scale: Scale, rng: np.random.Generator
    ) -> tuple[RankingChoices, dict[str, float]]:
        """Return choices with the power of the rating whose lists have the largest graded gain among those
        that cost little of plain NDCG, and what it costs and gains.
        """
        held = self.held
        relevance = self._relevance(choices, self._best(), self.neighbours.scaled(choices.sparse_weight))
        rated = held.known if self.typed is None else self.typed.ratings(held.known)
        rating = expected_ratings(rated, self.n_items, held.users, scale, rng)
        if rating is None or scale.low >= scale.high:
            return replace(choices, gamma=0.0), {"ranking_ndcg": float(held.quality(relevance).mean())}
        parts = relevance.astype(np.float64), rating.astype(np.float64)
        plain, graded = {}, {}
        for gamma in _GAMMAS:
            # Where nothing is relevant, relevance decides, as it does in what is served.
            scores = np.where(relevance > 0, blended(*parts, gamma, scale), relevance)
            scores = scores.astype(np.float32)
            graded[gamma] = float(held.quality(scores.copy(), held.gain, SHORT).mean())
            plain[gamma] = float(held.quality(scores).mean())
        cheap = [gamma for gamma in _GAMMAS if plain[gamma] >= (1 - _COST) * plain[0.0]]
        best = max(cheap, key=graded.__getitem__)
        figures = {"ranking_ndcg": plain[best], "ranking_graded": graded[best] / max(graded[0.0], 1e-12)}
        return replace(choices, gamma=best), figures

    def _moved(
        self, choices: RankingChoices, name: str, move: Callable[[float, int], float]
    ) -> RankingChoices:
        """Return choices with `name` moved to where lists are best, and keep the factors that go with it."""
        tried: dict[float, tuple[RankingChoices, tuple[RankingParameters, Float32s]]] = {}

        def measure(value: float) -> float:
            change: dict[str, Any] = {name: value}
            return self._measured(replace(choices, **change), tried, value)

        best, self.factors = tried[climb(getattr(choices, name), move, measure)]
        return best

    def _fit(self, choices: RankingChoices) -> tuple[RankingParameters, Float32s]:
        begin = None if self.factors is None else self.factors[1]
        # All begin alike: a choice must not win by its start.
        rng = np.random.default_rng(1)
        how: dict[str, Any] = {"rng": rng, "begin": begin, "threads": self.threads, "codes": self._codes}
        return fit_factors(self.held.known, self.n_items, choices, **how)

    def _best(self) -> tuple[RankingParameters, Float32s]:
        if self.factors is None:
            raise RuntimeError("no factors were fitted")
        return self.factors

    def _head(
        self,
        choices: RankingChoices,
        factors: tuple[RankingParameters, Float32s],
        term: Neighbours | None = None,
    ) -> RankingHead:
        parameters, items = factors
        span, power = choices.recency_span, choices.recency_boost
        parameters = replace(parameters, recency_span=span, recency_boost=power)
        return RankingHead(parameters, items, term or no_neighbours(self.n_items))

    def _relevance(
        self, choices: RankingChoices, factors: tuple[RankingParameters, Float32s], term: Neighbours
    ) -> Float32s:
        head = self._head(choices, factors, term)
        return head.relevance(self.held.histories, threads=self.threads)

    def _quality(self, choices: RankingChoices) -> Float64s:
        term = self.neighbours.scaled(choices.sparse_weight)
        return self.held.quality(self._relevance(choices, self._best(), term))

    def _weighted(self, dense: Float32s, term: Neighbours) -> tuple[float, Float64s]:
        """Return the best weight of a sparse term beside the relevance `dense`, and its quality."""
        parameters, items = self._best()
        alone = RankingHead(parameters, items, term).sparse(self.held.histories)
        found = {weight: self.held.quality(dense + np.float32(weight) * alone) for weight in _SPARSE_WEIGHTS}
        best = max(found, key=lambda weight: float(found[weight].mean()))
        return best, found[best]


def climb(start: float, move: Callable[[float, int], float], measure: Callable[[float], float]) -> float:
    """Return the value with the highest `measure` that is found from `start` by moves up or down."""
    found = {start: measure(start)}
    for up in (1, -1):
        value = start
        for _ in range(_MOVES):
            value = move(value, up)
            found[value] = measure(value)
            if found[value] < max(found.values()):
                break
        # Where one way is better, the other is not looked at.
        if max(found, key=found.__getitem__) != start:
            break
    return max(found, key=found.__getitem__)


def _surely_better(quality: Float64s, than: Float64s) -> bool:
    """Say whether lists (u,) are better by more than a standard error of the difference."""
    gain = quality - than
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def _sample(by_user: Compressed, n_items: int, rng: np.random.Generator) -> tuple[Compressed, int]:
    """Return events of random users with the most chosen items, renumbered, and how many items these are."""
    users = np.arange(by_user.rows)
    if len(by_user.other) > _MOST_EVENTS:
        order = rng.permutation(users)
        users = np.sort(order[np.cumsum(by_user.counts[order]) <= _MOST_EVENTS])
    taken = np.zeros(by_user.rows, dtype=bool)
    taken[users] = True
    count = np.bincount(by_user.other[taken[by_user.row]], minlength=n_items)
    chosen = np.sort(np.argsort(-count, kind="stable")[: min(_MOST_ITEMS, int((count > 0).sum()))])
    number = np.full(n_items, -1, dtype=np.int64)
    number[chosen] = np.arange(len(chosen))
    keep = taken[by_user.row] & (number[by_user.other] >= 0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(by_user.row[keep], minlength=by_user.rows)[users])])
    entries = Compressed(
        indptr, number[by_user.other[keep]], by_user.value[keep], by_user.time[keep], by_user.source[keep]
    )
    return entries, len(chosen)
