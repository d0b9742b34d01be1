"""A sample of a history and what came since say what the whole history says."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History
from featurestore.users.histories import Look, due_after, pack_sample

SCALE = Scale(1, 5)
Events = list[tuple[int, float]]
# Ratings, and events of two types, of thirty items.
ROWS = st.builds(lambda row, code: code << 27 | row, st.integers(0, 29), st.sampled_from([0, 0, 1, 2]))


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(ROWS, st.sampled_from([1.0, 2.0, math.nan])), max_size=25), st.booleans()
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
