"""What is stored of a generation, and how much its items are rated of late: read as written, or refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import GenerationBroken
from featurestore.generations import activity as activity_module
from featurestore.generations import manifest
from featurestore.generations.activity import activity_from_bytes, activity_to_bytes, is_by_events
from featurestore.generations.deltas import decode_deltas, encode_delta
from featurestore.generations.manifest import GenerationMeta, decode_meta, decode_summary, encode_meta
from tests.support.factories import make_draft, make_model


def test_a_meta_is_read_as_written_and_no_byte_of_it_can_change_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = make_draft(make_model(), 3, 5, 7)
    summary = replace(draft, generation=42, created=1.5, metrics={"rmse": 0.9}, state="ready", chunks=1)
    written = GenerationMeta(summary, {0: "1-1", 3: "5-0"}, 5, 100, 1234, make_model())
    read = decode_meta(encode_meta(written), b"meta")
    assert replace(read, model=written.model) == written
    assert read.model.parameters.keys() == written.model.parameters.keys()
    for text in (b"", b"{}", b"[1]", b'{"summary": 3}', b"\xff\xfe", b"null"):
        with pytest.raises(GenerationBroken):
            decode_meta(text, b"meta")
        with pytest.raises(GenerationBroken):
            decode_summary(text, b"generations")
    text = encode_meta(written)
    # The name of the last field may change: what it checks has not.
    for place in range(0, len(text) - 25, 7):
        changed = bytes([text[place] ^ 1])
        with pytest.raises(GenerationBroken):
            decode_meta(text[:place] + changed + text[place + 1 :], b"meta")
    # A model whose names are no text, under a checksum that is right.
    monkeypatch.setattr(manifest, "to_bytes", lambda _: b"\x81\xa1\xff\x01")
    with pytest.raises(GenerationBroken):
        decode_meta(encode_meta(written), b"meta")


def test_the_first_stars_beside_many_events_are_not_what_tells_items_apart() -> None:
    events = np.array([[0.0, 6e5, 0.0], [0.0, 4e5, 0.0]], np.float32)
    assert [is_by_events(n, events) for n in (0, 999, 9_999, 10_001)] == [True, True, True, False]
    assert [is_by_events(n, None) for n in (0, 1)] == [True, False]


def test_no_byte_of_a_delta_can_change_unseen() -> None:
    rows, table = np.array([5, 2], np.int32), np.ones((2, 3), np.float32)
    fields = (b"r", b"v", b"c", b"a", b"b", b"h", b"k")
    written = dict(zip(fields, encode_delta(rows, table[:, :2], table[:, :1], table), strict=False))
    assert decode_deltas([(b"1-1", written)], 2, "0", b"deltas", 3).rows.tolist() == [2, 5]
    for field in fields:
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
@given(st.lists(TIMES, max_size=6), st.sampled_from([1, 2, 5, 1 << 20]))
def test_a_rating_counts_half_with_each_week(by_item: list[list[float]], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity_module, "_AT_ONCE", at_once)
        activity = activity_from_bytes(packed(by_item), len(by_item))
    expected = [
        sum(2 ** (time / activity_module.HALF_LIFE_S) for time in times if not math.isnan(time))
        for times in by_item
    ]
    assert np.exp2(activity.levels).tolist() == pytest.approx(expected, rel=1e-5)
