"""Reports of evaluations, for people to look at. Invariant: bounded; nothing rests on them."""

from typing import Any

from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreRefused
from featurestore.keys import Keys

# As many as a page shows; a worker reads 1.3 MB for them at most.
MOST_REPORTS = 20


class Reports:
    """Reads and changes reports, as bytes by name. Every method may raise `StoreUnavailable`, and may then be
    repeated.
    """

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation) -> None:
        self._key = keys.reports
        self._client = client
        self._confirmation = confirmation

    async def all(self) -> dict[bytes, bytes]:
        """Return all reports."""
        found: Any = await self._client.hgetall(self._key)
        return dict(found)

    async def put(self, name: bytes, value: bytes) -> None:
        """Store a report in place of the one before. Raises `StoreRefused` where there are too many."""
        since = self._confirmation.begin()
        call = [self._key], [b"%d" % MOST_REPORTS, name, value]
        (reply,) = await self._client.call("put_report", call)
        if reply[0] == b"FULL":
            raise StoreRefused(f"there may be {MOST_REPORTS} reports")
        await self._confirmation.wait(since)

    async def delete(self, name: bytes) -> bool:
        """Remove a report; whether it was there."""
        since = self._confirmation.begin()
        removed = await self._client.change_fields(self._key, gone=[name])
        await self._confirmation.wait(since)
        return bool(removed)
