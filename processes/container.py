"""What this process may use of the machine: cores, and memory."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Version 1 has a number of this size without a limit.
_NO_LIMIT = 2**60


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return the cores that affinity and the limits of the control group leave, rounded down, 1 at least.

    `cgroup`: where the group of this process is mounted, of version 2 or 1.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    for quota, period in (_version_2(cgroup), _version_1(cgroup / "cpu")):
        if quota > 0 and period > 0:
            cores = min(cores, quota // period)
    return max(1, cores)


def memory_left(cgroup: Path = CGROUP) -> tuple[int, int] | None:
    """Return how many bytes the control group may take besides, and its limit; None where it has none.

    What the system keeps of files is not counted: it goes when memory is asked for.
    """
    old = cgroup / "memory"
    for folder, limit_name, used_name, prefix in (
        (cgroup, "memory.max", "memory.current", ""),
        (old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = (_read(folder / name).strip() for name in (limit_name, used_name))
        if limit.isdecimal() and used.isdecimal() and int(limit) < _NO_LIMIT:
            lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
            found = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdecimal()}
            files = sum(found.get(f"{prefix}{name}_file", 0) for name in ("inactive", "active"))
            return max(0, int(limit) - max(0, int(used) - files)), int(limit)
    return None


def _version_2(folder: Path) -> tuple[int, int]:
    # `max 100000` without a limit.
    return _pair(_read(folder / "cpu.max").split())


def _version_1(folder: Path) -> tuple[int, int]:
    # -1 without a limit.
    return _pair([_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])


def _pair(words: list[str]) -> tuple[int, int]:
    quota, period = (*words, "", "")[:2]
    return (int(quota), int(period)) if quota.isdecimal() and period.isdecimal() else (0, 0)


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
