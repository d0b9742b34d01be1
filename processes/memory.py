"""How much memory this process holds, and that it gives back what it has freed. Invariant: neither fails."""

import contextlib
import ctypes
import resource
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory of this process: now where the system tells, else its peak."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Parameters of mallopt(3), glibc's: from so many bytes on each piece is a mapping of its own, and what is
# free at the end of the heap goes back. By itself glibc lets both grow to 32 and 64 MB, and memory that small
# pieces lie behind stays.
_TRIM, _MAP = -1, -3
# Heaps: by itself 8 a core, one a thread, each with its own rest.
_HEAPS, _MOST_HEAPS = -8, 2


def give_back_freed(large: int = 1 << 17) -> None:
    """Have this process give freed memory back to the system soon; other C libraries than glibc ignore it.

    For one that holds much for moments: what has `large` bytes or more is mapped anew each time, which costs
    a fault of the system for each 4 KB that are used.
    """
    with contextlib.suppress(OSError, AttributeError):
        set_parameter = ctypes.CDLL(None).mallopt
        for parameter, value in ((_MAP, large), (_TRIM, large), (_HEAPS, _MOST_HEAPS)):
            set_parameter(parameter, value)


def give_back_now() -> None:
    """Give back what is free between pieces that are held, too: of many small ones freed at once, most."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
