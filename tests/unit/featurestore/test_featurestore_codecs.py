"""Codecs: damage of records, and when a history is compacted."""

import numpy as np
import pytest

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History, RecordCorrupt

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
    ("superseded", "kept", "worth"),
    [(63, 1, False), (64, 1, True), (64, 63, True), (64, 64, False), (0, 9, False)],
)
def test_a_history_is_compacted_when_more_than_half_is_superseded(
    superseded: int, kept: int, worth: bool
) -> None:
    data = codecs.pack_entry(0, 1.0, 0.0) * superseded + codecs.pack_history(history(list(range(kept))))
    assert codecs.worth_compacting(data, codecs.unpack_history(data, WIDE)) is worth
