"""One prediction task in a process of its own, for its seconds of CPU and its peak of memory.

Invariant: the process never sees the ratings that are asked of it: its input holds the training ratings, and
of the test only who, what and when. In the prequential task each rating is read only after its prediction was
made. It ends with the process that started it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.errors import EngineFailedError, NotInstalledError

Array = npt.NDArray[np.float64]
Chances = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent.parent
ONE_CORE = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
NOT_INSTALLED = 4  # exit code
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Question:
    """Training ratings and the pairs to predict. `low`, `high`, `step` (0: none): the scale. Times may be
    NaN.

    `top`: how many items, not rated in training, to rank for each different user of the pairs; 0: none.
    """

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
    top: int = 0

    def ranked_users(self) -> npt.NDArray[np.int32]:
        """The users whose rankings are asked for, ascending."""
        users: npt.NDArray[np.int32] = np.unique(self.test_user)
        return users


def _none() -> Array:
    return np.empty(0)


def no_chances() -> Chances:
    """The probabilities of an engine that has none."""
    return np.empty((0, 0), dtype=np.float32)


def no_top() -> npt.NDArray[np.int32]:
    """The rankings of an engine that has none."""
    return np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What an engine says. What it cannot say stays empty.

    `rating`, `std`: float64 (m,); `chances`: probability of each step of the scale, (m, levels); `top`: item
    rows, best first, one line for each of `Question.ranked_users`, -1 where there are fewer; `note`: what it
    tells of itself.
    """

    rating: Array
    std: Array = field(default_factory=_none)
    chances: Chances = field(default_factory=no_chances)
    top: npt.NDArray[np.int32] = field(default_factory=no_top)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `seconds`: CPU time of the process for the task, all of its threads together.

    `peak_mb`: highest resident memory of the process, libraries included; NaN where the system does not tell.
    """

    predicted: Predicted
    seconds: float
    peak_mb: float


def answer(
    engine: str, question: Question, *, seed: int, python: str = sys.executable, limit_s: float = LIMIT_S
) -> Answer:
    """Run `engine` (see `engines.find`) on the question with the interpreter `python`.

    Raises `NotInstalledError` when its library is missing there and `EngineFailedError` when it fails.
    """
    arrays, told = run_apart(
        "evaluation.offline.engines:run",
        question,
        {"engine": engine},
        seed=seed,
        python=python,
        limit_s=limit_s,
    )
    given = {name: arrays[name] for name in ("rating", "std", "chances", "top")}
    return Answer(Predicted(**given, note=str(told["note"])), float(told["seconds"]), float(told["peak_mb"]))


def run_apart(
    target: str,
    question: Any,
    options: Mapping[str, str],
    *,
    seed: int,
    python: str = sys.executable,
    limit_s: float = LIMIT_S,
) -> tuple[dict[str, npt.NDArray[Any]], Mapping[str, float | str]]:
    """Call `target` (`module:function`) with a question (a dataclass of arrays and numbers), the options and
    the seed in a process of its own; the arrays that it returns, and what is known of its run.
    """
    what = options.get("engine", target)
    with tempfile.TemporaryDirectory(prefix="foldin-job-") as name:
        folder = Path(name)
        np.savez(
            folder / "question.npz",
            **{entry.name: getattr(question, entry.name) for entry in fields(question)},
        )
        kind = type(question)
        task = {"target": target, "kind": f"{kind.__module__}:{kind.__qualname__}", "seed": seed}
        (folder / "task.json").write_text(json.dumps({**task, "options": dict(options)}))
        command = [python, "-m", "evaluation.offline.jobs", str(folder)]
        try:
            done = subprocess.run(  # noqa: S603 - ours
                command, env=_environment(), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise EngineFailedError(f"{what} did not end within {limit_s:.0f} s") from exc
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if done.returncode == NOT_INSTALLED:
            raise NotInstalledError(last)
        if done.returncode != 0:
            raise EngineFailedError(f"{what} failed with code {done.returncode}: {last}")
        with np.load(folder / "answer.npz") as arrays:
            given = {key: arrays[key] for key in arrays.files}
        return given, json.loads((folder / "answer.json").read_text())


def _environment() -> dict[str, str]:
    """This process's environment; the packages that run here can be imported, and one core is used."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, **ONE_CORE}


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


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)


def main(argv: list[str]) -> int:
    """The process that `run_apart` starts."""
    _end_with_parent()
    folder = Path(argv[0])
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "question.npz") as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    question = _named(task["kind"])(
        **{name: column if column.ndim else column.item() for name, column in columns.items()}
    )
    target = _named(task["target"])
    began = time.process_time()
    try:
        given, note = target(question, task["options"], task["seed"])
    except ModuleNotFoundError as exc:
        print(f"{exc.name or exc} is not installed", file=sys.stderr)
        return NOT_INSTALLED
    except NotInstalledError as exc:
        print(exc, file=sys.stderr)
        return NOT_INSTALLED
    seconds = time.process_time() - began
    np.savez(folder / "answer.npz", **given)
    told = {"seconds": seconds, "peak_mb": peak_mb(), "note": note}
    (folder / "answer.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
