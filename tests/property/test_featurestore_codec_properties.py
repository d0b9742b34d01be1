"""Codecs, ids and blocks of lookups against plain models: whatever is written is read, whatever its order."""

import asyncio
import math
from itertools import pairwise
from typing import Any

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factors import Scale
from featurestore import codecs
from featurestore.codecs import History, pack_records, record_dtype
from featurestore.id_columns import IdOrder, Ids
from featurestore.keys import partition_of, partitions_of
from featurestore.users.batch_lookup import LookupReader
from featurestore.users.histories import Look, due_after, pack_sample
from featurestore.wire.socket import StoreSocket

WIDE = Scale(-10.0, 10.0)
# Items with the type of an event.
ROWS = st.tuples(st.integers(0, 2**27 - 1), st.just(0))
FEW_ROWS = st.tuples(st.integers(0, 5), st.sampled_from([0, 0, 1, 16, 31]))
Pair = tuple[int, int]
VALUES = st.one_of(st.floats(-10, 10), st.just(math.nan))
TIMES = st.one_of(st.floats(0, 4e9), st.just(math.nan))
ENTRIES = st.lists(st.tuples(st.one_of(FEW_ROWS, ROWS), VALUES, TIMES), max_size=60)


def effective(entries: list[tuple[Pair, float, float]]) -> dict[Pair, tuple[float, float]]:
    """The rule by a dictionary; a re-rated item moves to the end."""
    holds: dict[Pair, tuple[float, float]] = {}
    for pair, value, time in entries:
        holds.pop(pair, None)
        if not math.isnan(value):
            holds[pair] = (value, time)
    return holds


@given(ENTRIES)
def test_a_history_is_what_the_rule_says(entries: list[tuple[Pair, float, float]]) -> None:
    stored = b"".join([codecs.pack_entry(row, value, at, code) for (row, code), value, at in entries])
    found = codecs.unpack_history(stored, WIDE)
    expected = effective(entries)
    rated = {row: said for (row, code), said in expected.items() if code == 0}
    assert found.item_row.tolist() == list(rated)
    np.testing.assert_array_equal(found.rating, [value for value, _ in rated.values()])
    np.testing.assert_array_equal(found.time, [time for _, time in rated.values()])
    events = [(pair, place) for place, pair in enumerate(expected) if pair[1]]
    feedback = found.feedback
    assert feedback.item_row.tolist() == [row for (row, _), _ in events]
    assert feedback.type_code.tolist() == [code for (_, code), _ in events]
    np.testing.assert_array_equal(feedback.value, [expected[pair][0] for pair, _ in events])
    assert feedback.place.tolist() == [place - k for k, (_, place) in enumerate(events)]
    # As the ranking head reads them, all are in their order.
    merged = codecs.pack_feedback([found, found])
    codes = [code for _, code in expected] * 2 if events else None
    assert merged.other_row.tolist() == [row for row, _ in expected] * 2
    assert codes == (None if merged.type_code is None else merged.type_code.tolist())


@given(st.lists(st.integers(0, 2**63 - 1), max_size=8), st.integers(1, 9))
def test_records_are_read_as_written(counters: list[int], width: int) -> None:
    rng = np.random.default_rng(len(counters))
    vectors = rng.normal(size=(len(counters), width)).astype(np.float32)
    n = np.array(counters, dtype=np.int64)
    records = codecs.pack_records(n, vectors)
    assert codecs.record_table(n, vectors).tobytes() == b"".join(records)
    assert codecs.damaged_records(b"".join(records), codecs.record_dtype(width).itemsize) == []
    seen, read = codecs.unpack_records(records, width)
    assert seen.tolist() == counters
    np.testing.assert_array_equal(read, vectors)


# Ratings, and events of two types, of thirty items.
THIRTY = st.tuples(st.integers(0, 29), st.sampled_from([0, 0, 1, 2]))
GIVEN = st.lists(st.tuples(THIRTY, st.sampled_from([1.0, 2.0, math.nan])), max_size=25)


@given(st.lists(st.tuples(GIVEN, st.booleans())))
def test_a_sample_and_what_follows_say_what_holds(
    batches: list[tuple[list[tuple[Pair, float]], bool]],
) -> None:
    stored, n, sample, latest = b"", 0, None, 8
    for batch, compacts in batches:
        stored += b"".join([codecs.pack_entry(row, value, 0.0, code) for (row, code), value in batch])
        n += len(batch)
        # As `look` does, with answers of 24 entries.
        since = n - (int.from_bytes(sample[:8], "little") if sample else 0)
        tail = stored[-codecs.ENTRY_BYTES * (max(since, latest) if since <= 24 else 24) :]
        look = Look(n, None, tail, len(stored), sample)
        part = look.part
        read = codecs.unpack_history(stored if part is None else part, WIDE)
        # A sample holds more items than there are here: nothing is missing either.
        truth = codecs.unpack_history(stored, WIDE)
        assert _ratings(read) == _ratings(truth)
        if part is None or look.whole or since >= latest:
            due = due_after(look.entries, read.entries)
            sample = pack_sample(n, look.missing, due, read, codecs.has_events(stored))
        if compacts:
            # By a reader that has written no sample.
            stored = codecs.pack_history(truth)


def _ratings(history: History) -> dict[Pair, float]:
    entries = np.frombuffer(codecs.pack_history(history), codecs.ENTRY_DTYPE)
    return {(row, code): rating for row, code, rating, _ in entries.tolist()}


ID = st.one_of(
    st.integers(0, 50).map(lambda number: b"%d" % number),
    st.sampled_from([b"a" * length for length in (1, 7, 8, 9, 16, 40, 41, 255, 256)]),
    st.sampled_from([b"a\0", b"a\0\0", b"a" * 7 + b"\0", b"a" * 8 + b"\0", b"\0", b"\0\0"]),
    st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "replace")),
)
SHORT = ID.filter(lambda each: len(each) <= 40)
IDS = st.one_of(st.lists(ID, max_size=40), st.lists(SHORT, max_size=40))


@given(IDS, st.sampled_from([1, 16, 200]))
def test_the_partition_of_one_user_and_of_many_is_the_same(ids: list[bytes], partitions: int) -> None:
    one_by_one = [partition_of(user_id, partitions) for user_id in ids]
    assert partitions_of(Ids.of(ids), partitions).tolist() == one_by_one
    assert partitions_of(ids, partitions).tolist() == one_by_one


@given(st.lists(st.lists(ID, max_size=20), max_size=5), st.sampled_from([b"", b"a", b"1"]), st.integers(1, 9))
def test_ids_are_paged_in_their_order_as_more_come(parts: list[list[bytes]], prefix: bytes, n: int) -> None:
    known: list[bytes] = []
    order = IdOrder(known)
    for part in parts:
        known += [each for each in dict.fromkeys(part) if each not in known]
        asyncio.run(order.grow())
        paged, after = list[bytes](), b""
        while page := order.page(n, prefix=prefix, after=after):
            paged += page
            after = page[-1]
        assert paged == sorted(each for each in known if each.startswith(prefix))


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
