"""What came of lists by generation, in the store: lists, items shown, positives, and how many items of the
catalogue were shown at all. Invariant: bounded, and the same for all replicas.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from featurestore.client import Client
from featurestore.errors import StoreDamaged
from featurestore.keys import Keys, shown_key, whole

# Positives come up to a week after a showing, and there may be a fit an hour, of which not all go live.
MOST_GENERATIONS = 168
# Three doubles.
_SUMS_BYTES = 24
# Rows that one step counts: half a millisecond of the store.
ROWS_AT_ONCE = 1_000


@dataclass(slots=True)
class Showings:
    """Of one generation: answered lists, items shown in lists, and of these those that a positive event
    followed. `distinct`: how many different items were shown, to about a percent.
    """

    lists: int = 0
    shown: int = 0
    positives: int = 0
    distinct: int = 0


class StoredShowings:
    """Adds to showings and reads them. Every method may raise `StoreUnavailable`; what was added may or may
    not count then, and is not to be repeated.
    """

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def add(self, generation: int, showings: Showings, rows: Collection[int]) -> None:
        """Add showings, and the rows of the items that were shown."""
        names = [self._keys.showings, self._keys.shown_items(generation)]
        sums = np.array([showings.lists, showings.shown, showings.positives], dtype="<f8").tobytes()
        packed = np.fromiter(rows, dtype="<u4", count=len(rows))
        for start in range(0, max(len(packed), 1), ROWS_AT_ONCE):
            part = packed[start : start + ROWS_AT_ONCE].tobytes()
            (reply,) = await self._client.call("add_showings", (names, [b"%d" % generation, sums, part]))
            sums = b""
            if int(reply[1]) > MOST_GENERATIONS:
                await self._drop_oldest()

    async def read(self) -> Mapping[int, Showings]:
        """Return the showings by generation. Raises `StoreDamaged`."""
        key, found = self._keys.showings, dict[int, Showings]()
        for number, data in (await self._client.hgetall(key)).items():
            if len(data) != _SUMS_BYTES:
                raise StoreDamaged(shown_key(key), f"{len(data)} bytes are no sums of showings")
            sums = np.frombuffer(data if isinstance(data, bytes) else data.encode(), dtype="<f8")
            found[whole(number, key)] = Showings(*(round(value) for value in sums.tolist()))
        counts = await self._client.of_each("PFCOUNT", map(self._keys.shown_items, found))
        for showings, distinct in zip(found.values(), counts, strict=True):
            showings.distinct = int(distinct)
        return found

    async def _drop_oldest(self) -> None:
        key = self._keys.showings
        numbers = sorted(whole(number, key) for number in await self._client.hkeys(key))
        pipe = self._client.pipeline()
        for number in numbers[:-MOST_GENERATIONS]:
            pipe.hdel(key, str(number))
            pipe.unlink(self._keys.shown_items(number))
        await pipe.execute()
