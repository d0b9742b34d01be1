"""The loops of `history_kernels` as machine code: made by numba in a process of its own, run by any other.

Invariant: the code calls nothing but the mathematical functions of the C library, so that a process that runs
it needs llvmlite alone (5 MB and 0.05 s, where numba takes 30 MB, 70 more that are shared, and a second), and
never compiles.
"""

import ctypes
import hashlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy.typing as npt

from factors.errors import FactorsError
from factors.inference import motion
from factors.inference.compiled import history_kernels, posterior_kernels, reading_kernels, score_kernels
from factors.inference.compiled.reading_kernels import (
    GROUP_COLUMNS,
    LATENT,
    N_SIZES,
    OTHER_WIDTH,
    RANK,
    WIDTH,
)
from factors.inference.compiled.score_kernels import LANES
from factors.model import scale

# Callers behind what they call.
_FUNCTIONS: tuple[Any, ...] = (
    reading_kernels.wide,
    reading_kernels.filled,
    reading_kernels.counted,
    reading_kernels.age_at,
    reading_kernels.read_other,
    reading_kernels.shift_entry,
    reading_kernels.move_entries,
    reading_kernels.read_entries,
    reading_kernels.place_of,
    reading_kernels.begin_group,
    reading_kernels.group_entries,
    posterior_kernels.set_prior,
    posterior_kernels.move_sites,
    posterior_kernels.take_sites,
    posterior_kernels.take_sessions,
    posterior_kernels.sum_entries,
    posterior_kernels.add_sittings,
    posterior_kernels.solve,
    history_kernels.write_row,
    history_kernels.fold_in,
)
# Types of the arrays that `fold_in` takes, in their order.
_KINDS = (
    *("float32", "int16", "int64", "int32", "float64", "float64", "float64", "uint8", "float64", "float64"),
    *("float32", "int16", "float64", "float64", "float64", "float64", "float64", "float64"),
    *("int64", "float64"),
    *("float64", "float32", "float64", "float64", "float64", "float64", "float64", "float64", "float32"),
    *("float64", "int32", "int32", "float64"),
)
_NAME = "fold_in"
_DIGEST = hashlib.sha256().digest_size
# Which of the arrays have a rating for each entry, and a unit for each number of a covariance. To read so
# many of these numbers takes about a millisecond.
_VALUES, _UNITS, _BRIEF = 4, 16, 1 << 16
# Sums may be regrouped to fill vector registers; infinity keeps its meaning, for bounds are infinite.
_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return a name of the code for this version of the loops and this processor."""
    llvm: Any = import_module("llvmlite.binding")
    modules = reading_kernels, score_kernels, posterior_kernels, history_kernels, scale, motion
    files = [__file__, *map(inspect.getfile, modules)]
    host = (llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    parts = [*(Path(file).read_bytes() for file in files), repr((llvm.llvm_version_info, *host)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def compile_code() -> bytes:
    """Return the code, an object file. Takes half a minute of a core and 300 MB."""
    numba: Any = import_module("numba")
    compiled: dict[str, Any] = {}
    for function in _FUNCTIONS:
        # Numba resolves the names that a function uses: they are to be compiled, too.
        known = {**function.__globals__, **compiled}
        compiled[function.__name__] = numba.njit(**_OPTIONS)(FunctionType(function.__code__, known))
    entry = _entry(numba.carray, compiled["fold_in"])
    pointers = [numba.types.CPointer(getattr(numba, kind)) for kind in _KINDS]
    return _object_of(numba.cfunc(numba.int64(*pointers), nopython=True, **_OPTIONS)(entry).inspect_llvm())


def sealed(code: bytes) -> bytes:
    """Return `code` as it is kept, behind its SHA-256."""
    return hashlib.sha256(code).digest() + code


def unsealed(kept: bytes) -> bytes | None:
    """Return the code that was `sealed`; None where that is not what it was."""
    code = kept[_DIGEST:]
    return code if hashlib.sha256(code).digest() == kept[:_DIGEST] else None


def load_code(code: bytes) -> "NativeLoop":
    """Return the loop that `code`, made on this machine by this version, is the code of."""
    llvm: Any = import_module("llvmlite.binding")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return NativeLoop(engine)


class NativeLoop:
    """`history_kernels.fold_in` as machine code, safe to share between threads. A call for few ratings keeps
    the interpreter's lock: giving it up and getting it back would take longer.
    """

    def __init__(self, engine: Any) -> None:
        # The code lives as long as its engine.
        self._engine = engine
        address, pointers = engine.get_function_address(_NAME), [ctypes.c_void_p] * len(_KINDS)
        self._brief = ctypes.PYFUNCTYPE(ctypes.c_int64, *pointers)(address)
        self._long = ctypes.CFUNCTYPE(ctypes.c_int64, *pointers)(address)

    def __call__(self, *arrays: npt.NDArray[Any]) -> int:
        brief = len(arrays[_VALUES]) * len(arrays[_UNITS]) <= _BRIEF
        call = self._brief if brief else self._long
        return int(call(*[array.ctypes.data for array in arrays]))


def _entry(carray: Callable[..., Any], fold: Callable[..., int]) -> Callable[..., int]:
    """Return `fold` as a function of pointers, for numba."""

    def by_pointers(  # noqa: PLR0917 - as `history_kernels.fold_in`
        words: Any,
        halves: Any,
        offsets: Any,
        other_row: Any,
        value: Any,
        time: Any,
        shift: Any,
        new: Any,
        base: Any,
        cold_base: Any,
        prior_words: Any,
        prior_halves: Any,
        effect: Any,
        precision: Any,
        cold_precision: Any,
        start: Any,
        units: Any,
        bounds: Any,
        sizes: Any,
        numbers: Any,
        latent: Any,
        code: Any,
        entry: Any,
        group: Any,
        load: Any,
        shared: Any,
        square: Any,
        vector: Any,
        weights: Any,
        lanes: Any,
        table: Any,
        session: Any,
        result: Any,
    ) -> int:
        known = carray(sizes, (N_SIZES,))
        dim, other = known[RANK] + 1, known[OTHER_WIDTH]
        half, packed = 2 * other, dim * (dim + 1) // 2
        width = -(-packed // 32) * 32  # as `reading_kernels.wide` has it
        # How many rows an array has is never asked.
        return fold(
            carray(words, (1, other)),
            carray(halves, (1, half)),
            carray(offsets, (1,)),
            carray(other_row, (1,)),
            carray(value, (1,)),
            carray(time, (1,)),
            carray(shift, (1, known[LATENT] + 1)),
            carray(new, (1,)),
            carray(base, (1, dim)),
            carray(cold_base, (1, dim)),
            carray(prior_words, (1, other)),
            carray(prior_halves, (1, half)),
            carray(effect, (1,)),
            carray(precision, (1, dim)),
            carray(cold_precision, (1, dim)),
            carray(start, (1, dim)),
            carray(units, (1,)),
            carray(bounds, (1,)),
            known,
            carray(numbers, (1,)),
            carray(latent, (1, LANES)),
            carray(code, (1, width)),
            carray(entry, (1, LANES)),
            carray(group, (1, GROUP_COLUMNS)),
            carray(load, (1, dim)),
            carray(shared, (1, dim)),
            carray(square, (1, dim, dim)),
            carray(vector, (1, packed)),
            carray(weights, (1,)),
            carray(lanes, (1, LANES)),
            carray(table, (1,)),
            carray(session, (1,)),
            carray(result, (1, known[WIDTH])),
        )

    return by_pointers


def _object_of(text: str) -> bytes:
    """Return the object file of LLVM's intermediate code `text`."""
    llvm: Any = import_module("llvmlite.binding")
    machine = _machine(llvm)
    module = llvm.parse_assembly(text)
    for function in module.functions:
        if function.name.startswith("cfunc."):
            function.name = _NAME
        elif not function.is_declaration:
            # What is known of their arguments, no reference counts and no errors, can then be used.
            function.linkage = "internal"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    foreign = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if not set(foreign) <= {"sqrt", "exp", "floor", "rint"}:
        raise FactorsError(f"compiled loops need {', '.join(foreign)}")
    return bytes(machine.emit_object(module))


def _machine(llvm: Any) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
