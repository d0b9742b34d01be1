"""What processes have in memory, beside what `foldin size` says of it. Invariant: only counters are read."""

import re
from pathlib import Path

from benchmarks.harness.report import Row, at_most, number

# The formulas of docs/sizing.md beside what is measured.
SIZED = "what `foldin size` says of the memory of the "


def memory_mb(pid: int, name: str) -> float:
    """Return a figure of /proc/PID/status in MB; NaN where the system has none."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text("ascii")) if status.exists() else None
    return float("nan") if found is None else int(found[1]) * 1024 / 1e6


def sized(part: str, said: float, found: float) -> Row:
    """Return by how much `foldin size` is off that says so many bytes of a part, where so many are found."""
    detail = f"{number(said / 1e6)} against {number(found / 1e6)} MB"
    off = max(said / found, found / said)
    return Row(f"{SIZED}{part}", "x", (off,), at_most(1.15, 1.25), "what it is, or the other way", detail)
