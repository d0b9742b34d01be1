"""What is stored of a generation, and how much its items are rated of late: read as written, or refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import GenerationBroken
from featurestore.generations import activity as activity_module
from featurestore.generations.activity import (
    HALF_LIFE_S,
    activity_from_bytes,
    activity_to_bytes,
)
from featurestore.generations.deltas import decode_deltas, encode_delta
from featurestore.generations.manifest import (
    GenerationMeta,
    decode_meta,
    decode_summary,
    encode_meta,
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


def test_no_byte_of_a_meta_can_change_unseen() -> None:
    text = encode_meta(meta())
    # The name of the last field may change: what it checks has not.
    for place in range(0, len(text) - 25, 7):
        changed = bytes([text[place] ^ 1])
        with pytest.raises(GenerationBroken):
            decode_meta(text[:place] + changed + text[place + 1 :], b"meta")


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
