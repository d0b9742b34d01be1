"""Events of several types in a ranking head: which of a pair counts, how much, and what fits learn."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factors import Choices, Histories, RankingFit, TypeWeight, fit_ranking
from factors.ranking.type_weights import TypeTable, one_of_pairs, resolved

VIEW, PURCHASE, DISLIKE, SHOWN = 1, 4, 6, 7
TYPES = (
    TypeWeight(VIEW, "positive"),
    TypeWeight(PURCHASE, "positive", 1.0, decisive=True),
    TypeWeight(DISLIKE, "negative", 2.0, decisive=True),
    TypeWeight(SHOWN, "shown", 0.25),
)
CODES, VALUES = st.sampled_from([0, VIEW, PURCHASE, DISLIKE, SHOWN, 9]), st.sampled_from([1.0, 3.0, np.nan])
GROUPS, PER_GROUP, USERS = 4, 12, 120
ITEMS = GROUPS * PER_GROUP
Rows = list[tuple[int, int, int, float, float]]  # user, item, type, value, time


def choices_of(rows: Rows) -> Choices:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 5
    dtypes = (np.int32, np.int32, np.uint8, np.float64, np.float64)
    user, item, code, value, time = map(np.array, columns, dtypes)
    return Choices(user, item, value, time, code)


def history(*events: tuple[int, int]) -> Histories:
    rows = np.array([item for item, _ in events], dtype=np.int32)
    codes = np.array([code for _, code in events], dtype=np.uint8)
    return Histories(np.array([0, len(rows)]), rows, np.ones(len(rows)), np.full(len(rows), np.nan), codes)


@cache
def grouped(kind: int = PURCHASE, views_are: str = "random") -> Choices:
    """Users who purchase within a group of items, and view anything, or their own group."""
    rng = np.random.default_rng(3)
    rows: Rows = []
    for user in range(USERS):
        own = user % GROUPS * PER_GROUP
        wanted = own + rng.permutation(PER_GROUP)
        other = rng.permutation(ITEMS) if views_are == "random" else wanted[7:]
        rows += [(user, int(item), kind, 1.0, 1e9 + k) for k, item in enumerate(wanted[:7])]
        rows += [(user, int(item), VIEW, 1.0, 1e9 + k + 0.5) for k, item in enumerate(other[:7])]
    return choices_of(rows)


def fitted(choices: Choices, types: tuple[TypeWeight, ...] = TYPES) -> RankingFit:
    ratings = choices.ratings()
    return fit_ranking(*(ratings, USERS, ITEMS), rng=np.random.default_rng(1), choices=choices, types=types)


@cache
def fitted_anew(views_are: str) -> RankingFit:
    return fitted(grouped(views_are=views_are))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), CODES, VALUES), max_size=15))
def test_one_event_of_a_pair_counts(events: list[tuple[int, int, int, float]]) -> None:
    rows = [(user, item, code, value, float(k)) for k, (user, item, code, value) in enumerate(events)]
    found = one_of_pairs(choices_of(rows), 2, TypeTable.of(TYPES), high=5.0)
    holds: dict[tuple[int, int, int], int] = {}
    for k, (user, item, code, value, _) in enumerate(rows):
        holds.pop((user, item, code), None)
        # Of type 9 nothing is known.
        if not np.isnan(value) and code != 9:
            holds[user, item, code] = k
    order = {0: 3, PURCHASE: 2, DISLIKE: 2, VIEW: 1, SHOWN: 0}
    best: dict[tuple[int, int], int] = {}
    for (user, item, code), k in sorted(holds.items(), key=lambda each: (order[each[0][2]], each[1])):
        best[user, item] = k
        del code
    pairs = zip(found.row.tolist(), found.other.tolist(), strict=True)
    assert dict(zip(pairs, found.source.tolist(), strict=True)) == best
    values = [rows[k][3] if rows[k][2] == 0 else 5.0 for k in found.source.tolist()]
    assert found.value.tolist() == values


def test_folding_in_solves_the_weighted_squares() -> None:
    head = fitted_anew("random").head
    parameters = replace(head.parameters, recency_boost=0.0)
    head = replace(head, parameters=parameters)
    events = history((0, PURCHASE), (1, VIEW), (30, DISLIKE), (2, SHOWN), (1, PURCHASE), (3, 9))
    view, shown = (next(each.weight for each in parameters.types if each.code == code) for code in (1, 7))
    assert view is not None
    assert shown == 0.25
    # Of the item 1 the purchase counts; of the type 9 nothing is known.
    terms = [(0, 1.0, 1.0), (1, 1.0, 1.0), (30, 2.0, 0.0), (2, 0.25, 0.0)]
    prior = parameters.prior("user", np.array([2.0]))
    mean = parameters.user_mean
    precision = prior.activity[0] * parameters.user_gram + prior.ridge[0] * np.eye(parameters.rank)
    linear = prior.ridge[0] * mean
    for item, weight, target in terms:
        factors = head.items[item].astype(np.float64)
        precision = precision + weight * np.outer(factors, factors)
        linear = linear + weight * target * factors
    expected = np.linalg.solve(precision, linear)
    np.testing.assert_allclose(head.fold_in_users(events)[0], expected, rtol=1e-6)
    for row in (5, 30):
        base, rows, parts = head.explain(events, row)
        assert len(rows) == 4
        score = head.scores(events, np.array([row]))[0]
        assert base + parts.sum() == pytest.approx(score, rel=1e-6)
        assert head.relevance(events)[0, row] == pytest.approx(score, rel=1e-3)


def test_a_weight_is_chosen_by_what_it_says_and_kept_where_it_is_given() -> None:
    weights = {}
    for views_are in ("random", "own"):
        types = fitted_anew(views_are).head.parameters.types
        weights[views_are] = {each.code: each.weight for each in types}
        assert weights[views_are][PURCHASE] == 1.0
    assert (weights["random"][VIEW] or 0.0) < (weights["own"][VIEW] or 0.0)
    given_weight = (replace(TYPES[0], weight=0.5), *TYPES[1:])
    found = fitted(grouped(), given_weight).head.parameters.types
    assert (found[0].weight, found[0].decided) == (0.5, 0)
    # Set back to null, it is nothing that a fit has chosen.
    again, open_codes = resolved(TYPES, found)
    assert (again[0].weight, open_codes) == (1.0, frozenset({VIEW}))
