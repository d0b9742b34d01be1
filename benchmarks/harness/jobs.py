"""One prediction task in a process of its own, for its seconds of CPU and its peak of memory.

Invariant: the process never sees the ratings that are asked of it: its input holds the training ratings, and
of the test only who, what and when. In the prequential task each rating is read only after its prediction was
written.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness.command import BenchmarkError
from benchmarks.harness.processes import child_environment

Array = npt.NDArray[np.float64]
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Question:
    """Training ratings and the pairs to predict. `low`, `high`, `step` (0: none): the scale. Times may be
    NaN."""

    n_users: int
    n_items: int
    low: float
    high: float
    step: float
    train_user: npt.NDArray[np.int32]
    train_item: npt.NDArray[np.int32]
    train_value: Array
    train_time: Array
    test_user: npt.NDArray[np.int32]
    test_item: npt.NDArray[np.int32]
    test_time: Array


@dataclass(frozen=True, slots=True)
class Answer:
    """`rating` float64 (m,); `std` the same, empty where the engine has none; `seconds` wall time on one
    core.

    `peak_mb`: highest resident memory of the process, libraries included. `note`: what the engine says of
    itself.
    """

    rating: Array
    std: Array
    seconds: float
    peak_mb: float
    note: str = ""


class NotInstalledError(BenchmarkError):
    """The library of this engine is not there; the row is skipped with this reason."""


def answer(
    engine: str, question: Question, *, seed: int, python: str = sys.executable, limit_s: float = 3600
) -> Answer:
    """Run `engine` (a name in `engines.ENGINES`) on the question, with the interpreter `python`.

    Raises `NotInstalledError` when its library is missing there and `BenchmarkError` when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="foldin-job-") as name:
        folder = Path(name)
        fields = {field: getattr(question, field) for field in question.__dataclass_fields__}
        np.savez(folder / "question.npz", **fields)
        command = [python, "-m", "benchmarks.harness.jobs", engine, str(folder), str(seed)]
        try:
            done = subprocess.run(
                command,
                env=child_environment(ONE_CORE),
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchmarkError(f"{engine} did not end within {limit_s:.0f} s") from exc
        if done.returncode == 4:
            raise NotInstalledError(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            raise BenchmarkError(
                f"{engine} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
            )
        with np.load(folder / "answer.npz") as arrays:
            rating, std = arrays["rating"], arrays["std"]
        told: Mapping[str, float | str] = json.loads((folder / "answer.json").read_text())
        return Answer(rating, std, float(told["seconds"]), float(told["peak_mb"]), str(told["note"]))


def peak_mb() -> float:
    """Highest resident memory of this process so far, in 10^6 bytes; NaN where the system does not tell.

    From /proc: `ru_maxrss` would count what the parent had when it forked.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return float("nan")


def main() -> int:
    """The process that `answer` starts."""
    from benchmarks.harness.engines import ENGINES

    engine, name, seed = sys.argv[1:]
    folder = Path(name)
    with np.load(folder / "question.npz") as arrays:
        question = Question(**{field: arrays[field][()] for field in arrays.files})
    if hasattr(os, "sched_setaffinity"):
        # The core is the one that the system would give to one thread; more threads then gain nothing.
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    if engine not in ENGINES:
        print(f"no engine is called {engine}", file=sys.stderr)
        return 1
    began = time.perf_counter()
    try:
        rating, std, note = ENGINES[engine](question, int(seed))
    except ModuleNotFoundError as exc:
        print(f"{exc.name} is not installed", file=sys.stderr)
        return 4
    seconds = time.perf_counter() - began
    np.savez(folder / "answer.npz", rating=rating, std=std)
    told = {"seconds": seconds, "peak_mb": peak_mb(), "note": note}
    (folder / "answer.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
