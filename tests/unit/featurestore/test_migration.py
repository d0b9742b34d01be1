"""What a migration takes along of each key there may be, and what the stores say of it."""

from featurestore.cluster.keys import ClusterKeys
from featurestore.cluster.slots import slot_of
from featurestore.generations.manifest import read_pointer
from featurestore.keys import Keys
from featurestore.migration.partitions import counts_of
from featurestore.migration.shared import CATALOGUE, FEW, LEFT_BEHIND
from featurestore.migration.stages import slots
from featurestore.ratings.stream import Progress

# Copied otherwise than key by key: as users, by partition, by generation, by experiment; or made by the copy.
BY_USER = {"user", "history", "user_contexts", "attributes", "attributes_list"}
BY_PARTITION = {"epochs", "ratings", "counts", "forgotten", "active"}
OF_GENERATIONS = {"meta", "chunk", "index_chunk", "deltas", "shown_items"}
APART = {
    *("live", "config", "stored", "items", "order", "command", "experiment_sums", "experiment_users"),
    *("migration", "changed"),
}
# No keys of their own.
NO_KEYS = {"partitions", "switched", "users", "user_of", "attributes_user"}


def test_each_kind_of_key_is_copied_or_left_behind_on_purpose() -> None:
    names = {
        name
        for name in dir(Keys("t", 2))
        if not name.startswith("_") and not name.endswith(("_prefix", "_prefixes", "_pattern"))
    }
    known = {*BY_USER, *BY_PARTITION, *OF_GENERATIONS, *APART, *FEW, *CATALOGUE, *LEFT_BEHIND}
    assert names - NO_KEYS == known


def test_what_is_said_of_a_migration_lies_in_the_slot_of_what_it_keeps() -> None:
    for keys in (Keys("t", 4), ClusterKeys("t", 4)):
        named = slots(keys, 1)
        assert named[0] == keys.live
        for key in named:
            assert slot_of(keys.migration(key)) == slot_of(key)
            assert slot_of(keys.changed(key, "token")) == slot_of(key)
        guarded = {keys.migration(key) for key in named}
        # The first key of what services call, as the functions of the store find it.
        first = [keys.catalogue, keys.schema, keys.scenarios, keys.reports, keys.commands, keys.access]
        first += [keys.items(1), keys.experiments, keys.config, keys.event_types, keys.contexts, keys.lease]
        first += [keys.epochs(3), keys.user(1, b"one"), keys.attributes_list(0), keys.forgotten(1, 2)]
        assert {keys.migration(key) for key in first} <= guarded


def test_the_pointer_tells_where_the_namespace_has_moved() -> None:
    def moved_to(text: bytes) -> str | None:
        return read_pointer({b"epoch": b"1", b"migration": text}, b"t:live").moved_to

    assert moved_to(b"copying 0a") is None
    assert moved_to(b"closing 0a") is None
    assert moved_to(b"moved 0a redis://two:1") == "redis://two:1"
    assert moved_to(b"gone 0a redis://two:1") == "redis://two:1"
    # By another version, or damaged.
    assert moved_to(b"gone") == ""
    assert moved_to(b"\xff") is None


def test_a_partition_that_comes_again_goes_on_where_it_ended() -> None:
    counts = [
        {b"last": b"7-5", b"done": b"5"},
        {b"last": b"9-2", b"done": b"2"},
        {b"last": b"8-3", b"done": b"3"},
    ]
    progress = {0: Progress((7, 5), 5), 1: Progress((9, 2), 2), 2: Progress((8, 3), 3)}
    one = counts_of(counts, progress, 1, "mine")
    assert one == [{b"floor": b"9", b"last": b"7-5", b"done": b"5", b"ended:1": b"9-2", b"ended:2": b"8-3"}]
    two = counts_of(one, {0: Progress((7, 5), 5)}, 2, "mine")
    assert two[0] == {b"floor": b"9", b"last": b"7-5", b"done": b"5", b"ended:2": b"8-3"}
    assert two[1] == {b"floor": b"9", b"last": b"9-2", b"done": b"2"}
    three = counts_of(two, {0: Progress((7, 5), 5), 1: Progress((9, 2), 2)}, 4, "mine")
    assert [each.get(b"last") for each in three] == [b"7-5", b"9-2", b"8-3", None]
    assert not [name for each in three for name in each if name.startswith(b"ended")]
