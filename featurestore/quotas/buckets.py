"""The token buckets in the store, by which the workers of all hosts share what a caller may take.

Invariant: what is reported here counts once, whichever worker reports it; a full bucket is not stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.client import Client
from featurestore.keys import Keys
from featurestore.quotas.limits import Rate

# Bounds how long one call keeps the store, to about half a millisecond.
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Spending:
    """What a worker let one caller take since it last said so. `bucket`: name of the bucket."""

    bucket: bytes
    rate: Rate
    tokens: float


class Buckets:
    """The buckets of one namespace."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def spend(self, spendings: Sequence[Spending]) -> list[float]:
        """Take what was spent, which may leave less than nothing; return what is left in each bucket.

        Raises `StoreError`: then it may or may not have been taken.
        """
        levels: list[float] = []
        for start in range(0, len(spendings), AT_ONCE):
            part = spendings[start : start + AT_ONCE]
            names = [self._keys.bucket(each.bucket) for each in part]
            args = [
                b"%r" % number for each in part for number in (each.rate.size, each.rate.per_s, each.tokens)
            ]
            (reply,) = await self._client.call("spend", (names, args))
            levels += map(float, reply[1])
        return levels
