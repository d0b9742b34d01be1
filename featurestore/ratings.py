"""skeleton"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NewRating:
    """One rating as it comes in; a NaN `rating` takes the item's rating back. `time`: seconds since 1970."""

    user_id: bytes
    item_id: bytes
    rating: float
    time: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Receipt: how many ratings held, the user's last `n`, and the digest under which the store remembers to forget."""

    ratings: int
    n: int
    digest: bytes


class RatingsLog:
    """skeleton"""

    async def append(self, ratings: Sequence[NewRating], *, epoch: int | None = None) -> None:
        raise NotImplementedError

    async def forget(self, user_id: bytes) -> Forgotten:
        raise NotImplementedError

    async def forgotten(self, epoch: int) -> dict[bytes, int]:
        """Digest -> last `n` of every user that is to stay forgotten."""
        raise NotImplementedError

    async def release_forgotten(self, epoch: int, settled: dict[bytes, int]) -> int:
        """Drop the entries that still say the same: no kept generation has seen these users."""
        raise NotImplementedError

    async def loose_count(self, epoch: int) -> int:
        raise NotImplementedError

    async def begin_epoch(self) -> int:
        raise NotImplementedError

    async def abandon_epoch(self, epoch: int) -> None:
        raise NotImplementedError

    async def finish_epoch(self, epoch: int) -> None:
        raise NotImplementedError
