"""Copies of what was read of users, for answers while the store is away. Invariant: they are of the
generations that are served, bounded in bytes and in age, and none was read before the last user was forgotten
of whom the store has told: here at once, elsewhere with the next poll.

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
# Profiles are asked for recommendations alone; one has 21 bytes a rating.
PROFILES_BYTES = 8 * 2**20
# A longer history would take the place of many users.
LONGEST_HISTORY = 2_000
# Beside the bytes of an id and a record: an entry of a dictionary that is half full, and the objects' own.
OVERHEAD_BYTES = 250
# Of a user id in the API.
LONGEST_ID_BYTES = 256
# A call ends within its time-out, 1 s by itself; what it read is kept soon after.
SETTLED_S = 2.0
# Each copy is dropped between one and two such times after it was read last.
KEPT_S = 300.0
# Those who rate and are then predicted for; of an import, which goes on long before, none is kept back.
RATERS_KEPT = 4_096
# Histories of up to 60 KB come with one lookup.
RATERS_AT_ONCE = 16

T = TypeVar("T")


class _Aging(Generic[T]):
    """A dictionary in two ages: what is not written again is gone after two turns. No entry is moved."""

    def __init__(self) -> None:
        self.young: dict[bytes, T] = {}
        self.old: dict[bytes, T] = {}

    def get(self, key: bytes) -> T | None:
        value = self.young.get(key)
        return self.old.get(key) if value is None else value

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
    """What one process holds of users. To keep a copy costs less than a tenth of a microsecond. `settled_s`:
    after so long nothing is under way that was read before.
    """

    def __init__(self, settled_s: float = SETTLED_S) -> None:
        # By epoch and generation: two while one takes the place of the other.
        self._of: dict[tuple[int, int], _OfGeneration] = {}
        self._turned_at = float("-inf")
        self._settled_s = settled_s
        # From when on copies are kept again, by the clock of `age`.
        self._closed_until = float("-inf")
        self._open = True
        # How often users were forgotten, as the store told it last.
        self._erasures: bytes | None = None
        self._forgotten = 0

    def keep(self, live: LiveGeneration, user_ids: Iterable[bytes], records: Iterable[bytes]) -> None:
        """Keep the records of users as they were read."""
        if self._open:
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
        if not self._open or profile.history.entries > LONGEST_HISTORY:
            return
        size = OVERHEAD_BYTES + len(user_id) + len(live.prior_record) + ENTRY_BYTES * profile.history.entries
        self._held(live).keep_profile(user_id, profile, size)

    def lookup(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> UserLookup:
        """Users as they were read last; one of whom there is no copy is the prior. None is behind."""
        prior, of = live.prior_record, self._of.get((live.epoch, live.generation))
        if of is None:
            return counter_rule.of_records(live, [prior] * len(user_ids))
        get = of.records.get
        return counter_rule.of_records(live, [get(user_id) or prior for user_id in user_ids])

    def profile(self, live: LiveGeneration, user_id: bytes) -> Profile | None:
        """One user as read last; None where there is no copy."""
        of = self._of.get((live.epoch, live.generation))
        return None if of is None else of.profiles.get(user_id)

    def forget(self, now: float) -> None:
        """Drop everything, as a user is forgotten at `now`, by a clock in seconds; and keep nothing for a
        while: what was asked before may be answered after this.
        """
        self._of.clear()
        self._forgotten += 1
        self._open, self._closed_until = False, now + self._settled_s

    def age(self, now: float, erasures: bytes = b"") -> None:
        """Drop what is old, by a clock in seconds, and everything where the store has another number of
        `erasures` than before. To be called often while the store answers.
        """
        if erasures != self._erasures:
            if self._erasures is not None:
                self.forget(now)
            self._erasures = erasures
        elif now >= self._closed_until:
            self._open = True
        if now - self._turned_at >= KEPT_S:
            self._turned_at = now
            for of in self._of.values():
                of.records.turn()
                of.turn_profiles()

    def serve(self, generations: Set[tuple[int, int]]) -> None:
        """Drop what is of other generations than these, each by epoch and number."""
        for other in self._of.keys() - generations:
            del self._of[other]

    @property
    def begun(self) -> int | None:
        """Which reading of users begins now, for what is kept elsewhere as long as `holds` says so. None
        while nothing may be kept.
        """
        return self._forgotten if self._open else None

    def holds(self, begun: int | None) -> bool:
        """Return whether no user was forgotten since a reading began."""
        return begun == self._forgotten

    def clear(self) -> None:
        """Drop everything."""
        self._of.clear()

    def _held(self, live: LiveGeneration) -> _OfGeneration:
        found = self._of.get((live.epoch, live.generation))
        if found is None:
            found = self._of[live.epoch, live.generation] = _OfGeneration(live)
        return found


class RecentRaters:
    """Users who have rated by this process and were not looked up since. Their record is behind, so that the
    history is asked for together with it, and not after it. It is a guess: no answer depends on it but by the
    time that it takes.
    """

    def __init__(self) -> None:
        self._user_ids: dict[bytes, None] = {}

    def add(self, user_ids: Iterable[bytes]) -> None:
        """Take in who has rated; those before the latest `RATERS_KEPT` are forgotten."""
        for user_id in user_ids:
            self._user_ids.pop(user_id, None)
            self._user_ids[user_id] = None
        for user_id in list(self._user_ids)[: max(0, len(self._user_ids) - RATERS_KEPT)]:
            del self._user_ids[user_id]

    def take(self, user_ids: Sequence[bytes]) -> list[bytes]:
        """Return who of these has rated, each once and `RATERS_AT_ONCE` at most, and forget that."""
        if not self._user_ids:
            return []
        found = [user_id for user_id in dict.fromkeys(user_ids) if user_id in self._user_ids][:RATERS_AT_ONCE]
        for user_id in found:
            del self._user_ids[user_id]
        return found
