"""Loops that numba compiles, which is imported when the first are asked for.

What is compiled is kept beside the source where it can be, and read back by every later process.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

Kernel = Callable[..., Any]
# Of the arguments of loops: numba reads no annotations, and mypy no arrays of lanes.
Array = Any


def compile_loops(
    loops: Iterable[Kernel], signatures: Mapping[Kernel, tuple[str, ...]] | None = None
) -> dict[Kernel, Kernel]:
    """Return `loops` by the functions that they are made from.

    A loop with a signature is compiled at once, for arguments of these types alone: `f4[2]` is a table of
    float32 that is only read, `f4[2]=` one that is written, `f4` a number. Others are compiled when they are
    first called.
    """
    numba: Any = import_module("numba")
    # Sums may be regrouped to fill vector registers; infinity keeps its meaning, for bounds are infinite.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
    compiled: dict[Kernel, Kernel] = {}
    for loop in loops:
        told = (signatures or {}).get(loop)
        given = () if told is None else (tuple(_type(numba.types, text) for text in told),)
        try:
            compiled[loop] = _kept_if_possible(numba.njit(*given, cache=True, **options)(loop))
        except (RuntimeError, OSError):
            # There is no folder to keep compiled code in, or no space: compile each time.
            compiled[loop] = numba.njit(*given, **options)(loop)
    return compiled


def _type(types: Any, text: str) -> Any:
    name, _, rest = text.partition("[")
    scalar = getattr(types, {"b": "bool_"}.get(name, name))
    return scalar if not rest else types.Array(scalar, int(rest[0]), "C", readonly=not rest.endswith("="))


def _kept_if_possible(loop: Kernel) -> Kernel:
    """Return the compiled `loop`, also where what was compiled cannot be kept, for want of space say."""

    def run(*arguments: object) -> Any:
        try:
            return loop(*arguments)
        except OSError:
            # It is raised after compiling and before the first run: what was compiled is there.
            return loop(*arguments)

    return run
