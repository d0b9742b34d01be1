"""How many ratings each key may give: as many a second as one call may have, in each worker.

Invariant: no request waits here, and no key takes the room of the streams that others need.
Requests and connections are bounded by the proxy in front; it cannot count what a body has.
"""

import math
from time import monotonic

from featurestore.access import ApiKey
from service.http.problems import Problem


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
