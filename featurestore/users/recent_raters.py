"""Users who have rated by this process and were not looked up since. Their record is behind, so that the
history is asked for together with it, and not after it.

Invariant: it is a guess. No answer depends on it but by the time that it takes.
"""

from collections.abc import Iterable, Sequence

# Those who rate and are then predicted for; of an import, which goes on long before, none is kept back.
KEPT = 4_096
# Histories of up to 60 KB come with one lookup.
AT_ONCE = 16


class RecentRaters:
    """The users of one process."""

    def __init__(self) -> None:
        self._user_ids: dict[bytes, None] = {}

    def add(self, user_ids: Iterable[bytes]) -> None:
        """Take in who has rated; those before the latest `KEPT` are forgotten."""
        for user_id in user_ids:
            self._user_ids.pop(user_id, None)
            self._user_ids[user_id] = None
        for user_id in list(self._user_ids)[: max(0, len(self._user_ids) - KEPT)]:
            del self._user_ids[user_id]

    def take(self, user_ids: Sequence[bytes]) -> list[bytes]:
        """Return who of these has rated, each once and `AT_ONCE` at most, and forget that."""
        if not self._user_ids:
            return []
        found = [user_id for user_id in dict.fromkeys(user_ids) if user_id in self._user_ids][:AT_ONCE]
        for user_id in found:
            del self._user_ids[user_id]
        return found
