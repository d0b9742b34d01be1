"""Named rules of lists. Invariant: what is read here was written whole, with the version that tells a reader
whether it has it already; readers know what it says.
"""

import asyncio
from hashlib import blake2b
from typing import Any

from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreRefused
from featurestore.experiments import DEFAULT_SCENARIO
from featurestore.keys import Keys, shown_key
from featurestore.wire.connection import Connection
from featurestore.wire.resp import encode

# A front-end has some ten lists; each may be 1 MB of ids.
MOST_SCENARIOS = 1_000
# Of the field that has the version of a scenario: no name begins so.
_MARK = b":"
_VERSION_BYTES = 16  # no two texts have the same by chance


class Scenarios:
    """Reads and changes scenarios, as bytes by name. Every method may raise `StoreUnavailable`, and may then
    be repeated. `hot`: the connection over which rankings look up users.
    """

    def __init__(self, keys: Keys, hot: Connection, client: Client, confirmation: Confirmation) -> None:
        self._key = keys.scenarios
        self._experiments = keys.experiments
        self._hot = hot
        self._client = client
        self._confirmation = confirmation

    def ask(self, name: bytes) -> "asyncio.Future[list[Any]]":
        """Ask for the version of a scenario in the write of this turn of the event loop; `found` reads the
        reply.
        """
        return self._hot.execute(encode(b"HGET", self._key, _MARK + name), 1)

    def found(self, reply: Any) -> bytes | None:
        """Return the version that a reply has, None where there is no such scenario, or it has no version.

        Raises `StoreError`.
        """
        if isinstance(reply, Exception):
            raise self._hot.failure(reply)
        return None if reply is None else bytes(reply)

    async def get(self, name: bytes) -> bytes | None:
        """Return a scenario, None where it is not there."""
        if name.startswith(_MARK):
            return None
        value: Any = await self._client.hget(self._key, name)
        return None if value is None else bytes(value)

    async def names(self) -> list[bytes]:
        """Return the names of all, in order."""
        names: Any = await self._client.hkeys(self._key)
        return sorted(name for name in names if not name.startswith(_MARK))

    async def versions(self) -> dict[str, str]:
        """Return the version of each scenario, by name."""
        names = await self.names()
        found: Any = await self._client.hmget(self._key, [_MARK + name for name in names]) if names else []
        return {
            name.decode("utf-8", "replace"): (mark or b"").decode("ascii", "replace")
            for name, mark in zip(names, found, strict=True)
        }

    async def texts(self) -> dict[str, str]:
        """Return all scenarios, each as its text. Raises `StoreDamaged` where one is none."""
        found: dict[str, str] = {}
        # One by one: all at once they may be larger than a reply should be.
        for name in await self.names():
            value = await self.get(name)
            try:
                found[name.decode()] = (value or b"").decode()
            except UnicodeDecodeError as exc:
                raise StoreDamaged(shown_key(self._key), f"the scenario {name!r} is no text") from exc
        return found

    async def put(self, name: bytes, value: bytes) -> None:
        """Store a scenario in place of the one before. Raises `StoreRefused` where there are too many."""
        names = await self.names()
        if len(names) >= MOST_SCENARIOS and name not in names:
            raise StoreRefused(f"there may be {MOST_SCENARIOS} scenarios")
        since = self._confirmation.begin(self._key)
        # In one step, so that no reader takes an earlier text for this version.
        await self._client.change_fields(self._key, {name: value, _MARK + name: version_of(value)})
        await self._confirmation.wait(since)

    async def default(self) -> str | None:
        """Return the scenario of calls that ask for none, as an experiment has left it; None for none."""
        name: Any = await self._client.hget(self._experiments, DEFAULT_SCENARIO)
        return name.decode("utf-8", "replace") if name else None

    async def put_default(self, name: str) -> None:
        """Put back the scenario of calls that ask for none, where the store has none."""
        since = self._confirmation.begin(self._experiments)
        await self._client.hsetnx(self._experiments, DEFAULT_SCENARIO, name.encode())
        await self._confirmation.wait(since)

    async def delete(self, name: bytes) -> bool:
        """Remove a scenario; whether it was there."""
        if name.startswith(_MARK):
            return False
        since = self._confirmation.begin(self._key)
        removed = await self._client.change_fields(self._key, gone=[name, _MARK + name])
        await self._confirmation.wait(since)
        return bool(removed)


def version_of(value: bytes) -> bytes:
    """Return the version of a scenario: of equal texts it is the same."""
    return blake2b(value, digest_size=_VERSION_BYTES).hexdigest().encode()
