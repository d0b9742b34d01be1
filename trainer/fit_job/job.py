"""One fit, in a process of its own.

`python -m trainer.fit_job.job`, asked by a line of JSON, answering in lines of JSON. Invariant: it
ends with its parent. Its standard input stays open for as long as the parent lives and wants the
result; at its end the process ends at once, whatever it is doing.
"""

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from factors import FactorsError, FitDiverged, FitSettings, Fitted, Ratings, Scale
from trainer.engines import Engine, EngineName, Report, make_engine
from trainer.errors import FitFailedError, SegmentDamagedError, SegmentGoneError
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.results import FitResult, read_result, write_result

# Every twentieth rating, at most 20,000, tells how good the fit is; the published one learns from these too.
_UNSEEN_FRACTION = 0.05
_UNSEEN_LIMIT = 20_000
# Below this many ratings a held-out slice is too small to tell anything.
_UNSEEN_FROM = 200
# A fit gives way to whoever answers users on the same cores, but POST /train is to be done in a minute.
_NICENESS = 5

Failure = Literal["damaged", "gone", "refused", "diverged", "memory", "disk"]


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

    def to_line(self) -> bytes:
        """As one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "FitRequest":
        """The request in a line."""
        fields = json.loads(line)
        return cls(**{**fields, "paths": tuple(fields["paths"])})


def run_fit(request: FitRequest, report: Report) -> None:
    """Load, fit, measure, write.

    Raises `SegmentDamagedError`, `SegmentGoneError`, `FactorsError`, `OSError`, `MemoryError`.
    """
    earlier = _earlier(request)
    given = load_ratings(
        [Path(path) for path in request.paths],
        request.n_items,
        None if earlier is None else earlier.user_id_array(),
    )
    settings = FitSettings(Scale(request.low, request.high, request.step), threads=request.threads)
    engine = make_engine(request.engine, settings)
    rng = np.random.default_rng(request.seed)
    start = None if earlier is None else _start(earlier, given)
    metrics: dict[str, float] = {}
    if len(given.ratings.value) >= _UNSEEN_FROM:
        start, metrics = _measure(engine, given, rng, start, report)
    fitted = engine.fit(given.ratings, given.n_users, given.n_items, rng=rng, start=start, report=report)
    finite = {name: float(value) for name, value in fitted.metrics.items() if np.isfinite(value)}
    write_result(Path(request.output), given, fitted, {**finite, **metrics})


def _measure(
    engine: Engine, given: FitInput, rng: np.random.Generator, start: Fitted | None, report: Report
) -> tuple[Fitted, dict[str, float]]:
    """Fit without a slice of the ratings and try it on these; the fit is also where the real one starts."""
    size = len(given.ratings.value)
    unseen = np.zeros(size, dtype=bool)
    unseen[rng.choice(size, min(_UNSEEN_LIMIT, round(size * _UNSEEN_FRACTION)), replace=False)] = True
    known, tried = _part(given.ratings, ~unseen), _part(given.ratings, unseen)
    trial = engine.fit(known, given.n_users, given.n_items, rng=rng, start=start, report=report)
    metrics = engine.held_out(trial, known, tried)
    return trial, {**metrics, "unseen": float(unseen.sum())}


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


def _start(earlier: FitResult, given: FitInput) -> Fitted:
    return Fitted(
        earlier.model, np.asarray(earlier.users)[given.kept], np.asarray(earlier.items)[: given.n_items]
    )


def _end_with_parent(stream: BinaryIO) -> None:
    while stream.read(4096):
        pass
    os._exit(3)


def _write(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Read the request, fit, answer. 0 when there is a result, 1 when the answer says why there is none."""
    stream = sys.stdin.buffer
    line = stream.readline()
    if not line:
        return 3
    request = FitRequest.from_line(line)
    threading.Thread(target=_end_with_parent, args=(stream,), name="parent", daemon=True).start()
    os.nice(_NICENESS)
    try:
        with threadpool_limits(limits=request.threads):
            run_fit(request, lambda progress: _write({"progress": progress}))
    except (SegmentDamagedError, SegmentGoneError, FactorsError, MemoryError, OSError) as exc:
        _write(_failure(exc))
        return 1
    _write({"done": True})
    return 0


def _failure(exc: Exception) -> dict[str, str]:
    answer = {"failed": _kind(exc), "why": str(exc) or type(exc).__name__}
    return answer | {"path": str(exc.path)} if isinstance(exc, SegmentDamagedError) else answer


def _kind(exc: Exception) -> Failure:
    kinds: tuple[tuple[type[Exception], Failure], ...] = (
        (SegmentDamagedError, "damaged"),
        (SegmentGoneError, "gone"),
        (FitDiverged, "diverged"),
        (FactorsError, "refused"),
        (MemoryError, "memory"),
    )
    return next((kind for type_, kind in kinds if isinstance(exc, type_)), "disk")


if __name__ == "__main__":
    # The reader thread may sit in a read of standard input: leave without waiting for it.
    code = main()
    sys.stdout.flush()
    os._exit(code)
