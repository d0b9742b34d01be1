"""Keys, the slots of a cluster that they lie in, and payloads in pieces."""

from featurestore.cluster.keys import ClusterKeys
from featurestore.cluster.slots import even_tags, slot_of


def test_slot_is_that_of_the_specification() -> None:
    # Its own example, and one of `CLUSTER KEYSLOT` of a server.
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"user1000") == 3443


def test_some_tags_that_stored_keys_have() -> None:
    assert even_tags(4) == (b"48576", b"1296", b"2821", b"16248")
    keys = ClusterKeys("ns", 4)
    assert keys.epochs(1) == b"ns:{1296}:epochs"
    together = [keys.config, keys.items(1), keys.order(1), keys.deltas(1, 2)]
    assert {slot_of(key) for key in together} == {slot_of(keys.live)}
    assert len({*together, keys.items(2), keys.order(2), keys.deltas(1, 3), keys.deltas(2, 2)}) == 8
