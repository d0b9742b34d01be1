"""One fit, as the helper process `python -m trainer.fit_job.job`. Invariant: it ends with its parent,
whatever it is doing.

In: a `FitRequest`. Out: any number of `Progress`, then `Done` or `Failed`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from factors import FactorsError, FitDiverged, FitSettings, Fitted, Ratings, Scale
from processes.messages import ORPHANED, Parent
from trainer.engines import Engine, EngineName, Report, make_engine
from trainer.errors import FitFailedError, SegmentDamagedError, SegmentGoneError
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.results import FitResult, read_result, write_result

# Every twentieth rating, at most 20,000, tells how good the fit is; the published one learns from these too.
_HELD_OUT_FRACTION = 0.05
_HELD_OUT_LIMIT = 20_000
# Of fewer ratings less than ten would be held out, which says nothing.
_HELD_OUT_FROM = 200
# Workers that answer users on the same cores go first, but POST /train has a minute: no idle priority.
_NICENESS = 5

FailureKind = Literal["damaged", "gone", "refused", "diverged", "memory", "disk"]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What to fit and where to leave it. `earlier`: the folder of the fit to start from."""

    paths: tuple[str, ...]
    n_items: int
    output: str
    engine: EngineName
    low: float
    high: float
    step: float | None
    threads: int
    seed: int
    earlier: str | None = None


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Figures of a sweep that has ended."""

    metrics: dict[str, float]


class Done(msgspec.Struct, frozen=True, tag=True):
    """The result lies where the request said."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """There is no result. `path`: the segment that is damaged."""

    kind: FailureKind
    why: str
    path: str | None = None


Answer = Progress | Done | Failed


def run_fit(request: FitRequest, report: Report) -> None:
    """Load the ratings, measure a trial fit on a part of them, fit all, write the result.

    Raises `SegmentDamagedError`, `SegmentGoneError`, `FactorsError`, `OSError`, `MemoryError`.
    """
    earlier = _earlier(request)
    data = load_ratings(
        [Path(path) for path in request.paths],
        request.n_items,
        None if earlier is None else earlier.user_id_array(),
    )
    settings = FitSettings(Scale(request.low, request.high, request.step), threads=request.threads)
    engine = make_engine(request.engine, settings)
    rng = np.random.default_rng(request.seed)
    start = None if earlier is None else _start(earlier, data)
    metrics: dict[str, float] = {}
    if len(data.ratings.value) >= _HELD_OUT_FROM:
        start, metrics = _measure(engine, data, rng, start, report)
    fitted = engine.fit(data.ratings, data.n_users, data.n_items, rng=rng, start=start, report=report)
    finite = {name: float(value) for name, value in fitted.metrics.items() if np.isfinite(value)}
    write_result(Path(request.output), data, fitted, {**finite, **metrics})


def _measure(
    engine: Engine, data: FitInput, rng: np.random.Generator, start: Fitted | None, report: Report
) -> tuple[Fitted, dict[str, float]]:
    """Fit without a part of the ratings; return that fit, from which the real one starts, and how well it
    predicts the part.
    """
    size = len(data.ratings.value)
    held_out = np.zeros(size, dtype=bool)
    held_out[rng.choice(size, min(_HELD_OUT_LIMIT, round(size * _HELD_OUT_FRACTION)), replace=False)] = True
    known, tried = _part(data.ratings, ~held_out), _part(data.ratings, held_out)
    trial = engine.fit(known, data.n_users, data.n_items, rng=rng, start=start, report=report)
    metrics = engine.held_out(trial, known, tried)
    # Under this name in the metrics of every generation that was ever stored.
    return trial, {**metrics, "unseen": float(held_out.sum())}


def _part(ratings: Ratings, rows: np.ndarray) -> Ratings:
    return Ratings(ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows])


def _earlier(request: FitRequest) -> FitResult | None:
    if request.earlier is None:
        return None
    try:
        return read_result(Path(request.earlier))
    except FitFailedError:
        # Without its files the fit starts from nothing: slower, not wrong.
        return None


def _start(earlier: FitResult, data: FitInput) -> Fitted:
    users, items = np.asarray(earlier.users)[data.kept], np.asarray(earlier.items)[: data.n_items]
    return Fitted(earlier.model, users, items)


def main() -> int:
    """Read the request, fit, answer. Return 0 when there is a result, 1 when the answer says why there is
    none.
    """
    parent = Parent()
    message = parent.receive()
    if message is None:
        return ORPHANED
    parent.end_with_it()
    request = msgspec.msgpack.decode(message, type=FitRequest)
    os.nice(_NICENESS)

    def answer(content: Answer) -> None:
        parent.send(msgspec.msgpack.encode(content))

    try:
        with threadpool_limits(limits=request.threads):
            run_fit(request, lambda metrics: answer(Progress(metrics)))
    except (SegmentDamagedError, SegmentGoneError, FactorsError, MemoryError, OSError) as exc:
        path = str(exc.path) if isinstance(exc, SegmentDamagedError) else None
        answer(Failed(_kind(exc), str(exc) or type(exc).__name__, path))
        return 1
    answer(Done())
    return 0


def _kind(exc: Exception) -> FailureKind:
    kinds: tuple[tuple[type[Exception], FailureKind], ...] = (
        (SegmentDamagedError, "damaged"),
        (SegmentGoneError, "gone"),
        (FitDiverged, "diverged"),
        (FactorsError, "refused"),
        (MemoryError, "memory"),
    )
    return next((kind for type_, kind in kinds if isinstance(exc, type_)), "disk")


if __name__ == "__main__":
    # Not `sys.exit`: the thread that waits for the parent's end holds the standard input.
    os._exit(main())
