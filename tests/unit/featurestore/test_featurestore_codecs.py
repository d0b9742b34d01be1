"""Codecs: sizes as documented, wrong lengths, and when a history is compacted."""

import math

import numpy as np
import pytest

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History, RecordCorrupt
from featurestore.ratings import batches
from tests.support.factories import SCALE

WIDE = Scale(-100.0, 100.0)


def history(rows: list[int]) -> History:
    return History(
        np.array(rows, dtype=np.int32),
        np.arange(1.0, len(rows) + 1, dtype=np.float64),
        np.full(len(rows), 5.0),
    )


def test_sizes_are_those_of_the_documentation() -> None:
    assert codecs.ENTRY_BYTES == codecs.ENTRY_DTYPE.itemsize == 20
    assert batches.NUMBER_DTYPE.itemsize == 12
    assert codecs.record_dtype(14).itemsize == 8 + 4 * 14 + 4


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
