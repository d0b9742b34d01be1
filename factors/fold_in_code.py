"""The compiled fold-in of a process: its machine code is made, told apart, kept and taken into use.

Invariant: rows are the same with it and without it, to the last digits of float32.
"""

from factors.inference.compiled.history import LOADED
from factors.inference.compiled.object_code import (
    compile_code,
    fingerprint,
    load_code,
    sealed,
    unsealed,
)

__all__ = ["compile_code", "fingerprint", "in_use", "sealed", "unsealed", "use"]


def in_use() -> bool:
    """Return whether this process folds in by such code."""
    return LOADED.loop is not None


def use(code: bytes | None) -> None:
    """Fold in by `code` from now on, which was made on this machine by this version; None: by numpy."""
    LOADED.loop = None if code is None else load_code(code)
