"""Blocks of lookups that are read out of the bytes: what comes of them is what a reader of RESP finds."""

import asyncio
from itertools import pairwise
from typing import Any

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.codecs import pack_records, record_dtype
from featurestore.users.batch_lookup import LookupReader
from featurestore.wire.socket import StoreSocket

WIDTHS = st.sampled_from([1, 3, 30, 260])
COUNTERS = st.one_of(st.integers(0, 12), st.integers(0, 2**63 - 1))
USUAL, UNUSUAL = ["usual"] * 3, ["unknown", "none", "behind", "short", "long", "error", "numbers", "mark"]
SORTS = st.one_of(st.sampled_from(USUAL), st.sampled_from(USUAL + UNUSUAL))
REPLIES = st.lists(st.tuples(SORTS, COUNTERS), min_size=1, max_size=30)
USUAL_COUNTERS = st.one_of(st.integers(0, 9), st.integers(100, 102), st.integers(0, 999_999_999))
USUAL_REPLIES = st.one_of(
    st.lists(st.tuples(st.just("usual"), USUAL_COUNTERS), min_size=1, max_size=30),
    # All equally long.
    st.lists(st.tuples(st.just("usual"), st.integers(10, 99)), min_size=1, max_size=30),
)
# Whether a call reads its own replies, and these.
CALLS = st.lists(st.tuples(st.booleans(), st.one_of(REPLIES, USUAL_REPLIES)), min_size=1, max_size=4)


def bulk(text: bytes | None) -> bytes:
    return b"$-1\r\n" if text is None else b"$%d\r\n%b\r\n" % (len(text), text)


def reply(sort: str, n: int, width: int) -> bytes:
    """A reply to a lookup; "usual" is a record that is current."""
    vector = np.full((1, width), n % 97, dtype=np.float32)
    if sort == "mark":
        # The bytes of a record that look like the beginning of a reply.
        vector = np.frombuffer((b"*2\r\n$1\r\n" * width)[: 4 * width], dtype=np.float32)[None]
    record = pack_records(np.array([n + 1 if sort == "behind" and n < 2**63 - 1 else n]), vector)[0]
    number = bulk(b"%d" % n)
    replies = {
        "error": b"-WRONGTYPE 5 is of the wrong kind\r\n",
        "numbers": b"*2\r\n:%d\r\n:1\r\n" % (n % 1000),
        "unknown": b"*2\r\n" + bulk(None) * 2,
        "none": b"*2\r\n" + number + bulk(None),
        "short": b"*2\r\n" + number + bulk(record[: n % len(record)]),
        "long": b"*2\r\n" + number + bulk(record + b"x" * (1 + n % 300)),
    }
    return replies.get(sort, b"*2\r\n" + number + bulk(record))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(places)]


def shown(replies: list[Any]) -> list[Any]:
    return [str(each) if isinstance(each, Exception) else each for each in replies]


def give(wire: StoreSocket, data: bytes) -> None:
    while data:
        room = wire.get_buffer(65536)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        wire.buffer_updated(size)
        data = data[size:]


async def check(width: int, calls: list[tuple[bool, list[tuple[str, int]]]], cuts: list[int]) -> list[bool]:
    wire = StoreSocket(5.0, lambda _: None)
    parser = hiredis.Reader()
    data, asked = b"", []
    for own, sorts in calls:
        n = np.zeros(len(sorts), dtype=np.int64)
        records = np.zeros(len(sorts), dtype=record_dtype(width))
        reader = LookupReader(n, records) if own else None
        asked.append((wire.execute(b"?", len(sorts), reader=reader), n, records, sorts))
        data += b"".join([reply(sort, n, width) for sort, n in sorts])
    parser.feed(data)
    for piece in pieces(data, cuts):
        give(wire, piece)
    assert wire.why is None
    taken = []
    for future, n, records, sorts in asked:
        # No reader waits for what does not come.
        assert future.done()
        expected = [parser.gets() for _ in sorts]
        found = future.result()
        taken.append(not found)
        if found:
            assert shown(found) == shown(expected)
        else:
            assert n.tolist() == [int(number) for number, _ in expected]
            assert [each.tobytes() for each in records] == [record for _, record in expected]
            current = [place for place, (sort, _) in enumerate(sorts) if sort == "usual"]
            assert records["n"][current].tolist() == n[current].tolist()
    assert parser.gets() is False
    return taken


@given(WIDTHS, CALLS, st.lists(st.integers(0, 2**20), max_size=12))
def test_any_replies_in_any_pieces_are_what_the_usual_reader_finds(
    width: int, calls: list[tuple[bool, list[tuple[str, int]]]], cuts: list[int]
) -> None:
    asyncio.run(check(width, calls, cuts))
