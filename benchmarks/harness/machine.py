"""Tells whether the machine had time for a measurement: CPU that others used, and CPU that the host took
away.

Invariant: it only reads counters of the kernel, before and after, so that watching costs the measurement
nothing.
"""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from foldin.commands.doctor.machine import available_bytes

PROC = Path("/proc")
# Of all cores; background work of an idle machine is under 0.02.
BUSY_LIMIT = 0.05
# Of all cores. A virtual machine whose host is not overcommitted shows a few thousandths.
STEAL_LIMIT = 0.02
# Of the yardstick's median; quiet runs stay within 0.05.
MIDDLE_RANGE_LIMIT = 0.15


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Clock ticks since boot: of all cores, and of this process with all that it has started."""

    busy: int
    steal: int
    idle: int
    own: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What happened while it was watched, as shares of all cores; None where the system does not tell."""

    seconds: float
    others: float | None
    steal: float | None


def read_times() -> CpuTimes | None:
    """Return the counters now; None where there is no /proc/stat."""
    try:
        line = (PROC / "stat").read_text().splitlines()[0]
    except OSError:
        return None
    # Time of guests is in that of users already; interrupts belong to no process.
    user, nice, system, idle, iowait, _, _, steal = (int(text) for text in line.split()[1:9])
    return CpuTimes(busy=user + nice + system, steal=steal, idle=idle + iowait, own=_own_ticks())


def _own_ticks() -> int:
    """Return the CPU time of this process and its descendants, also those that have ended and were waited
    for.
    """
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        # The name before it may hold blanks and brackets.
        fields = text[text.rindex(")") + 2 :].split()
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        # utime, stime, cutime and cstime of proc(5).
        ticks[pid] = sum(int(value) for value in fields[11:15])
    total = 0
    me = os.getpid()
    for pid in parents:
        ancestor = pid
        while ancestor not in (me, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor == me:
            total += ticks[pid]
    return total


class Watch:
    """Watches from its making on; `since()` gives what happened until now."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._before = read_times()

    def since(self) -> Watched:
        """Return the shares of all cores that others used and that the host took."""
        seconds = time.perf_counter() - self._began
        after = read_times()
        before = self._before
        if before is None or after is None:
            return Watched(seconds, None, None)
        busy = after.busy - before.busy
        steal = after.steal - before.steal
        total = max(busy + steal + after.idle - before.idle, 1)
        own = after.own - before.own
        return Watched(seconds, others=max(busy - own, 0) / total, steal=steal / total)


def complaints(watched: Watched, middle_range: float | None) -> list[str]:
    """Return why the figures cannot be trusted, one sentence each.

    `middle_range`: of the yardstick, see `report.Row`.
    """
    found = []
    if watched.others is not None and watched.others > BUSY_LIMIT:
        found.append(f"other processes used {watched.others:.0%} of the cores (limit {BUSY_LIMIT:.0%})")
    if watched.steal is not None and watched.steal > STEAL_LIMIT:
        found.append(f"the host took away {watched.steal:.0%} of the cores (limit {STEAL_LIMIT:.0%})")
    if middle_range is not None and middle_range > MIDDLE_RANGE_LIMIT:
        found.append(
            f"the middle half of the yardstick's rounds differed by {middle_range:.0%} "
            f"(limit {MIDDLE_RANGE_LIMIT:.0%})"
        )
    return found


def describe() -> dict[str, str | int]:
    """Return the machine in a few words, for the record."""
    return {
        "cpu": _cpu() or platform.processor(),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def lacking_memory(needed: float) -> str:
    """Return why there is too little memory for so many bytes, empty where there is enough.

    What can be had without swapping counts; a system that does not tell has enough.
    """
    available = available_bytes()
    if available is None or needed <= available:
        return ""
    return f"needs {needed / 1e9:.0f} GB of memory, there are {available / 1e9:.0f}"


def _cpu() -> str:
    """Return what /proc/cpuinfo says the processor is; empty where it does not."""
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
