"""Writes into the counts what a worker is at this moment: what it serves, how much it holds."""

import contextlib
import resource
import time
from pathlib import Path

from aiohttp import web

from service.context import COUNTS, EDGE, FOLLOWER


def describe(app: web.Application) -> None:
    """Write into the counts what this worker is at this moment."""
    counts, live = app[COUNTS], app[FOLLOWER].live
    counts.at = time.time()
    counts.generation = live.generation if live else 0
    counts.epoch = live.epoch if live else 0
    counts.in_flight = app[EDGE].in_flight
    counts.resident_bytes = resident_bytes()


def resident_bytes() -> int:
    """Resident memory of this process: now where the system tells, else its peak."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
