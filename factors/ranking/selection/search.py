"""Chooses how a ranking head is fitted. Invariant: training events decide alone, by lists of a part of them
that was held out.

One setting after the other is moved as long as lists get better (NDCG@100) at finding the latest events.
Recency may cost little of finding events of any time, and of that much there is as little as is as good
within a standard error. How much expected ratings count is chosen by events of any time, and may cost little
of finding the latest. The fits are short, and go on from each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np

from factors.inference.backend import MANY_RATINGS
from factors.inference.histories import Compressed
from factors.model.types import Bools, Float32s, Float64s, Int64s, Scale, UInt8s
from factors.ranking.blending import blended
from factors.ranking.neighbours import Neighbours, no_neighbours
from factors.ranking.parameters import RankingChoices, RankingParameters
from factors.ranking.regressions import regressions
from factors.ranking.selection.expected import expected_ratings
from factors.ranking.selection.held_out import LEAST_WANTED, SHORT, HeldOut, Typed, hold_out
from factors.ranking.selection.lists import Lists
from factors.ranking.selection.succession import surely_better
from factors.ranking.training import fit_factors, fit_sparse, said
from factors.ranking.type_weights import kept

# Of fewer events less than a hundred are held out, and chance would choose.
LEAST_EVENTS = 1_000
# Of more events those of random users are looked at, and of the items the most chosen: a minute at most. The
# cosines of so many items take 100 MB: compiled loops do with them in seconds what else takes minutes.
_MOST_EVENTS, _MOST_ITEMS = 200_000, 10_000
# Ranks differ little in what they choose; sweeps from nothing, and from the factors of another choice.
_RANK, _FIRST_SWEEPS, _SWEEPS = 48, 8, 3
# Sweeps of all events from the factors of the items that were looked at, which dimensions and items are added
# to: lists are as after twelve from nothing. Where nearly all events were looked at, they are so after one.
_SWEEPS_OF_ALL, _SWEEPS_OF_SAME, _NEARLY_ALL = 4, 2, 0.95
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
# What counting ratings may cost of the highest NDCG at events of any time, which it may raise, too.
_COST = 0.005
# What recency may cost at events of any time, and counting ratings at the latest: each helps at the other.
_COST_OF_RECENCY, _COST_OF_RATINGS = 0.015, 0.015

Factors = tuple[RankingParameters, Float32s]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen, and `figures` of it. `begin` (n_items, r): factors of the items that were looked at, 0
    of others, which a fit of all events goes on from; None of too few events to choose by.
    """

    choices: RankingChoices
    figures: dict[str, float] = field(default_factory=dict)
    begin: Float32s | None = None


def choose(
    by_user: Compressed,
    n_items: int,
    rng: np.random.Generator,
    threads: int = 1,
    *,
    types: Typed | None = None,
    rated: bool = True,
) -> Chosen:
    """Return the choices for the events `by_user`. `types`: where there are events that are no ratings.
    `rated`: whether expected ratings may play a part in lists.
    """
    decided, every = float(len(by_user.other)), n_items <= _ALL_NEIGHBOURS
    begin = RankingChoices() if types is None else RankingChoices(types=types.types)
    # A single user is not to be all that is looked at.
    sample, items = _sample(by_user.thinned(), n_items, rng)
    if len(sample.other) < LEAST_EVENTS:
        return Chosen(begin)
    random, latest = hold_out(sample, rng)
    # The loops are compiled for the fit of all events anyway.
    compiled = len(by_user.other) >= MANY_RATINGS

    def search_of(held: Bools) -> _Search:
        sets = HeldOut.of(sample, len(items), held, rng, types)
        return _Search(sets, len(items), threads, begin, types, compiled, every)

    search = search_of(random if latest is None else latest)
    if latest is not None and not len(search.held.users):
        # The latest events of all were shown alone, or unwanted.
        latest, search = None, search_of(random)
    anytime = search if latest is None else search_of(random)
    if not len(anytime.held.users):
        return Chosen(begin)
    choices = search.weights(search.settings(replace(begin, decided=decided)))
    if latest is not None:
        choices = search.recency(choices, anytime)
    # An event of another type has the highest rating.
    low = float(sample.value.min())
    scale = Scale(low, float(sample.value.max()) if rated else low)
    rated_anytime = anytime.rated(choices, scale, rng)
    rated_latest = rated_anytime[0] if latest is None else search.rated(choices, scale, rng)[0]
    gamma, figures = _best_power(rated_anytime, rated_latest)
    choices = replace(choices, gamma=gamma)
    figures["ranking_latest"] = float(latest is not None)
    own = search.best()[1]
    factors = np.zeros((n_items, own.shape[1]), np.float32)
    factors[items] = own
    sweeps = _SWEEPS_OF_SAME if len(sample.other) >= _NEARLY_ALL * decided else _SWEEPS_OF_ALL
    return Chosen(replace(choices, rank=begin.rank, sweeps=sweeps), figures, factors)


@dataclass(slots=True)
class _Search:
    """The fits of a search, from the choices `begin` on. `factors` and `found` are those of the best choices
    so far; `compiled`: by loops; `every`: whether each item of the catalogue may be a neighbour of each.
    """

    held: HeldOut
    n_items: int
    threads: int
    begin: RankingChoices
    typed: Typed | None = None
    compiled: bool = False
    every: bool = True
    lists: Lists = field(init=False)
    factors: Factors | None = None
    neighbours: Neighbours = field(init=False)

    def __post_init__(self) -> None:
        self.lists = Lists(self.held, self.n_items, self.threads, self.compiled)
        self.neighbours = no_neighbours(self.n_items)

    def settings(self, choices: RankingChoices) -> RankingChoices:
        """Return choices of the sparse term, then of the factors beside it."""
        choices = replace(choices, rank=_RANK, sweeps=_FIRST_SWEEPS)
        self.factors = self._fit(choices)
        choices = replace(choices, sweeps=_SWEEPS)
        most, known, how = choices.neighbours, self.held.known, self._how
        found = regressions(known, self.n_items, said(known, self.begin, self._codes), most=most, **how)
        terms: dict[tuple[int, float], tuple[float, Float64s, Neighbours]] = {}

        def sparse(most: int, ridge: float) -> float:
            term = (found.fit_all if most >= self.n_items else found.fit)(ridge)
            weight, quality = self._weighted(choices, term)
            terms[most, ridge] = weight, quality, term
            return float(quality.mean())

        start = choices.neighbour_ridge
        ridge = climb(start, lambda value, up: value * _RIDGE_STEP**up, lambda value: sparse(most, value))
        best = most, ridge
        if self.every and most < self.n_items:
            # More than are looked at here: the fit has items that are not rated yet.
            sparse(_ALL_NEIGHBOURS, ridge)
            if surely_better(terms[_ALL_NEIGHBOURS, ridge][1], terms[best][1]):
                best = _ALL_NEIGHBOURS, ridge
        weight, _, self.neighbours = terms[best]
        choices = replace(choices, neighbours=best[0], neighbour_ridge=best[1], sparse_weight=weight)
        for name in ("negatives", "ridge"):
            change = partial(_changed, choices, name)
            choices = self._moved(getattr(choices, name), lambda value, up: value * _STEP**up, change)
        for name in ("user_power", "item_power"):
            change = partial(_changed, choices, name)
            choices = self._moved(getattr(choices, name), lambda value, up: value + _POWER_STEP * up, change)
        weight, _ = self._weighted(choices, self.neighbours)
        return replace(choices, sparse_weight=weight)

    @property
    def _codes(self) -> UInt8s | None:
        return None if self.typed is None else self.typed.codes

    @property
    def _how(self) -> dict[str, Any]:
        return {"threads": self.threads, "compiled": self.compiled}

    def weights(self, choices: RankingChoices) -> RankingChoices:
        """Return choices with the weight of one type after the other moved to where lists are best."""
        if self.typed is None:
            return choices
        events = self.typed.counts(self.held.known)
        for code in sorted(self.typed.open_codes):
            # Of fewer, chance would choose.
            if events[code] >= LEAST_WANTED:
                weight = next(each.weight or 1.0 for each in choices.types if each.code == code)
                change = partial(_weighed, choices, code)
                choices = self._moved(weight, lambda value, up: value * _RIDGE_STEP**up, change)
        return choices

    def recency(self, choices: RankingChoices, anytime: "_Search") -> RankingChoices:
        """Return choices with as little recency as is as good as the best that costs little: `anytime` is a
        search whose events were held out of any time.
        """
        factors = self.best()
        found = {choices: self._quality(choices, factors)}
        for span in _SPANS:
            before = found[choices]
            for boost in _BOOSTS:
                tried = replace(choices, recency_span=span, recency_boost=boost)
                found[tried] = self._quality(tried, factors)
                # More of what makes lists worse is not looked at.
                if found[tried].mean() < before.mean():
                    break
                before = found[tried]
        # Lists get worse by it for users whose next events are unlike their last ones.
        cost = anytime.costs(choices)
        least_first = sorted(found, key=lambda each: each.recency_boost)
        best_first = sorted(least_first, key=lambda each: -float(found[each].mean()))
        best = next(tried for tried in best_first if cost(tried) <= _COST_OF_RECENCY)
        # The least boost that is as good within a standard error (Breiman et al., 1984): it costs least where
        # the next event is not what is asked for. None at all where the best one is better by chance.
        allowed = (tried for tried in least_first if not surely_better(found[best], found[tried]))
        return next(tried for tried in allowed if cost(tried) <= _COST_OF_RECENCY)

    def costs(self, choices: RankingChoices) -> Callable[[RankingChoices], float]:
        """Return what says which part of the quality of lists is lost by other choices than these, which have
        the same factors. Fits these.
        """
        factors = self.factors = self._fit(replace(choices, sweeps=_FIRST_SWEEPS))
        known = self.held.known, self.n_items, choices
        self.neighbours = fit_sparse(*known, codes=self._codes, **self._how)
        plain = max(float(self._quality(choices, factors).mean()), 1e-12)

        @cache
        def cost(other: RankingChoices) -> float:
            return 0.0 if other == choices else 1 - float(self._quality(other, factors).mean()) / plain

        return cost

    def rated(
        self, choices: RankingChoices, scale: Scale, rng: np.random.Generator
    ) -> tuple[dict[float, Float64s], dict[float, Float64s]]:
        """Return the plain NDCG (u,) and the graded gain (u,) of lists by each power of the expected rating;
        of none alone where ratings tell nothing.
        """
        held, relevance, rating = self.held, self._relevance(choices, self.best()), None
        rated = held.known if self.typed is None else self.typed.ratings(held.known)
        if scale.low < scale.high:
            rating = expected_ratings(rated, self.n_items, held.users, scale, rng, **self._how)
        gammas = _GAMMAS if rating is not None else (0.0,)

        def scores(rows: slice) -> Iterator[Float32s]:
            plain = relevance(rows)
            expected = None if rating is None else rating(rows)
            for gamma in gammas:
                score = plain if expected is None else blended(plain, expected, gamma, scale)
                # Where nothing is relevant, relevance decides, as it does in what is served.
                yield np.where(plain > 0, score, plain).astype(np.float32)

        places = dict(zip(gammas, self.lists.places(scores), strict=True))
        plain = {gamma: held.gained(each) for gamma, each in places.items()}
        return plain, {gamma: held.gained(each, held.gain, SHORT) for gamma, each in places.items()}

    def _moved(
        self, start: float, move: Callable[[float, int], float], change: Callable[[float], RankingChoices]
    ) -> RankingChoices:
        """Return the choices of the value with which lists are best, and keep the factors that go with it."""
        tried: dict[float, tuple[RankingChoices, Factors]] = {}

        def measure(value: float) -> float:
            choices = change(value)
            tried[value] = choices, self._fit(choices)
            return float(self._quality(*tried[value]).mean())

        best, self.factors = tried[climb(start, move, measure)]
        return best

    def _fit(self, choices: RankingChoices) -> Factors:
        begin = None if self.factors is None else self.factors[1]
        # All begin alike: a choice must not win by its start.
        rng = np.random.default_rng(1)
        known = self.held.known, self.n_items, choices
        return fit_factors(*known, rng=rng, begin=begin, codes=self._codes, **self._how)

    def best(self) -> Factors:
        """Return the factors of the best choices so far."""
        if self.factors is None:
            raise RuntimeError("no factors were fitted")
        return self.factors

    def _relevance(self, choices: RankingChoices, factors: Factors) -> Callable[[slice], Float32s]:
        """Return what gives the relevance of all items to a block of users (b, n_items)."""
        users, told, weight = (
            self.lists.users(choices, *factors),
            self.lists.said(choices),
            choices.sparse_weight,
        )
        term, items = self.neighbours.scaled(weight), factors[1]
        return lambda rows: users[rows] @ items.T + self.lists.sparse(term, told, rows)

    def _quality(self, choices: RankingChoices, factors: Factors) -> Float64s:
        relevance = self._relevance(choices, factors)
        (quality,) = self.lists.qualities(lambda rows: [relevance(rows)])
        return quality

    def _weighted(self, choices: RankingChoices, term: Neighbours) -> tuple[float, Float64s]:
        """Return the best weight of what a sparse term says beside the factors, and its quality."""
        users, told = self.lists.users(choices, *self.best()), self.lists.said(choices)
        items = self.best()[1]

        def scores(rows: slice) -> Iterator[Float32s]:
            dense, sparse = users[rows] @ items.T, self.lists.sparse(term, told, rows)
            for weight in _SPARSE_WEIGHTS:
                yield dense + np.float32(weight) * sparse

        found = dict(zip(_SPARSE_WEIGHTS, self.lists.qualities(scores), strict=True))
        best = max(found, key=lambda weight: float(found[weight].mean()))
        return best, found[best]


def _changed(choices: RankingChoices, name: str, value: float) -> RankingChoices:
    change: dict[str, Any] = {name: value}
    return replace(choices, **change)


def _weighed(choices: RankingChoices, code: int, weight: float) -> RankingChoices:
    types = (replace(each, weight=weight) if each.code == code else each for each in choices.types)
    return replace(choices, types=tuple(types))


def _best_power(
    anytime: tuple[dict[float, Float64s], dict[float, Float64s]], latest: dict[float, Float64s]
) -> tuple[float, dict[str, float]]:
    """Return the power of the expected rating whose lists of events of any time have the largest graded gain
    among those that cost little, and figures of these lists. `anytime`: as `rated` tells them; `latest`: the
    plain NDCG of lists of the latest events.
    """
    plain, graded = anytime
    mean = {gamma: float(each.mean()) for gamma, each in plain.items()}
    least = (1 - _COST_OF_RATINGS) * float(latest[0.0].mean())
    cheap = [
        gamma
        for gamma in mean
        if mean[gamma] >= (1 - _COST) * max(mean.values()) and latest.get(gamma, latest[0.0]).mean() >= least
    ] or [0.0]
    best = max(cheap, key=lambda gamma: float(graded[gamma].mean()))
    # The least that is as good within a standard error, as for recency: it changes lists least.
    chosen = next(gamma for gamma in cheap if not surely_better(graded[best], graded[gamma]))
    gain = float(graded[chosen].mean()) / max(float(graded[0.0].mean()), 1e-12)
    return chosen, {"ranking_ndcg": mean[chosen], "ranking_graded": gain}


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


def _sample(by_user: Compressed, n_items: int, rng: np.random.Generator) -> tuple[Compressed, Int64s]:
    """Return events of random users with the most chosen items, renumbered, and which items these are."""
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
    found = kept(by_user, keep)
    indptr = np.append(0, np.cumsum(found.counts[users]))
    return replace(found, indptr=indptr, other=number[found.other]), chosen
