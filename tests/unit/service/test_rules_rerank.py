"""Boosts, diversity, caps and pinned places do what they say, beside slow references."""

import numpy as np
import pytest

from service.rules.rerank import Selection, boost_groups, unit, with_pinned


def test_rows_are_grouped_by_what_multiplies_them() -> None:
    allowed = np.array([True, True, True, True, False])
    first, second = np.array([1, 1, 0, 0, 1], bool), np.array([0, 1, 1, 0, 1], bool)
    groups = boost_groups([(2.0, first), (0.5, second)], allowed)
    # The row of both and the row of none are multiplied by 1.
    assert [(factor, np.flatnonzero(rows).tolist()) for factor, rows in groups] == [
        (2.0, [0]),
        (1.0, [1, 3]),
        (0.5, [2]),
    ]
    assert [factor for factor, _ in boost_groups([], allowed)] == [1.0]
    assert boost_groups([(2.0, first)], np.zeros(5, bool)) == []


def test_a_cap_counts_each_category_of_an_item() -> None:
    selection = Selection(4, cap=2)
    ranked = [("a",), ("a", "b"), ("a",), ("b",), ("b",), (), ("c",)]
    assert selection.take(ranked, np.zeros(7), None) == [0, 1, 3, 5]
    assert selection.full
    assert selection.closed() == ["a", "b"]


def test_what_was_chosen_counts_for_the_next_candidates() -> None:
    selection = Selection(3, cap=1)
    assert selection.take([("a",), ("a",)], np.zeros(2), None) == [0]
    assert (selection.full, selection.closed()) == (False, ["a"])
    assert selection.take([("a", "b"), ("b",), ("c",)], np.zeros(3), None) == [1, 2]


def slow_mmr(relevance: np.ndarray, vectors: np.ndarray, trade_off: float, n: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(n, len(relevance)):
        best, best_value = -1, -np.inf
        for place in range(len(relevance)):
            if place in chosen:
                continue
            nearest = max((float(vectors[place] @ vectors[each]) for each in chosen), default=0.0)
            value = trade_off * float(relevance[place]) - (1 - trade_off) * nearest
            if value > best_value + 1e-9:
                best, best_value = place, value
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 1.0])
def test_marginal_relevance_is_that_of_its_definition(trade_off: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        relevance = np.sort(rng.random(30))[::-1]
        vectors = unit(rng.normal(size=(30, 4)))
        selection = Selection(10, trade_off=trade_off)
        expected = slow_mmr(relevance, vectors, trade_off, 10)
        assert selection.take([()] * 30, relevance, vectors) == expected
    assert slow_mmr(np.array([1.0, 0.9]), unit(np.eye(2)), 1.0, 5) == [0, 1]


def test_diversity_takes_unlike_items_and_keeps_the_cap() -> None:
    relevance = np.array([1.0, 0.99, 0.5, 0.4])
    vectors = unit(np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]))
    alike = [("a",), ("b",), ("a",), ("c",)]
    assert Selection(2, trade_off=1.0).take(alike, relevance, vectors) == [0, 1]
    assert Selection(2, trade_off=0.5).take(alike, relevance, vectors) == [0, 2]
    assert Selection(2, trade_off=0.5, cap=1).take(alike, relevance, vectors) == [0, 3]
    # It goes on from what was chosen of earlier candidates.
    selection = Selection(2, trade_off=0.5)
    assert selection.take([()], relevance[:1], vectors[:1]) == [0]
    assert selection.take([()] * 3, relevance[1:], vectors[1:]) == [1]


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        ({}, "abc"),
        ({1: "x"}, "xabc"),
        ({2: "x", 3: "y"}, "axybc"),
        ({4: "x"}, "abcx"),
        ({9: "y", 7: "x"}, "abcxy"),
    ],
)
def test_pinned_items_stand_at_their_positions(pinned: dict[int, str], expected: str) -> None:
    assert "".join(with_pinned("abc", pinned)) == expected
    assert with_pinned("", pinned) == [pinned[position] for position in sorted(pinned)]


def test_a_vector_without_length_stays() -> None:
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]
