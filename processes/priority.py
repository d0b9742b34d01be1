"""Lets a process give way to those that answer users on the same cores."""

import contextlib
import ctypes
import math
import os
import platform
import signal
import struct
import sys
from pathlib import Path

# How often a server is looked at for new forks. One that runs this long with full rights is not noticed.
LOOK_FOR_FORKS_S = 0.2
# On cores that stay busy a fork that gives way never ends, and holds on to memory and files.
FORK_GIVES_WAY_S = 60.0
# Long enough for the server to try again, and for that fork to end.
FORKS_UNHINDERED_S = 600.0
# Python has no function for it.
_SCHED_SETATTR, _ATTRIBUTES = {"x86_64": 314, "aarch64": 274}, struct.Struct("=IIQiIQQQ")
_LONGEST_SLICE_NS = 100_000_000


def give_way() -> None:
    """From here on run only where no other process wants the core. Without privileges for good."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux: the lowest priority is the next best
        os.nice(19)


def step_back(niceness: int) -> None:
    """Lower the priority by so much, and let those that wake have the core at once; both for what is started
    from here on, too.

    By priority alone a process that wakes waits until the slice of the other has ended, 3 ms, unless its own
    is shorter (EEVDF, from Linux 6.12 on; others know no slices of a process). How much each gets in the long
    run stays the same, so that nothing starves.
    """
    os.nice(niceness)
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        # Size, policy and flags, then niceness, priority, the slice in nanoseconds, and two deadlines.
        fields = (_ATTRIBUTES.size, os.sched_getscheduler(0), 0, os.nice(0), 0, _LONGEST_SLICE_NS, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, _ATTRIBUTES.pack(*fields), 0)


class Forks:
    """Lets the processes that a server forks have only what no other process wants of the cores, on Linux.

    A store forks to rewrite its file, and the fork works for 3 s a gigabyte: of 400,000 users the p99 of GET
    /predict was 10 to 20 ms meanwhile, 2 to 9 ms once the fork gave way, and a lower priority was no help.
    """

    def __init__(self, server: int) -> None:
        self._listed = Path(f"/proc/{server}/task/{server}/children")
        self._since: dict[int, float] = {}
        self._unhindered_until = -math.inf

    def look(self, now: float) -> None:
        """Let new forks give way, except those that come soon after one that had too little."""
        try:
            running = set(map(int, self._listed.read_text("ascii").split()))
        except OSError:
            return
        since, self._since = self._since, {}
        for fork in running:
            began = since.get(fork, now)
            with contextlib.suppress(OSError):
                if fork not in since and now >= self._unhindered_until:
                    _schedule(fork, "SCHED_IDLE")
                elif now - began > FORK_GIVES_WAY_S and now >= self._unhindered_until:
                    self._unhindered_until = now + FORKS_UNHINDERED_S
                    _hurry(fork)
            self._since[fork] = began


def _schedule(pid: int, policy: str) -> None:
    if sys.platform == "linux":
        os.sched_setscheduler(pid, getattr(os, policy), os.sched_param(0))


def _hurry(fork: int) -> None:
    try:
        _schedule(fork, "SCHED_OTHER")
    except PermissionError:
        # Only an administrator can take that back. By this signal a fork of Redis or Valkey ends without it
        # being an error; the server soon tries again.
        os.kill(fork, signal.SIGUSR1)
