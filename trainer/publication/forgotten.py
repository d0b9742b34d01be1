"""Which forgotten users the store may stop to remember. Invariant: a user is released only when every
generation that can go live again was fitted without any rating of that user.
"""

from featurestore.store import Store
from trainer import log


class ForgottenUsers:
    """Forgotten users, each with the last `n`, by the generation whose fit has not seen them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # In memory only: after a restart the store remembers a user for two more fits.
        self._not_seen: dict[int, dict[bytes, int]] = {}

    def none_left(self, generation: int, forgotten: dict[bytes, int]) -> None:
        """Note that no rating of these users was left when this generation was fitted."""
        self._not_seen[generation] = forgotten

    async def release(self, epoch: int, kept: set[int]) -> None:
        """Let the store drop the users whom none of the generations `kept`, all that are left, has seen."""
        # `kept` was read a moment ago: a generation that went live since is not among them yet.
        newest = max(kept, default=0)
        self._not_seen = {n: users for n, users in self._not_seen.items() if n in kept or n > newest}
        if not kept or not kept <= self._not_seen.keys():
            return
        settled = set.intersection(*[set(self._not_seen[number].items()) for number in kept])
        if settled:
            released = await self._store.ratings.release_forgotten(epoch, dict(settled))
            if released:
                log.event("forgotten_released", epoch=epoch, users=released)
