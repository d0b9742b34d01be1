"""The reader of large values: any cut of the bytes gives the pieces, any other reply is handed on whole."""

import pytest

from featurestore.wire.chunk_reader import ChunkReader
from featurestore.wire.resp import UnusualReplies

VALUES = [b"a" * 7, b"", b"\r\n$3\r\n" * 20, b"z"]
REPLIES = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in VALUES)


def feed(reader: ChunkReader, data: bytes, step: int) -> bytes | None:
    """Give it all of `data`, `step` bytes at a time as far as there is room."""
    rest: bytes | None = None
    while data:
        assert rest is None
        room = reader.room
        size = min(step, len(room), len(data))
        room[:size] = data[:size]
        rest, data = reader.took(size), data[size:]
    return rest


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_any_cut_gives_the_pieces(step: int) -> None:
    reader = ChunkReader([len(value) for value in VALUES])
    assert feed(reader, REPLIES, step) == b""
    assert [bytes(piece) for piece in reader.pieces] == VALUES


@pytest.mark.parametrize("odd", [b"$-1\r\n", b"-ERR no\r\n", b"$8\r\n" + b"a" * 8 + b"\r\n", b"$70\r\n"])
@pytest.mark.parametrize("before", [0, 2])
def test_another_reply_is_handed_on_with_all_before_it(odd: bytes, before: int) -> None:
    data = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in VALUES[:before]) + odd
    reader = ChunkReader([len(value) for value in VALUES])
    with pytest.raises(UnusualReplies) as raised:
        feed(reader, data, 5)
    assert data.startswith(raised.value.data)
    assert len(raised.value.data) > len(data) - len(odd)
