"""Which segments to merge: decided from their numbers of rows alone. Invariant: an epoch of n rows has some
log8(n) segments besides full ones, and each row is written some log8(n) times.
"""

from collections.abc import Iterable, Sequence

# Eight neighbours of one size become one: fewer would write each row more often, more would leave more files
# to open.
MERGE_FANOUT = 8
# A slow stream gives a segment of a few rows every half second: all of them count as one size.
SMALLEST_TIER_ROWS = 1_000
# An erasure of a user writes each segment that has the user anew, some 30 MB.
MERGED_ROWS = 2_000_000
# All files of a merge are open at a time. After a pause of merges a slow stream has left thousands, and a
# process may have a thousand open.
MERGED_FILES = 64


def choose_merge(rows: Sequence[int]) -> slice | None:
    """Which neighbours to merge, given the rows of each segment in order; None where there are few enough.

    The smallest size first: `MERGE_FANOUT` neighbours that are all of a tier or below it, cut where together
    they would hold more than `MERGED_ROWS`, or be more than `MERGED_FILES`.
    """
    tiers = [_tier(count) for count in rows]
    final = _tier(MERGED_ROWS // 2)
    for tier in range(final):
        for start, stop in _runs(tiers, tier):
            run = _fitting(rows, start, stop)
            if run is not None and stop - start >= MERGE_FANOUT:
                return run
    return None


def _tier(rows: int) -> int:
    tier = 0
    while rows > SMALLEST_TIER_ROWS * MERGE_FANOUT**tier:
        tier += 1
    return tier


def _runs(tiers: Sequence[int], tier: int) -> Iterable[tuple[int, int]]:
    start = 0
    for position in range(len(tiers) + 1):
        if position == len(tiers) or tiers[position] > tier:
            if position > start:
                yield start, position
            start = position + 1


def _fitting(rows: Sequence[int], start: int, stop: int) -> slice | None:
    total, end = 0, start
    while end < min(stop, start + MERGED_FILES) and total + rows[end] <= MERGED_ROWS:
        total += rows[end]
        end += 1
    return slice(start, end) if end - start >= 2 else None
