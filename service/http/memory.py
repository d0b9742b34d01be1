"""Whether the memory of this replica is nearly used up. Invariant: what is refused for it is taken again only
when clearly more is free than when that began.

A worker grows with the items, and with what it is asked; beyond its container's limit it is killed, and so is
the one that takes its place, as long as more comes.
"""

import logging
from pathlib import Path

from processes.container import CGROUP, memory_left

log = logging.getLogger("foldin.service")

# Of the limit: of the container's 4 GB as much as one large body and the next generation's rows that come.
FREE_SHARE = 0.05
# So much more than that is clearly more: else it would change from second to second.
CLEARLY_MORE = 1.1


class MemoryWatch:
    """What was seen last; `full` where ratings are to be refused. `cgroup`: where the limits are."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self.cgroup = cgroup
        self.full = False

    def look(self) -> None:
        """Look once: three small files. Blocking."""
        found = memory_left(self.cgroup)
        free, limit = found or (0, 0)
        full = found is not None and free < FREE_SHARE * limit * (CLEARLY_MORE if self.full else 1.0)
        if full != self.full:
            log.warning(
                "memory of this replica full=%s free_mb=%d limit_mb=%d", full, free >> 20, limit >> 20
            )
        self.full = full
