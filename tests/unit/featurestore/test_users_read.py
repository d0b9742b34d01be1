"""Which users a reader asks for, and which records keep their vector."""

from dataclasses import replace

import numpy as np
import pytest

from featurestore import codecs
from featurestore.users.fold_in import StaleUser, has_its_ratings

VIEW = 1 << codecs.ROW_BITS


def user(entries: list[int], n: int, seen: int, *, value: float = 1.0) -> StaleUser:
    history = b"".join([codecs.pack_entry(row, value, 0.0) for row in entries])
    (record,) = codecs.pack_records(np.array([seen]), np.ones((1, 4), dtype=np.float32))
    return StaleUser(b"ann", n, history, record, entries=len(entries))


@pytest.mark.parametrize(
    ("entries", "n", "seen", "kept"),
    [
        ([1, 2, VIEW, VIEW + 5], 4, 2, True),
        ([1, 2, VIEW, 3], 4, 2, False),
        ([1, VIEW, 3, VIEW], 4, 3, True),
        # A compaction, or an erasure: what the last entries are of is not known.
        ([1, 2, VIEW], 5, 4, False),
        ([1, 2, VIEW], 3, 3, False),
        ([VIEW] * 2_000, 2_000, 1, False),
    ],
)
def test_which_records_keep_their_vector(entries: list[int], n: int, seen: int, kept: bool) -> None:
    stale = user(entries, n, seen)
    assert has_its_ratings(stale) is kept
    assert not has_its_ratings(replace(stale, record=None))


def test_a_rating_that_is_taken_back_is_a_rating() -> None:
    assert not has_its_ratings(user([1, 2, 1], 3, 2, value=float("nan")))
