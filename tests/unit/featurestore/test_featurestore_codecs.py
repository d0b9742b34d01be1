"""Codecs: sizes as documented, damage, and the ratings of a call, split, packed and unpacked."""

import math
import zlib

import numpy as np
import pytest

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History, RecordCorrupt
from featurestore.ratings.batches import (
    NUMBER_DTYPE,
    STEP_RATINGS,
    Columns,
    pack_entries,
    pack_ids,
    shares_of,
)
from featurestore.ratings.stream import unpack
from tests.support.factories import SCALE

WIDE = Scale(-100.0, 100.0)


def history(rows: list[int]) -> History:
    return History(
        np.array(rows, dtype=np.int32),
        np.arange(1.0, len(rows) + 1, dtype=np.float64),
        np.full(len(rows), 5.0),
    )


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def test_each_byte_of_a_record_is_told() -> None:
    records = codecs.pack_records(np.array([3, 4, 5]), np.arange(12, dtype=np.float32).reshape(3, 4))
    size = len(records[0])
    assert codecs.damaged_records(b"".join(records), size) == []
    assert codecs.damaged_records(b"", size) == []
    for place in range(3 * size):
        damaged = flipped(b"".join(records), place)
        which = place // size
        assert codecs.damaged_records(memoryview(damaged), size) == [which]
        one = damaged[which * size : (which + 1) * size]
        assert codecs.read_record(one, size) is None
        with pytest.raises(RecordCorrupt):
            codecs.unpack_records([one], 4)
        # As it is marked where attributes of its user are others.
        assert codecs.read_record(bytes(8) + one, size) is None
    # Zeros are no record.
    assert codecs.damaged_records(bytes(2 * size), size) == [0, 1]


@pytest.mark.parametrize(
    "entry",
    [
        *((31 << 27, 3.0, 0.0), (1 << 27, math.inf, 0.0), (1 << 27, 3.0, 2e16)),
        *((1, 0.5, 0.0), (1, 5.5, 0.0), (1, math.inf, 0.0), (1, 3.0, 2e16)),
    ],
)
def test_an_entry_that_no_rating_has_is_corrupt(entry: tuple[int, float, float]) -> None:
    good = codecs.pack_entry(0, 3.0, math.nan)
    with pytest.raises(RecordCorrupt):
        codecs.unpack_history(good + codecs.pack_entry(*entry), SCALE)
    # One that was superseded says nothing any more.
    later = codecs.pack_entry(entry[0], 3.0, 0.0)
    if entry[0] == 1:
        assert codecs.unpack_history(good + codecs.pack_entry(*entry) + later, SCALE).rating.tolist() == [
            3,
            3,
        ]


@pytest.mark.parametrize(
    ("superseded", "kept", "worth"),
    [(63, 1, False), (64, 1, True), (64, 63, True), (64, 64, False), (0, 9, False)],
)
def test_a_history_is_compacted_when_more_than_half_is_superseded(
    superseded: int, kept: int, worth: bool
) -> None:
    data = codecs.pack_entry(0, 1.0, 0.0) * superseded + codecs.pack_history(history(list(range(kept))))
    assert codecs.worth_compacting(data, codecs.unpack_history(data, WIDE)) is worth


PARTITIONS = 4


def columns(count: int, users: int, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    user_ids = [b"user-%d" % k for k in rng.integers(0, users, count)]
    item_ids = [b"%d" % k for k in rng.integers(0, 50, count)]
    return Columns(user_ids, item_ids, rng.normal(size=count), np.arange(count, dtype=np.float64))


def entry(users: list[bytes], before: list[int], blobs: list[bytes]) -> list[bytes]:
    """An entry's fields as the store writes them."""
    numbers = np.empty(len(users), dtype=NUMBER_DTYPE)
    numbers["before"], numbers["events"] = before, [len(blob) // codecs.ENTRY_BYTES for blob in blobs]
    return [b"n", numbers.tobytes(), b"u", pack_ids(users), b"e", b"".join(blobs)]


@pytest.mark.parametrize(("count", "users"), [(1, 1), (500, 40), (500, 10_000), (3_000, 9)])
def test_every_rating_comes_back_with_its_user_in_order(count: int, users: int) -> None:
    given = columns(count, users)
    item_row = np.array([int(item) for item in given.item_id])
    found = set()
    seen: set[bytes] = set()
    for share in shares_of(given.user_id, PARTITIONS):
        assert {zlib.crc32(user) % PARTITIONS for user in share.users} == {share.partition}
        # One step has all that a user gets, and keeps the store for no longer than it must.
        assert seen.isdisjoint(share.users)
        seen.update(share.users)
        assert len(share.users) == 1 or share.ends[-2] < STEP_RATINGS
        blobs = pack_entries(share, item_row, given)
        before = list(range(10, 10 + len(blobs)))
        events, damaged = unpack([entry(share.users, before, blobs)], np.array([1_000]))
        assert damaged == []
        assert events.number.tolist() == list(range(1_001 - len(share.rows), 1_001))
        assert events.table["item_row"].tolist() == item_row[share.rows].tolist()
        assert events.table["rating"].tolist() == given.rating[share.rows].tolist()
        assert [events.users[k] for k in events.user] == [given.user_id[row] for row in share.rows]
        for place, user in enumerate(share.users):
            mine = [row for row in range(count) if given.user_id[row] == user]
            rows = share.rows[share.ends[place] : share.ends[place + 1]].tolist()
            assert rows == mine
            n = events.n[events.user == place].tolist()
            assert n == list(range(before[place] + 1, before[place] + 1 + len(mine)))
        found.update(share.rows.tolist())
    assert found == set(range(count))


def test_damaged_entries_are_left_out() -> None:
    blob = codecs.pack_entry(7, 4.0, 1.0)
    good = entry([b"a", b"b"], [0, 0], [blob, blob])
    bad = [
        [b"only", b"one"],
        [b"u", *good[1:]],
        [*good[:1], good[1][:-1], *good[2:]],
        [*good[:1], b"", *good[2:]],
        [*good[:3], good[3][:-1], *good[4:]],
        [*good[:3], b"\1", *good[4:]],
        [*good[:5], good[5][:-1]],
        [*good[:5], good[5] + blob],
        [*entry([b"a"], [0], [blob])[:5], b""],
    ]
    events, damaged = unpack([*bad, good], np.arange(1, len(bad) + 2) * 10)
    assert damaged == list(range(len(bad)))
    assert events.number.tolist() == [99, 100]
    assert events.entry.tolist() == [len(bad)] * 2
