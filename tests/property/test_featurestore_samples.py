"""A sample of a history and what came since say what the whole history says."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from factors import RECENT, SAMPLED, Scale
from factors.inference.histories import compress
from featurestore import codecs
from featurestore.codecs import History
from featurestore.users.histories import ANSWER_ENTRIES, Look, due_after, pack_sample

SCALE = Scale(1, 5)
Events = list[tuple[int, float]]
# Ratings, and events of two types, of thirty items.
ROWS = st.builds(lambda row, code: code << 27 | row, st.integers(0, 29), st.sampled_from([0, 0, 1, 2]))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(ROWS, st.sampled_from([1.0, 2.0, math.nan])), max_size=25),
            st.booleans(),
        )
    )
)
def test_a_sample_and_what_came_since_say_what_holds(batches: list[tuple[Events, bool]]) -> None:
    stored, n, sample, latest = b"", 0, None, 8
    for batch, compacts in batches:
        stored += b"".join([codecs.pack_entry(item, value, 0.0) for item, value in batch])
        n += len(batch)
        # As `look` does, with answers of 24 entries.
        since = n - (int.from_bytes(sample[:8], "little") if sample else 0)
        tail = stored[-codecs.ENTRY_BYTES * (max(since, latest) if since <= 24 else 24) :]
        look = Look(n, None, tail, len(stored), sample)
        part = look.part
        read = codecs.unpack_history(stored if part is None else part, SCALE)
        # A sample holds more items than there are here: nothing is missing either.
        truth = codecs.unpack_history(stored, SCALE)
        assert _ratings(read) == _ratings(truth)
        if part is None or look.whole or since >= latest:
            due = due_after(look.entries, read.entries)
            sample = pack_sample(n, look.missing, due, read, codecs.has_events(stored))
        if compacts:
            # By a reader that has written no sample.
            stored = codecs.pack_history(truth)


def _ratings(history: History) -> dict[int, float]:
    entries = np.frombuffer(codecs.pack_history(history), codecs.ENTRY_DTYPE)
    return dict(zip(entries["item_row"].tolist(), entries["rating"].tolist(), strict=True))


def test_views_push_no_rating_out_of_what_a_record_rests_on() -> None:
    rated = [(item, 4.0) for item in range(3_500)]
    views = [(1 << 27 | item, 1.0) for item in range(10_000)]
    stored = b"".join([codecs.pack_entry(row, value, 0.0) for row, value in rated])
    n, sample = len(rated), None
    for start in range(0, len(views) + 1, 1_000):
        tail = stored[-RECENT * codecs.ENTRY_BYTES :] if n > ANSWER_ENTRIES else stored
        look = Look(n, None, tail, len(stored), sample)
        part = look.part
        if part is None:
            part, look = stored, Look(n, None, stored, len(stored), sample)
        read = codecs.unpack_history(part, SCALE)
        # The latest, and of the others those of the lowest order: as in the fit, which has all ratings.
        truth = compress(codecs.pack_histories([codecs.unpack_history(stored, SCALE)]), 3_500, whole=False)
        found = compress(codecs.pack_histories([read]), 3_500, whole=False)
        assert found.other.tolist() == truth.other.tolist()
        assert len(found.other) == RECENT + SAMPLED
        sample = pack_sample(n, look.missing, due_after(look.entries, read.entries), read, start > 0)
        stored += b"".join(
            [codecs.pack_entry(row, value, 0.0) for row, value in views[start : start + 1_000]]
        )
        n = len(stored) // codecs.ENTRY_BYTES


def test_of_a_short_history_no_sample_is_kept() -> None:
    for entries in (ANSWER_ENTRIES, ANSWER_ENTRIES + 1):
        data = bytes(entries * codecs.ENTRY_BYTES)
        assert Look(entries, None, data, len(data)).renews is (entries > ANSWER_ENTRIES)
    assert ANSWER_ENTRIES >= RECENT + SAMPLED


def test_a_history_is_read_whole_as_soon_as_it_may_be_worth_compacting() -> None:
    ratings = b"".join([codecs.pack_entry(item, 3.0, 0.0) for item in range(3_000)])
    due = due_after(3_000, 3_000)
    for entries, worth in ((due, False), (due + 1, True)):
        taken_back = b"".join([codecs.pack_entry(item, math.nan, 0.0) for item in range(entries - 3_000)])
        data = ratings + taken_back
        assert codecs.worth_compacting(data, codecs.unpack_history(data, SCALE)) is worth
    assert due_after(3_000, 1_501) == 3_375
