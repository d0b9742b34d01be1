"""Ties a child to the life of the process that starts it, by the kernel."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Return the `preexec_fn` with which a child asks Linux for this signal at the end of its parent.

    SIGTERM lets the child end its own processes, too. Strictly the kernel means the thread that starts it.
    Other systems have no such thing (None): there the children of a killed process stay.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: after it, beside threads, only a system call is safe.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was made
            os._exit(1)

    return before_exec
