"""When ratings are refused for lack of room: a function of sizes. Invariant: what is refused is taken again
only when there is clearly more room than when that began.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from featurestore.errors import FullReason

# Of a disk: what others write to it in a second or two is little beside 5 %, and on a large one beside 1 GB.
# The file of the store is not rewritten before it has 64 MB: with as much room the first rewrite ends.
FREE_SHARE, MOST_FREE_BYTES, LEAST_FREE_BYTES = 0.05, 2**30, 64 * 2**20
# Of the memory of the store: what is left lets it serve its clients, take deltas, and forget. At its limit it
# refuses all that grows by itself.
MEMORY_FREE_SHARE = 0.05
# So much more than that is clearly more: else it would change from second to second.
CLEARLY_MORE = 1.1


@dataclass(frozen=True, slots=True)
class Space:
    """A place that may fill up. `needed_bytes` of `total_bytes` must be free for ratings to be taken."""

    reason: FullReason
    free_bytes: int
    total_bytes: int
    needed_bytes: int


def disk(reason: FullReason, free_bytes: int, total_bytes: int, rewritten_bytes: int = 0) -> Space:
    """Return the space of a disk. `rewritten_bytes`: what is written anew before the old is removed."""
    kept = min(MOST_FREE_BYTES, max(LEAST_FREE_BYTES, int(FREE_SHARE * total_bytes)))
    return Space(reason, free_bytes, total_bytes, kept + rewritten_bytes)


def memory(used_bytes: int, limit_bytes: int) -> Space | None:
    """Return the space in the memory of the store; None where it has no limit."""
    if limit_bytes <= 0:
        return None
    free_bytes = max(0, limit_bytes - used_bytes)
    return Space("store_memory", free_bytes, limit_bytes, int(MEMORY_FREE_SHARE * limit_bytes))


def fullest(spaces: Iterable[Space], refusing: FullReason | None) -> Space | None:
    """Return the space for whose sake ratings are refused, None where there is room in all.

    `refusing`: for whose sake they are refused so far.
    """
    lacking = [
        space
        for space in spaces
        if space.free_bytes < space.needed_bytes * (CLEARLY_MORE if space.reason == refusing else 1.0)
    ]
    # The one that needs the most of what it has, so that a person begins there.
    return min(lacking, key=lambda space: space.free_bytes / space.needed_bytes, default=None)
