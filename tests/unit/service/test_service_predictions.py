"""Predictions in bulk are the JSON of predictions one by one."""

import msgspec
import numpy as np
import pytest

from factors import BASIS, Scale, Scores
from service.prediction_json import Prediction, PredictionWriter, rounded


def some_scores(low: float, high: float, count: int = 400) -> Scores:
    rng = np.random.default_rng(3)
    rating = np.concatenate([[low, high, (low + high) / 2], rng.uniform(low, high, count)])
    std = np.concatenate([[1e-12, 0.25, high - low], rng.exponential((high - low) / 4, count)])
    return Scores(rating, std, rng.integers(0, 4, len(rating)).astype(np.uint8))


@pytest.mark.parametrize(
    "scale",
    [
        Scale(1, 5),
        Scale(0, 1),
        Scale(1, 10),
        Scale(0, 100),
        Scale(0, 9999),
        Scale(0, 1e6),
        Scale(-10, 10),
        Scale(0, 1e-3),
    ],
    ids=str,
)
def test_bulk_text_says_what_single_values_say(scale: Scale) -> None:
    scores = rounded(some_scores(scale.low, scale.high), scale)
    text = PredictionWriter(scale).elements(scores)
    assert text.rstrip().endswith(b",")
    found = msgspec.json.decode(b"[" + text.rstrip()[:-1] + b"]", type=list[Prediction])
    expected = [
        Prediction(rating, std, BASIS[basis])
        for rating, std, basis in zip(
            scores.rating.tolist(), scores.std.tolist(), scores.basis.tolist(), strict=True
        )
    ]
    assert found == expected


def test_rounding_is_to_a_millionth_and_leaves_some_uncertainty() -> None:
    scores = some_scores(1, 5)
    found = rounded(scores, Scale(1, 5))
    np.testing.assert_allclose(found.rating, scores.rating, atol=5.1e-7)
    assert found.std.min() == 1e-6
    fine = some_scores(0, 0.01)
    assert rounded(fine, Scale(0, 0.01)) is fine
