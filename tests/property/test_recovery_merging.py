"""The rule by which a restore merges, against a dictionary that does one event after the other."""

import struct
from collections import Counter
from math import isnan, nan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldin.recovery.events import RatingEvents, with_codes_of
from foldin.recovery.merging import merge
from trainer.archive.events import string_array

# User, item (of another type than a rating with its code), n, rating, time.
Event = tuple[str, str, int, float, float]
Pair = tuple[str, str]

# Few values, so that ratings repeat: that is what the rule turns on.
events_ = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cy"]),
        st.sampled_from(["x", "y", "z", "x:1", "x:30", "y:1"]),
        st.integers(1, 6),
        st.sampled_from([1.0, 2.0, nan]),
        st.sampled_from([10.0, 20.0, nan, struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0]]),
    ),
    max_size=25,
)


def columns(events: list[Event]) -> RatingEvents:
    users = sorted({event[0] for event in events}, reverse=True)
    items = sorted({event[1][0] for event in events}, reverse=True)
    return RatingEvents(
        string_array(user.encode() for user in users),
        string_array(item.encode() for item in items),
        np.array([users.index(event[0]) for event in events], dtype=np.int64),
        np.array([items.index(event[1][0]) for event in events], dtype=np.int64),
        np.array([event[2] for event in events], dtype=np.int64),
        np.array([event[3] for event in events], dtype=np.float64),
        np.array([event[4] for event in events], dtype=np.float64),
        np.zeros(len(events), dtype=np.int64),
        np.array([int(event[1][2:] or 0) for event in events], dtype=np.uint8),
    )


def by_pair(events: list[Event]) -> dict[Pair, list[tuple[float | None, float | None]]]:
    """Ratings and times of each pair, the last one last; None for NaN, which is not equal to itself."""
    found: dict[Pair, list[tuple[float | None, float | None]]] = {}
    for user, item, _, value, time in sorted(events, key=lambda event: event[2]):
        entry = (None if isnan(value) else value, None if isnan(time) else time)
        found.setdefault((user, item), []).append(entry)
    return found


def slow_merge(source: list[Event], live: list[Event]) -> dict[Pair, tuple[float | None, float | None]]:
    archived, stored = by_pair(source), by_pair(live)
    merged = {pair: entries[-1] for pair, entries in archived.items()}
    for pair, entries in stored.items():
        last = entries[-1]
        if Counter(entries)[last] > Counter(archived.get(pair, []))[last]:
            merged[pair] = last
    return merged


def as_dict(*parts: RatingEvents) -> dict[Pair, tuple[float | None, float | None]]:
    found = {}
    for part in parts:
        for k in range(len(part)):
            code = f":{part.type_code[k]}" if part.type_code[k] else ""
            pair = part.user_ids[part.user[k]].as_py(), part.item_ids[part.item[k]].as_py() + code
            assert pair not in found, "each pair once"
            time = float(part.time[k])
            value = float(part.rating[k])
            found[pair] = (None if isnan(value) else value, None if isnan(time) else time)
    return found


def merged(source: list[Event], live: list[Event]) -> dict[Pair, tuple[float | None, float | None]]:
    archived = columns(source)
    stored = with_codes_of(columns(live), archived)
    result = merge(archived, stored)
    return as_dict(archived.take(result.source), stored.take(result.live))


@given(events_, events_)
def test_merge_is_what_a_dictionary_says(source: list[Event], live: list[Event]) -> None:
    assert merged(source, live) == slow_merge(source, live)
