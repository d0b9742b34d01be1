"""The compiled loops of a fit, made before it: compiling takes 250 MB, of which a process keeps 80.

Invariant: a fit is the same whether they were made before it or not: then it compiles what it needs.
"""

import hashlib
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from factors.inference.compiled import backend, score_kernels, solve_kernels
from factors.inference.compiled.backend import LoopBackend, load_loops
from factors.inference.compiled.least_squares import solve_events
from factors.inference.compiled.loading import Kernel
from factors.inference.histories import compress_pairs
from factors.model.types import Scale
from factors.ranking.half_steps import row_loops
from factors.ranking.regressions import neighbour_loops
from factors.ranking.selection.lists import list_loops
from factors.training.initialization import initial_state
from factors.training.settings import FitSettings
from factors.training.tables import finish
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet

# Every fit of many ratings runs these; they take most of the time.
ALWAYS: tuple[Kernel, ...] = (solve_kernels.solve_rows, score_kernels.score_entries, solve_events)
# What an image brings along, and the file that says for which kind of processor it was compiled.
BROUGHT, HOST = Path(sys.prefix, "share", "foldin", "loops"), "host"
# Of the ratings that the loops are compiled by.
_USERS, _ITEMS, _SECONDS = 40, 30, 10.0


def is_missing() -> bool:
    """Return whether there is a place to keep compiled loops, and they are not there."""
    try:
        return not all(map(_is_kept, ALWAYS))
    except (RuntimeError, OSError):
        return False


def folder_of(loop: Kernel) -> Path:
    """Return where numba keeps the compiled `loop`. Raises RuntimeError where it cannot."""
    numba: Any = import_module("numba")
    return Path(numba.njit(cache=True)(loop).stats.cache_path)


def take_brought() -> bool:
    """Keep the loops that were brought along; return whether there are any for this kind of processor."""
    folder = folder_of(ALWAYS[0])
    mark = BROUGHT / folder.name / HOST
    if not mark.exists() or mark.read_text() != _host():
        return False
    # With the times of the files, by which numba knows that the sources have not changed since.
    shutil.copytree(BROUGHT, folder.parent, dirs_exist_ok=True)
    return True


def _host() -> str:
    """Return a name of this kind of processor, as numba tells them apart."""
    llvm: Any = import_module("llvmlite.binding")
    host = (llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return hashlib.sha256(repr(host).encode()).hexdigest()


def _is_kept(loop: Kernel) -> bool:
    """Return whether numba has an index of the `loop`, compiled for this Python, that is newer than its
    source, and than what says what types it is called with.
    """
    changed = max(Path(each).stat().st_mtime for each in (loop.__code__.co_filename, str(backend.__file__)))
    return any(index.stat().st_mtime >= changed for index in _indexes(loop))


def _indexes(loop: Kernel) -> list[Path]:
    code, python = loop.__code__, f"py{sys.version_info[0]}{sys.version_info[1]}"
    name = f"{Path(code.co_filename).stem}.{code.co_name}-{code.co_firstlineno}.{python}*.nbi"
    return list(folder_of(loop).glob(name))


def compile_loops() -> None:
    """Compile the loops of fits without contexts and of ranking heads, and keep them: 25 s of a core."""
    user, item = (part.ravel() for part in np.indices((_USERS, _ITEMS)))
    value, time = (
        (1.0 + (user + item) % 5).astype(np.float64),
        ((user * item) % 7 * _SECONDS).astype(np.float64),
    )
    by_user = compress_pairs(user, item, value, time, _USERS, wide=False)
    training = TrainingSet.of(by_user, _ITEMS, LoopBackend(load_loops()))
    settings = FitSettings(Scale(1.0, 5.0, 1.0), rank=2)
    state = initial_state(training, settings, np.random.default_rng(0)).run(1)
    for link in ("gaussian", "ordinal"):
        state = state.branch(Terms(link, 1.0, 1.0, _SECONDS, _SECONDS)).run(1)
    finish(state, {})
    row_loops(), neighbour_loops(), list_loops()
    for index in (index for loop in ALWAYS for index in _indexes(loop)):
        # What was there is not written again.
        index.touch()
    (folder_of(ALWAYS[0]) / HOST).write_text(_host())
