"""What a migration takes along of each key there may be, and what the stores say of it."""

from featurestore.keys import Keys
from featurestore.migration.shared import CATALOGUE, FEW, LEFT_BEHIND

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
