"""Keys: the slots of a cluster, and that no two things share a name."""

import binascii

import pytest

from featurestore.keys import Keys, digest_of, partition_of

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


def test_the_hot_path_names_the_same_key() -> None:
    for user_id in USERS:
        assert KEYS.user(7, user_id) == b"ns.7:{%d}:user:%b" % (partition_of(user_id, 4), user_id)


def test_epochs_do_not_share_a_prefix() -> None:
    assert KEYS.epoch_pattern(1)[:-1] not in KEYS.user(11, b"u")
    assert not KEYS.live.startswith(KEYS.epoch_pattern(1)[:-1])


def test_no_two_names_are_equal() -> None:
    names = [KEYS.user(1, b"a"), KEYS.history(1, b"a"), KEYS.items(1), KEYS.order(1), KEYS.meta(1, 2)]
    names += [
        KEYS.chunk(1, 2, 3),
        KEYS.deltas(1, 2),
        KEYS.ratings(1, 0),
        KEYS.counts(1, 0),
        KEYS.forgotten(1, 0),
    ]
    names += [KEYS.epochs(0), KEYS.live, KEYS.config, KEYS.lease, KEYS.stored, KEYS.synced]
    assert len(set(names)) == len(names)


def test_a_digest_has_16_bytes_and_tells_users_apart() -> None:
    assert len(digest_of(b"a")) == 16
    assert digest_of(b"a") != digest_of(b"b")
