"""Reads of segments that fail, for tests of disks that do."""

import errno
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

Fails = Callable[[], Exception]
FAILURES: dict[str, Fails] = {
    "EIO": lambda: OSError(errno.EIO, "Input/output error"),
    "memory": lambda: pa.ArrowMemoryError("malloc of size 65536 failed"),
}


class Failing:
    """A file whose reads fail, as Arrow sees it."""

    closed = False

    def __init__(self, path: Path, fails: Fails, left: list[None]) -> None:
        self._content, self._at, self._fails, self._left = path.read_bytes(), 0, fails, left

    def seek(self, at: int, whence: int = 0) -> int:
        self._at = (0, self._at, len(self._content))[whence] + at
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._content) if size < 0 else min(self._at + size, len(self._content))
        if not self._left:
            raise self._fails()
        del self._left[:1]
        part = self._content[self._at : end]
        self._at += len(part)
        return part

    def close(self) -> None:
        pass


def failing(patched: pytest.MonkeyPatch, fails: Fails, of: Callable[[Path], bool], *, reads: int = 0) -> None:
    """Have the reads of these files fail after some that do not."""
    real, left = pa.OSFile, [None] * reads

    def opened(path: str, mode: str) -> pa.NativeFile:
        if mode == "rb" and of(Path(path)):
            return pa.PythonFile(Failing(Path(path), fails, left), "r")
        return real(path, mode)

    patched.setattr("trainer.archive.segments.pa.OSFile", opened)
