"""What keeps ratings out of a replica: memory that is nearly used up, and how many each key may give.

Invariant: what is refused for memory is taken again only when clearly more is free than when that began. No
request waits here, and no key takes the room of the streams that others need.

A worker grows with the items, and with what it is asked; beyond its container's limit it is killed, and so is
the one that takes its place, as long as more comes. Requests and connections are bounded by the proxy in
front; it cannot count what a body has.
"""

import logging
import math
from time import monotonic

from featurestore.access import ApiKey
from processes.container import memory_left
from service.http.problems import Problem

log = logging.getLogger("foldin.service")

# Of the limit: of the container's 4 GB as much as one large body and the next generation's rows that come.
FREE_SHARE = 0.05
# So much more than that is clearly more: else it would change from second to second.
CLEARLY_MORE = 1.1


class MemoryWatch:
    """What was seen last; `full` where ratings are to be refused."""

    def __init__(self) -> None:
        self.full = False

    def look(self) -> None:
        """Look once: three small files. Blocking."""
        found = memory_left()
        free, limit = found or (0, 0)
        full = found is not None and free < FREE_SHARE * limit * (CLEARLY_MORE if self.full else 1.0)
        if full != self.full:
            log.warning(
                "memory of this replica full=%s free_mb=%d limit_mb=%d", full, free >> 20, limit >> 20
            )
        self.full = full


class RatingQuota:
    """The buckets of the keys of one worker: each holds `size` ratings, and fills up within a second."""

    def __init__(self, size: int) -> None:
        self._size = size
        # By name, as keys are few: the level, and when it was so.
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, key: ApiKey | None, ratings: int) -> None:
        """Take so many from the bucket of a key. One that may operate has none, nor has who needs no key.

        Raises the problem `quota_exceeded`: then nothing was taken.
        """
        if key is None or key.role == "operate":
            return
        now = monotonic()
        level, at = self._levels.get(key.name, (self._size, now))
        level = min(self._size, level + (now - at) * self._size)
        # More than a bucket holds takes a full one, and leaves less than nothing.
        if (missing := min(ratings, self._size) - level) > 0:
            wait_s = math.ceil(missing / self._size)
            detail = f"key {key.name} may give {self._size} ratings a second; ask again in {wait_s} s"
            raise Problem("quota_exceeded", detail, retry_after_s=wait_s)
        self._levels[key.name] = level - ratings, now
