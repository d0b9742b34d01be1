"""Copies of what was read of users, for answers while the store is away. Invariant: they are of the
generations that are served, bounded in bytes and in age, and there is none of a user whom this process has
forgotten.

A copy may lack ratings that were acknowledged: an answer that rests on copies says so.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Generic, TypeVar

from featurestore.codecs import ENTRY_BYTES
from featurestore.generations.live import LiveGeneration
from featurestore.users import counter_rule
from featurestore.users.counter_rule import Profile, UserLookup

# Records of 16,000 to 32,000 users at rank 8: those who asked last are most likely to ask next.
RECORDS_BYTES = 24 * 2**20
# Profiles are asked for recommendations alone; one has 20 bytes a rating.
PROFILES_BYTES = 8 * 2**20
# A longer history would take the place of many users.
LONGEST_HISTORY = 2_000
# Beside the bytes of an id and a record: an entry of a dictionary that is half full, and the objects' own.
OVERHEAD_BYTES = 250
# Of a user id in the API.
LONGEST_ID_BYTES = 256
# Each copy is dropped between one and two such times after it was read last.
KEPT_S = 300.0

T = TypeVar("T")


class _Aging(Generic[T]):
    """A dictionary in two ages: what is not written again is gone after two turns. No entry is moved."""

    def __init__(self) -> None:
        self.young: dict[bytes, T] = {}
        self.old: dict[bytes, T] = {}

    def get(self, key: bytes) -> T | None:
        value = self.young.get(key)
        return self.old.get(key) if value is None else value

    def pop(self, key: bytes) -> None:
        self.young.pop(key, None)
        self.old.pop(key, None)

    def turn(self) -> None:
        self.old, self.young = self.young, {}


class _OfGeneration:
    """The copies of one generation."""

    def __init__(self, live: LiveGeneration) -> None:
        largest = OVERHEAD_BYTES + LONGEST_ID_BYTES + len(live.prior_record)
        self._most_records = RECORDS_BYTES // 2 // largest
        self._profile_bytes = 0
        self.records: _Aging[bytes] = _Aging()
        self.profiles: _Aging[Profile] = _Aging()

    def keep(self, user_ids: Iterable[bytes], records: Iterable[bytes]) -> None:
        young = self.records.young
        young.update(zip(user_ids, records, strict=True))
        if len(young) > self._most_records:
            self.records.turn()

    def keep_profile(self, user_id: bytes, profile: Profile, size: int) -> None:
        self.profiles.young[user_id] = profile
        self._profile_bytes += size
        if self._profile_bytes > PROFILES_BYTES // 2:
            self.turn_profiles()

    def turn_profiles(self) -> None:
        self.profiles.turn()
        self._profile_bytes = 0


class UserCopies:
    """What one process holds of users. To keep a copy costs less than a tenth of a microsecond."""

    def __init__(self) -> None:
        # By epoch and generation: several while an experiment is over generations.
        self._of: dict[tuple[int, int], _OfGeneration] = {}
        self._turned_at = float("-inf")
        self._forgotten: _Aging[bool] = _Aging()

    def keep(self, live: LiveGeneration, user_ids: Iterable[bytes], records: Iterable[bytes]) -> None:
        """Keep the records of users as they were read."""
        self._held(live).keep(user_ids, records)

    def keep_lookup(self, live: LiveGeneration, user_ids: Sequence[bytes], found: UserLookup) -> None:
        """Keep users as they were looked up; those who are behind are kept when they are folded in."""
        if not found.behind:
            self.keep(live, user_ids, found.records)
            return
        behind = set(found.behind_ids)
        current = {
            user_id: record
            for user_id, record in zip(user_ids, found.records, strict=True)
            if user_id not in behind
        }
        self.keep(live, current.keys(), current.values())

    def keep_profile(self, live: LiveGeneration, user_id: bytes, profile: Profile) -> None:
        """Keep one user with the history."""
        if profile.history.entries > LONGEST_HISTORY:
            return
        size = OVERHEAD_BYTES + len(user_id) + len(live.prior_record) + ENTRY_BYTES * profile.history.entries
        self._held(live).keep_profile(user_id, profile, size)

    def lookup(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> UserLookup:
        """Users as they were read last; one of whom there is no copy is the prior. None is behind."""
        prior, of = live.prior_record, self._of.get((live.epoch, live.generation))
        if of is None:
            return counter_rule.of_records(live, [prior] * len(user_ids))
        get, forgotten = of.records.get, self._forgotten.get
        records = [prior if forgotten(user_id) else get(user_id) or prior for user_id in user_ids]
        return counter_rule.of_records(live, records)

    def profile(self, live: LiveGeneration, user_id: bytes) -> Profile | None:
        """One user as read last; None where there is no copy."""
        of = self._of.get((live.epoch, live.generation))
        return None if of is None or self._forgotten.get(user_id) else of.profiles.get(user_id)

    def forget(self, user_id: bytes) -> None:
        """Drop what there is of a user."""
        # What was asked before may be answered, and kept, after this.
        self._forgotten.young[user_id] = True
        for of in self._of.values():
            of.records.pop(user_id)
            of.profiles.pop(user_id)

    def age(self, now: float) -> None:
        """Drop what is old, by a clock in seconds. To be called often while the store answers."""
        if now - self._turned_at >= KEPT_S:
            self._turned_at = now
            for of in self._of.values():
                of.records.turn()
                of.turn_profiles()
            self._forgotten.turn()

    def serve(self, generations: Set[tuple[int, int]]) -> None:
        """Drop what is of other generations than these, each by epoch and number."""
        for other in self._of.keys() - generations:
            del self._of[other]

    def clear(self) -> None:
        """Drop everything."""
        self._of.clear()

    def _held(self, live: LiveGeneration) -> _OfGeneration:
        found = self._of.get((live.epoch, live.generation))
        if found is None:
            found = self._of[live.epoch, live.generation] = _OfGeneration(live)
        return found
