"""One question to an engine in a process of its own, for its seconds of CPU and its peak of memory.

Invariant: the process never sees the held-out ratings, and ends with the process that started it.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.errors import EngineFailedError, NotInstalledError
from processes import module_name
from processes.blocking import BlockingChild

# What holds our packages: the checkout, or where the wheel is installed.
ROOT = Path(__file__).resolve().parents[module_name("evaluation.offline").count(".") + 1]
# Seconds of one core compare engines whatever the machine; BLAS reads these when it is loaded.
ONE_CORE = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
NOT_INSTALLED = 4  # exit code; 1 is an exception's, 2 argparse's
LIMIT_S = 3600.0  # the slowest engine takes minutes for MovieLens 100K
ENGINES = "evaluation.offline.engines:run"  # what answers for the engines of this package


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
    the seed in a process of its own, by the interpreter `python`. Return the arrays that it returns, and its
    `note`, `seconds`, `peak_mb`.

    Raises `NotInstalledError` when a library is missing there and `EngineFailedError` when it fails.
    """
    what = options.get("engine", target)
    # Arrays by file, not by pickle: the other interpreter may have another numpy.
    with tempfile.TemporaryDirectory(prefix="foldin-job-") as name:
        folder = Path(name)
        np.savez(
            folder / "question.npz",
            **{entry.name: getattr(question, entry.name) for entry in fields(question)},
        )
        # The class by name, so that the other side makes the same object.
        kind = type(question)
        task = {"target": module_name(target), "kind": f"{kind.__module__}:{kind.__qualname__}", "seed": seed}
        (folder / "task.json").write_text(json.dumps({**task, "options": dict(options)}))
        command = [python, "-m", module_name("evaluation.offline.jobs"), str(folder)]
        # SIGKILL with the parent: a library in the middle of its loops would not see another signal.
        with BlockingChild(
            command, folder / "log", environment=_environment(), dies_by=signal.SIGKILL
        ) as child:
            try:
                code = child.wait(limit_s)
            except TimeoutError as exc:
                raise EngineFailedError(f"{what} did not end within {limit_s:.0f} s") from exc
        if code == NOT_INSTALLED:
            raise NotInstalledError(child.last_line)
        if code != 0:
            raise EngineFailedError(f"{what} failed with code {code}: {child.last_line}")
        with np.load(folder / "answer.npz") as arrays:
            answered = {key: arrays[key] for key in arrays.files}
        return answered, json.loads((folder / "answer.json").read_text())


def _environment() -> dict[str, str]:
    """Return this process's environment, with our packages to import and one core to use."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    # Unbuffered: what a library has printed must not come behind the error, which is the last line.
    # Safe: a folder of the caller that has the name of a package of ours is not it.
    safe = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **safe, **ONE_CORE}


def memory_mb(name: str = "VmHWM", pid: int | str = "self") -> float:
    """Return a figure of /proc/PID/status in 10^6 bytes, NaN where the system has none; without a name the
    highest resident memory of this process.
    """
    # `ru_maxrss` would count what the parent had when it forked.
    status = Path(f"/proc/{pid}/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text("ascii")) if status.exists() else None
    return float("nan") if found is None else int(found[1]) * 1024 / 1e6


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)


def main(argv: list[str]) -> int:
    """Be the process that `run_apart` starts."""
    folder = Path(argv[0])
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "question.npz") as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    question = _named(task["kind"])(
        # A number was kept as an array without dimensions.
        **{name: column if column.ndim else column.item() for name, column in columns.items()}
    )
    target = _named(task["target"])
    began = time.process_time()  # of all threads, and without what others do on the machine
    try:
        answered, note = target(question, task["options"], task["seed"])
    except ModuleNotFoundError as exc:
        print(f"{exc.name or exc} is not installed", file=sys.stderr)
        return NOT_INSTALLED
    except NotInstalledError as exc:
        print(exc, file=sys.stderr)
        return NOT_INSTALLED
    seconds = time.process_time() - began
    np.savez(folder / "answer.npz", **answered)
    (folder / "answer.json").write_text(
        json.dumps({"seconds": seconds, "peak_mb": memory_mb(), "note": note})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
