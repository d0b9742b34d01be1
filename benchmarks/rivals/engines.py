"""The engines of the benchmarks by name: those of `foldin evaluate`, and their rivals."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from benchmarks.rivals.ranking import RANKING_PEERS
from benchmarks.rivals.rating import PEERS
from evaluation.offline import engines
from evaluation.question import ComparedEngine, Question

RIVALS: Mapping[str, ComparedEngine] = {**PEERS, **RANKING_PEERS}
TARGET = "benchmarks.rivals.engines:run"


def title(name: str) -> str:
    """Return the name as tables and pictures show it. Raises ValueError for no engine."""
    return engines.find(name, RIVALS).title


def run(question: Question, options: Mapping[str, str], seed: int) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Answer a question, for `evaluation.offline.jobs.run_apart`."""
    return engines.run(question, options, seed, RIVALS)
