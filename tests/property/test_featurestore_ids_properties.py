"""Ids as columns: what is found out about them at once is what each of them says."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from featurestore.id_columns import Ids
from featurestore.id_order import IdOrder
from featurestore.keys import partition_of, partitions_of

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
