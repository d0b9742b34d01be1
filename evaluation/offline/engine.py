"""What a predictor that is compared is. Invariant: it sees a `Question` and a seed, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.offline.jobs import Array, Predicted, Question

Predict = Callable[[Question, int], Predicted]


@dataclass(frozen=True, slots=True)
class Engine:
    """`predict` answers a question; `online` one whose training ratings are each predicted before they are
    learned, None where the engine learns from whole sets only.
    """

    title: str
    predict: Predict
    online: Predict | None = None


def clip(rating: Array, question: Question) -> Array:
    """`rating`, brought onto the scale."""
    return np.clip(rating, question.low, question.high)
