"""Codecs: damage of records."""

import numpy as np
import pytest

from featurestore import codecs
from featurestore.codecs import RecordCorrupt


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
