"""The rule by which stored and live ratings become one history. Invariant: of each pair the later rating
holds, and a live rating that the source has not seen is the later one.

The source is an archive or a backup, the live side the histories of the store. Their counts cannot be
compared: the store may be another one, or have lost its end. What can be compared are the ratings themselves:
what the source has seen of the live ones is as old as the source or older.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from factors import Float64s, Int64s
from featurestore.contexts.codec import digests
from foldin.recovery.events import RatingEvents, numbered_pairs
from trainer.fit_job.ratings import last_of_pairs

# Every NaN is the same here, whichever bits it has.
_NAN_BITS = np.float64(np.nan).view(np.int64)


@dataclass(frozen=True, slots=True)
class Merged:
    """The last events. `source`, `live` int64 (k,): positions of events there, ordered by user, then item,
    each pair in one of the two; those that take a pair back among them, so that an older copy that is
    restored later does not bring it again.
    """

    source: Int64s
    live: Int64s


def merge(source: RatingEvents, live: RatingEvents) -> Merged:
    """Return the last event of each pair of both, which use the same codes (`with_codes_of`).

    It is the last live one where the source has that less often than the live side has; else the last one of
    the source. Equal is what has the same bits: the same rating may be given again, after another.
    """
    last_source = last_of_pairs(source.user, source.key, source.n)
    last_live = last_of_pairs(live.user, live.key, live.n)
    source_pair, live_pair = numbered_pairs(source, live)
    # Ordered as `last_of_pairs` orders them: by user, then item.
    wanted = live_pair[last_live]
    seen, given = (
        _equals(wanted, live.take(last_live), pairs, events)
        for pairs, events in ((source_pair, source), (live_pair, live))
    )
    on_top = last_live[given > seen]
    return Merged(last_source[~is_among(source_pair[last_source], live_pair[on_top])], on_top)


def holding(events: RatingEvents) -> Int64s:
    """Return the positions of the ratings that hold, ordered by user, then item."""
    last = last_of_pairs(events.user, events.key, events.n)
    return last[~np.isnan(events.rating[last])]


def _equals(wanted: Int64s, last: RatingEvents, pairs: Int64s, events: RatingEvents) -> Int64s:
    """How many of `events` equal the last live event of each of the pairs `wanted`, which are ordered."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    # A pair behind the last one has no place: it is compared with the last, and differs.
    place = np.minimum(np.searchsorted(wanted, pairs), len(wanted) - 1)
    rows = np.flatnonzero(wanted[place] == pairs)
    place = place[rows]
    equal = (bits(events.rating[rows]) == bits(last.rating)[place]) & (
        bits(events.time[rows]) == bits(last.time)[place]
    )
    if events.context is not None or last.context is not None:
        equal &= _told(events)[rows] == _told(last)[place]
    return np.bincount(place[equal], minlength=len(wanted))


def _told(events: RatingEvents) -> npt.NDArray[np.uint64]:
    """Return what tells contexts apart that are not the same."""
    return digests(len(events), events.context)


def bits(values: Float64s) -> Int64s:
    """Return what tells values apart that are not the same."""
    return np.where(np.isnan(values), _NAN_BITS, values.view(np.int64))


def is_among(pairs: Int64s, ordered: Int64s) -> npt.NDArray[np.bool_]:
    """Say of each of `pairs` whether it is among those that are `ordered`."""
    if not len(ordered):
        return np.zeros(len(pairs), dtype=np.bool_)
    place = np.minimum(np.searchsorted(ordered, pairs), len(ordered) - 1)
    return np.asarray(ordered[place] == pairs)


def differences(before: RatingEvents, after: RatingEvents) -> tuple[Int64s, Int64s, Int64s]:
    """Return positions: in `after` of pairs that are new, in `before` of those that are gone, in `after` of
    those with another rating, time or context. Both hold, have each pair once, and use the same codes.
    """
    was, now = numbered_pairs(before, after)
    # Each side has a pair once: `holding` has seen to it.
    _, old, fresh = np.intersect1d(was, now, assume_unique=True, return_indices=True)
    same = (bits(before.rating[old]) == bits(after.rating[fresh])) & (
        bits(before.time[old]) == bits(after.time[fresh])
    )
    same &= _told(before)[old] == _told(after)[fresh]
    new = np.setdiff1d(np.arange(len(now)), fresh, assume_unique=True)
    gone = np.setdiff1d(np.arange(len(was)), old, assume_unique=True)
    return new, gone, np.sort(fresh[~same])
