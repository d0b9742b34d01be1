"""Keys, the slots of a cluster that they lie in, and payloads in pieces."""

import binascii

import pytest

from featurestore.cluster.keys import ClusterKeys
from featurestore.cluster.slots import (
    SLOTS,
    even_tags,
    slot_of,
    slot_of_tag,
    split_commands,
)
from featurestore.keys import Keys, partition_of
from featurestore.wire.functions import encode_call, encode_packed_call
from featurestore.wire.resp import bulk, encode, keys_of

KEYS = Keys("ns", 4)
USERS = [b"u", b"{x}", b"}{", b"{}", "\N{SNOWMAN}".encode(), b"a:b"]


def slot(key: bytes) -> int:
    """The slot of a key, as a cluster computes it."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    if start != -1 and end > start + 1:
        key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % 16384


@pytest.mark.parametrize("user_id", USERS)
def test_all_keys_of_a_partition_lie_in_one_slot(user_id: bytes) -> None:
    p = partition_of(user_id, 4)
    keys = [KEYS.epochs(p)]
    for epoch in (1, 2):
        keys += [KEYS.user(epoch, user_id), KEYS.history(epoch, user_id), KEYS.ratings(epoch, p)]
        keys += [KEYS.forgotten(epoch, p), KEYS.counts(epoch, p)]
    assert len({slot(key) for key in keys}) == 1


def test_keys_that_one_function_touches_lie_in_one_slot() -> None:
    live = [
        KEYS.live,
        KEYS.lease,
        KEYS.generations,
        KEYS.commands,
        KEYS.workers,
        KEYS.stored,
        KEYS.command("x"),
    ]
    assert len({slot(key) for key in live}) == 1
    assert slot(KEYS.items(3)) == slot(KEYS.order(3))


def test_slot_is_that_of_the_specification() -> None:
    # Its own example, and one of `CLUSTER KEYSLOT` of a server.
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"user1000") == 3443


@pytest.mark.parametrize("parts", [1, 3, 16, 256, 2048])
def test_tags_lie_one_a_range_and_stay_what_they_are(parts: int) -> None:
    tags = even_tags(parts)
    assert [slot_of_tag(tag) * parts // SLOTS for tag in tags] == list(range(parts))
    assert all(tag.isdigit() for tag in tags)


def test_some_tags_that_stored_keys_have() -> None:
    """Keys depend on them for ever."""
    assert even_tags(4) == (b"48576", b"1296", b"2821", b"16248")
    keys = ClusterKeys("ns", 4)
    assert keys.epochs(1) == b"ns:{1296}:epochs"
    together = [keys.config, keys.items(1), keys.order(1), keys.deltas(1, 2)]
    assert {slot_of(key) for key in together} == {slot_of(keys.live)}
    assert len({*together, keys.items(2), keys.order(2), keys.deltas(1, 3), keys.deltas(2, 2)}) == 8


def test_commands_are_taken_apart_and_their_keys_found() -> None:
    calls = [
        encode(b"HMGET", b"ns.1:{12}:user:a\r\n$3\r\n", b"n", b"g1"),
        encode_call("look", [b"{7}:user", b"{7}:history"], [b"n"]),
        encode_packed_call("rate", 1, [bulk(b"{5}:k")], 2, [bulk(b""), bulk(b"*2\r\n")]),
        encode(b"PING"),
        encode(b"GET", b"k"),
    ]
    assert split_commands(b"".join(calls), len(calls)) == calls
    assert split_commands(calls[0], 1) == [calls[0]]
    assert [keys_of(call)[0] for call in (*calls[:3], calls[4])] == [
        b"ns.1:{12}:user:a\r\n$3\r\n",
        b"{7}:user",
        b"{5}:k",
        b"k",
    ]
