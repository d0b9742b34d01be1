"""Predictions of a whole deployment over HTTP: ratings loaded, a refit asked for, pairs asked.

Invariant: store, service and trainer are fresh and have seen nothing but the training ratings.
"""

import asyncio
import csv
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import numpy.typing as npt

from benchmarks.harness import stack
from benchmarks.harness.command import BenchmarkError
from evaluation.api_client import ApiBusyError, ApiClient, ApiError, Prediction, Rating
from evaluation.errors import EngineFailedError
from evaluation.offline.question import Answer, Predicted, Question, no_probabilities
from factors import Scale
from featurestore.settings import format_scale
from processes.blocking import plain_environment, python_command

# As many ratings as a call may hold.
BATCH = 10_000
# A fit of 100,000 ratings takes 10 s of a quiet core.
REFIT_S = 300.0
# A fifth of the pause of the course's evaluator: fits go on while it plays.
DELAY_MS = 20
# Five worlds of 1,000 steps at four lengths of history: 20,000 steps, and what the players learn meanwhile.
EVALUATE_S = 3000.0
ENGINE = "foldin over HTTP"


@contextmanager
def deployment(scale: Scale, settings: Mapping[str, str]) -> Iterator[int]:
    """Store, trainer with these `settings`, and service; the port of the API."""
    text = format_scale(scale)
    with (
        stack.store() as url,
        stack.trainer(url, scale=text, settings=settings),
        stack.service(url, scale=text) as port,
    ):
        yield port


def answer_over_http(question: Question) -> Answer:
    """The answer of a deployment. `seconds`: from the demand for a refit until it is live, on the clock; the
    memory of its processes is not measured here. Raises `EngineFailedError`.
    """
    try:
        with deployment(question.scale(), stack.NO_REFITS) as port:
            return asyncio.run(_answer(port, question))
    except (BenchmarkError, ApiError) as exc:
        raise EngineFailedError(f"the deployment: {exc}") from exc


async def _answer(port: int, question: Question) -> Answer:
    async with aiohttp.ClientSession() as session:
        api = ApiClient(session, f"http://127.0.0.1:{port}", timeout_s=REFIT_S)
        for batch in rating_batches(question):
            await api.rate(batch, retry=True)
        began = time.perf_counter()
        generation = await _refit(api, len(question.train_value))
        seconds = time.perf_counter() - began
        predicted = await _predictions(api, question, f"generation {generation}; seconds of the refit")
    return Answer(predicted, seconds, math.nan)


async def _refit(api: ApiClient, n_ratings: int) -> int:
    """Ask for a refit and wait until the generation of all `n_ratings` is live; its number.

    On a slow machine the service says 504 before the fit has ended, and /generations tells when it has.
    """
    try:
        await api.train(retry=False)
    except ApiBusyError as exc:
        if exc.code != "training_timeout":
            raise
    deadline = time.monotonic() + REFIT_S
    while time.monotonic() < deadline:
        for generation in await api.generations():
            if generation.live and generation.n_ratings == n_ratings:
                return generation.generation
        await asyncio.sleep(0.2)
    raise BenchmarkError(f"no generation of {n_ratings} ratings was live within {REFIT_S:.0f} s")


def rating_batches(question: Question) -> Iterator[list[Rating]]:
    """The training ratings in calls of POST /ratings, in their order."""
    columns = (question.train_user, question.train_item, question.train_value, question.train_time)
    for start in range(0, len(question.train_value), BATCH):
        rows = zip(*(column[start : start + BATCH].tolist() for column in columns), strict=True)
        yield [Rating(str(user), str(item), value, _known(at)) for user, item, value, at in rows]


async def _predictions(api: ApiClient, question: Question, note: str) -> Predicted:
    """One `GET /predict` a pair, with the time of the rating, as a client that shows the item then would
    ask.
    """
    found: list[Prediction] = []
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


@dataclass(frozen=True, slots=True)
class Played:
    """How a player did in the rating environment: mean squared error over all worlds, and of each.

    `coverage`: share of the ratings inside its 90 % intervals, NaN where it has none.
    """

    player: str
    known: int
    mse: float
    worlds: tuple[float, ...]
    missing: int
    prepare_s: float
    coverage: float


def play(*, worlds: int, steps: int, known: tuple[int, ...], seed: int, folder: Path) -> list[Played]:
    """The course's protocol against a deployment, all players; also leaves its CSV files and picture in
    `folder`."""
    # With the defaults: the trainer refits while they play, as it would for users.
    with deployment(Scale(1, 5), {}) as port, tempfile.TemporaryDirectory() as empty:
        command = python_command("foldin", "evaluate", "--api", f"http://127.0.0.1:{port}", "--replace")
        command += [
            "--runs",
            str(worlds),
            "--steps",
            str(steps),
            "--seed",
            str(seed),
            "--output",
            str(folder.resolve()),
        ]
        command += ["--delay-ms", str(DELAY_MS), "--known", *map(str, known)]
        try:
            done = subprocess.run(
                command,
                env=plain_environment(os.environ, {}),
                cwd=empty,
                capture_output=True,
                text=True,
                timeout=EVALUATE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchmarkError(f"the environment was not played within {EVALUATE_S:.0f} s") from exc
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise BenchmarkError(f"the evaluation ended with code {done.returncode}: {last}")
    with (folder / "summary.csv").open(newline="") as file:
        return [
            Played(
                player=row["player"],
                known=int(row["known"]),
                mse=float(row["mse"]),
                worlds=tuple(float(text) for text in row["runs_mse"].split()),
                missing=int(row["missing"]),
                prepare_s=float(row["prepare_s"]),
                coverage=float(row["coverage"] or "nan"),
            )
            for row in csv.DictReader(file)
        ]
