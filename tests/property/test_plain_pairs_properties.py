"""The short way of reading pairs: what it takes is what the JSON says."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from service.http.fast_pairs import plain_pairs as ids_of_plain_pairs
from service.routes.predict import PredictBody

IDS = st.one_of(st.text("ab1-", min_size=1, max_size=3), st.text(max_size=4), st.integers(0, 99))
PAIRS = st.lists(st.tuples(IDS, IDS), max_size=4)
SPACING = st.sampled_from([(",", ":"), (", ", ": "), (",  ", ":")])
# Bytes that change the structure more often than not.
CUTS = st.lists(
    st.tuples(
        st.integers(0, 80),
        st.integers(0, 2),
        st.sampled_from([b"", b'"', b",", b"[", b"]", b"\\", b" ", b"\n", b"x", b"}", b"\xc3"]),
    ),
    max_size=2,
)


def plain_pairs(body: bytes | bytearray) -> tuple[list[bytes], list[bytes]] | None:
    found = ids_of_plain_pairs(body)
    return None if found is None else (list(found[0]), list(found[1]))


def decoded(body: bytes) -> tuple[list[bytes], list[bytes]]:
    asked = msgspec.json.decode(body, type=PredictBody)
    assert isinstance(asked.pairs, list)
    assert asked.user_id is asked.item_id is asked.item_ids is msgspec.UNSET
    users, items = ([str(pair[side]).encode() for pair in asked.pairs] for side in (0, 1))
    return users, items


@given(PAIRS, SPACING, st.booleans(), CUTS)
def test_what_is_taken_is_what_the_json_says(
    pairs: list[tuple[str | int, str | int]],
    spacing: tuple[str, str],
    ascii_: bool,
    cuts: list[tuple[int, int, bytes]],
) -> None:
    body = json.dumps({"pairs": pairs}, separators=spacing, ensure_ascii=ascii_).encode(
        "utf-8", "surrogatepass"
    )
    found = plain_pairs(body)
    plain = all(
        isinstance(each, str) and each.isascii() and each.isprintable() for pair in pairs for each in pair
    )
    escaped = any(isinstance(each, str) and set(each) & {'"', "\\"} for pair in pairs for each in pair)
    empty = not all(isinstance(each, int) or each for pair in pairs for each in pair)
    if pairs and plain and not escaped and not empty and spacing[0] != ",  ":
        assert found is not None
    if found is not None:
        assert found == decoded(body)
    # What is broken is not taken for something else.
    for start, length, instead in cuts:
        body = body[:start] + instead + body[start + length :]
    if cuts and (found := plain_pairs(body)) is not None:
        assert found == decoded(body)
