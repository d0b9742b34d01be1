"""Memory that a process has freed goes back to the system, also where small pieces lie between."""

import platform
import subprocess
import sys

import pytest

# Prints how many bytes more are resident after 100 MB were held than before: in pieces of a megabyte, each
# with a small one behind it that stays.
_MEASURE = """
import ctypes, sys
from processes.memory import give_back_freed, resident_bytes
if sys.argv[1] == "given back":
    give_back_freed()
malloc, free = (getattr(ctypes.CDLL(None), name) for name in ("malloc", "free"))
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
# One of 30 MB that is freed: from then on glibc has smaller ones in its heap.
free(malloc(30 << 20))
before, pieces = resident_bytes(), []
for _ in range(100):
    pieces.append(malloc(1 << 20))
    ctypes.memset(pieces[-1], 1, 1 << 20)
    ctypes.memset(malloc(4096), 1, 4096)
for piece in pieces:
    free(piece)
print(resident_bytes() - before)
"""


def left(how: str) -> int:
    command = [sys.executable, "-c", _MEASURE, how]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
def test_what_is_freed_is_given_back() -> None:
    # Else this would show nothing.
    assert left("as it is") > 90 << 20
    assert left("given back") < 10 << 20
