"""Boosts, diversity, caps and pinned places do what they say, beside slow references."""

import numpy as np
import pytest

from service.rules.rerank import Selection, unit, with_pinned


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
