"""Keys: the slots of a cluster, and that no two things share a name."""

import binascii

import pytest

from featurestore.keys import Keys, partition_of

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
