"""Predictions of a whole deployment over HTTP: ratings loaded, a refit asked for, pairs asked.

Invariant: store, service and trainer are fresh and have seen nothing but the training ratings.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from environment.client import EnvironmentFailedError
from evaluation.course.protocol import evaluate, write_files
from evaluation.course.settings import EvaluationSettings
from evaluation.errors import EngineFailedError
from evaluation.question import Answer, Predicted, Question, no_probabilities
from evaluation.results.course import EvaluationReport, Summary
from factors import Scale
from featurestore.settings import format_scale
from foldin_client import AsyncClient, FoldinError
from foldin_client.models import OnePrediction, RatingIn

# A fit of 100,000 ratings takes 10 s of a quiet core.
REFIT_S = 300.0
# A fifth of the pause of the course's evaluator: fits go on while it plays.
DELAY_MS = 20
# Five worlds of 1,000 steps at four lengths of history: 20,000 steps, and what the players learn meanwhile.
EVALUATE_S = 3000.0
ENGINE = "foldin over HTTP"


@contextmanager
def deployment(scale: Scale, settings: Mapping[str, str]) -> Iterator[int]:
    """Run store, trainer with these `settings`, and service; the port of the API."""
    text = format_scale(scale)
    with (
        stack.store() as url,
        stack.trainer(url, scale=text, settings=settings),
        stack.service(url, scale=text) as port,
    ):
        yield port


def answer_over_http(question: Question) -> Answer:
    """Return the answer of a deployment. `seconds`: from the demand for a refit until it is live, on the
    clock; the memory of its processes is not measured here. Raises `EngineFailedError`.
    """
    try:
        with deployment(question.scale(), stack.NO_REFITS) as port:
            return asyncio.run(_answer(port, question))
    except (BenchmarkError, FoldinError) as exc:
        raise EngineFailedError(f"the deployment: {exc}") from exc


async def _answer(port: int, question: Question) -> Answer:
    async with AsyncClient(f"http://127.0.0.1:{port}", timeout_s=REFIT_S, retry_s=REFIT_S) as api:
        await api.rate(_ratings(question))
        began = time.perf_counter()
        generation = await _refit(api, len(question.train_value))
        seconds = time.perf_counter() - began
        predicted = await _predictions(api, question, f"generation {generation}; seconds of the refit")
    return Answer(predicted, seconds, math.nan)


async def _refit(api: AsyncClient, n_ratings: int) -> int:
    """Ask for a refit and wait until the generation of all `n_ratings` is live; its number."""
    number = await api.refit()
    for each in (await api.get_generations()).generations:
        if each.generation == number and each.live and each.n_ratings == n_ratings:
            return number
    raise BenchmarkError(f"generation {number} is not live, or has not learned all {n_ratings} ratings")


def _ratings(question: Question) -> Iterator[RatingIn]:
    columns = (question.train_user, question.train_item, question.train_value, question.train_time)
    for user, item, value, at in zip(*(column.tolist() for column in columns), strict=True):
        yield RatingIn(user_id=str(user), item_id=str(item), rating=value, timestamp=_known(at))


async def _predictions(api: AsyncClient, question: Question, note: str) -> Predicted:
    """One `GET /predict` a pair, with the time of the rating, as a client that shows the item then would
    ask.
    """
    found: list[OnePrediction] = []
    pairs = (question.test_user, question.test_item, question.test_time)
    for user, item, at in zip(*(column.tolist() for column in pairs), strict=True):
        found.append(
            await api.predict(str(user), str(item), timestamp=_known(at), distribution=question.step > 0)
        )

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(prediction, name) for prediction in found], dtype=np.float64)

    probabilities = column("distribution").astype(np.float32) if question.step else no_probabilities()
    return Predicted(column("rating"), column("std"), probabilities, note=note)


def _known(at: float) -> float | None:
    return None if math.isnan(at) else at


def play(settings: EvaluationSettings) -> list[Summary]:
    """Play the course's protocol, all players, against a deployment; leave its files in the output folder.

    With the defaults of a deployment: the trainer refits while they play, as it would for users. Raises
    `BenchmarkError`.
    """
    assert settings.output is not None
    with deployment(Scale(1, 5), {}) as port:
        played = replace(settings, api=f"http://127.0.0.1:{port}", replace=True, delay_ms=DELAY_MS)

        async def playing() -> EvaluationReport:
            async with asyncio.timeout(EVALUATE_S):
                return await evaluate(played)

        try:
            report = asyncio.run(playing())
            write_files(report, settings.output)
        except TimeoutError as exc:
            raise BenchmarkError(f"the environment was not played within {EVALUATE_S:.0f} s") from exc
        except (EnvironmentFailedError, OSError) as exc:
            raise BenchmarkError(f"the environment was not played to its end: {exc}") from exc
    return report.summaries()
