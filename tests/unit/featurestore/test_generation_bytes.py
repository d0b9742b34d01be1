"""What is stored of a generation, and how much its items are rated of late: read as written, or refused."""

import math
import struct
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import GenerationBroken, StoreDamaged
from featurestore.generations import activity as activity_module
from featurestore.generations.activity import (
    HALF_LIFE_S,
    activity_from_bytes,
    activity_to_bytes,
    positives_from_bytes,
    positives_to_bytes,
)
from featurestore.generations.deltas import decode_deltas, encode_delta
from featurestore.generations.manifest import (
    GenerationMeta,
    decode_meta,
    decode_summary,
    encode_meta,
    read_pointer,
)
from tests.support.factories import make_draft, make_model


def meta(rows: int = 5) -> GenerationMeta:
    draft = make_draft(make_model(), 3, rows, 7)
    written = replace(draft, generation=42, created=1.5, metrics={"rmse": 0.9}, state="ready")
    summary = replace(written, chunks=1 if rows else 0)
    return GenerationMeta(summary, {0: "1-1", 3: "5-0"}, rows, 100, 1234, make_model())


def test_a_meta_is_read_as_written() -> None:
    written = meta()
    read = decode_meta(encode_meta(written), b"meta")
    assert replace(read, model=written.model) == written
    assert read.model.parameters.keys() == written.model.parameters.keys()
    for text in (b"", b"{}", b"[1]", b'{"summary": 3}', b"\xff\xfe", b"null"):
        with pytest.raises(GenerationBroken):
            decode_meta(text, b"meta")
        with pytest.raises(GenerationBroken):
            decode_summary(text, b"generations")


def test_a_generation_of_a_newer_format_is_refused() -> None:
    summary = msgspec.json.decode(msgspec.json.encode(meta().summary))
    summary |= {"format": 2, "state": {"of": "later"}}
    newer = msgspec.json.encode({"summary": summary, "whatever": 1})
    for read in (
        lambda: decode_summary(msgspec.json.encode(summary), b"generations"),
        lambda: decode_meta(newer, b"meta"),
    ):
        with pytest.raises(GenerationBroken, match="format 2, this version reads 1: use the version"):
            read()


def test_no_byte_of_a_meta_can_change_unseen() -> None:
    text = encode_meta(meta())
    # The name of the last field may change: what it checks has not.
    for place in range(0, len(text) - 25, 7):
        changed = bytes([text[place] ^ 1])
        with pytest.raises(GenerationBroken):
            decode_meta(text[:place] + changed + text[place + 1 :], b"meta")


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"1.5", b" 1", b"\xff"])
def test_a_pointer_that_names_no_number_is_damaged(text: bytes) -> None:
    for field in (b"epoch", b"generation", b"fence", b"pending", b"last_epoch"):
        with pytest.raises(StoreDamaged, match="the store is damaged at NS:live: "):
            read_pointer({b"epoch": b"1", field: text}, b"NS:live")


FIELDS = (b"r", b"v", b"c", b"h", b"k")


def entry(rows: list[int], factors: list[list[float]] | None) -> dict[bytes, bytes]:
    """An entry of rows of two numbers, each the row's own."""
    some = np.array(rows, np.int32)
    table = None if factors is None else np.array(factors, np.float32)
    vectors = np.repeat(some[:, None], 2, axis=1).astype(np.float32)
    return dict(zip(FIELDS, encode_delta(some, vectors, table), strict=False))


def test_deltas_are_read_as_written_or_refused() -> None:
    nan = float("nan")
    entries = [
        (b"1-1", entry([5, 2, 9], [[1, 1, 1], [2, 2, 2], [nan, nan, nan]])),
        # Without ratings to rank by: the factors so far stay.
        (b"1-2", entry([2], None)),
        (b"1-3", entry([5], [[3, 3, 3]])),
    ]
    found = decode_deltas(entries, 2, "0", b"deltas", 3)
    assert found.rows.tolist() == [2, 5, 9]
    assert (found.ranked.tolist(), found.factors[:, 0].tolist()) == ([2, 5], [2.0, 3.0])
    merged = found.factors_of(np.array([9, 2, 5, 11], np.int32))
    np.testing.assert_array_equal(merged[:, 0], [nan, 2.0, 3.0, nan])
    # A reader without a head leaves them.
    without = decode_deltas(entries, 2, "0", b"deltas")
    assert (without.rows.tolist(), len(without.ranked), without.factors.shape) == ([2, 5, 9], 0, (0, 0))
    assert len(decode_deltas([], 2, "7-7", b"deltas", 3).ranked) == 0
    written = entry([5, 2], [[1, 1, 1], [2, 2, 2]])
    for field in FIELDS:
        damaged = written | {field: bytes([written[field][0] ^ 1]) + written[field][1:]}
        with pytest.raises(GenerationBroken, match="deltas: entry 1-1"):
            decode_deltas([(b"1-1", damaged)], 2, "0", b"deltas", 3)


DAY_S = 86_400.0
NOW_S = 2e9
TIMES = st.lists(st.floats(0, 60).map(lambda days: days * DAY_S) | st.just(math.nan), max_size=5)


def packed(by_item: list[list[float]]) -> bytes:
    indptr = np.cumsum([0, *map(len, by_item)]).astype(np.int64)
    return activity_to_bytes(indptr, np.array([time for times in by_item for time in times]), now_s=NOW_S)


@settings(max_examples=30)
@given(st.lists(TIMES, max_size=6), st.floats(0, 60), st.sampled_from([1, 2, 5, 1 << 20]))
def test_a_rating_counts_half_as_much_with_each_week(
    by_item: list[list[float]], days: float, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity_module, "_AT_ONCE", at_once)
        activity = activity_from_bytes(packed(by_item), len(by_item))
    now_s = activity.weighed_s + days * DAY_S
    expected = [
        sum(2 ** (-(now_s - time) / HALF_LIFE_S) for time in times if not math.isnan(time))
        for times in by_item
    ]
    assert activity.at(now_s).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_what_came_in_since_counts_whole() -> None:
    activity = activity_from_bytes(packed([[0.0, 0.0], [0.0], []]), 3)
    # Item 0 has lost a rating, 1 has two more, 3 came later.
    later = activity.updated(np.array([0, 1, 3]), np.array([1, 3, 4]), 4)
    assert later.at(HALF_LIFE_S).tolist() == pytest.approx([1.0, 2.5, 0.0, 4.0])
    again = later.updated(np.array([1]), np.array([2]), 5000)
    assert again.at(HALF_LIFE_S)[:5].tolist() == pytest.approx([1.0, 1.5, 0.0, 4.0, 0.0])
    assert len(again.at(0.0)) == 5000
    # However long ago, ratings tell items apart of which nothing came in.
    old = activity.at(1e12)
    assert old[0] > old[1] > old[2] == 0


def test_bytes_that_are_not_what_was_written_are_refused() -> None:
    data = packed([[0.0], [DAY_S]])
    assert activity_from_bytes(data, 2).counts.tolist() == [1, 1]
    nan = struct.pack("<f", math.nan)
    for broken in (
        b"",
        data[:-1],
        data + b"\0",
        data.replace(b"activity-1", b"activity-2"),
        data[:36] + nan + data[40:],
        data[:36] + struct.pack("<f", -1.0) + data[40:],
        data[:20] + struct.pack("<d", math.inf) + data[28:],
    ):
        with pytest.raises(GenerationBroken):
            activity_from_bytes(broken, 2)
    with pytest.raises(GenerationBroken):
        activity_from_bytes(data, 3)


def test_positive_events_are_followed_and_damaged_bytes_refused() -> None:
    table = np.array([[0.5, 2.0], [0.0, 0.0], [3.0, 3.0]], dtype=np.float32)
    data = positives_to_bytes(table)
    positives = positives_from_bytes(memoryview(data), 3)
    assert positives.weights.tolist() == [0.5, 0.0, 3.0]
    assert positives.counts_of(np.array([0, 2, 7])).tolist() == [2, 3, 0]
    # An item that came after the fit, and one of which events were taken back.
    news = np.array([[1.0, 4.0], [2.0, 2.0]], dtype=np.float32)
    later = positives.updated(np.array([4, 2]), news, 5)
    assert later.weights.tolist() == [0.5, 0.0, 2.0, 0.0, 1.0]
    assert later.gained(np.array([0, 2, 4, 9])).tolist() == [0.0, 0.0, 4.0, 0.0]
    assert positives.fitted.tolist() == table.tolist()
    for wrong in (data[:-1], data + b"\0", b"x" + data[1:], positives_to_bytes(np.full((3, 2), np.nan))):
        with pytest.raises(GenerationBroken):
            positives_from_bytes(wrong, 3)
    for wrong in (data, positives_to_bytes(-table[:2])):
        with pytest.raises(GenerationBroken):
            positives_from_bytes(wrong, 2)
