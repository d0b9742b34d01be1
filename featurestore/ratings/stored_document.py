"""One JSON document of the store that all processes follow, and change by compare-and-set.

Invariant: a change is made from what is stored at that moment, or not at all.
"""

import asyncio
import time
from collections.abc import Callable
from hashlib import sha1
from typing import Any, Generic, TypeVar

from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.keys import shown_key

# A process that has read the document asks again after so long: each knows of a change within this time.
FOLLOWED_S = 1.0
# Parsed in about 0.1 ms; more is parsed in a thread.
_AT_ONCE_BYTES = 8_192
# As often another call may change the document in between.
_ATTEMPTS = 8

T = TypeVar("T")


class StoredDocument(Generic[T]):
    """Reads and changes one document. Every method may raise `StoreUnavailable`, and may then be repeated;
    `StoreDamaged` where what is stored cannot be read.

    `default`: what holds while nothing is stored; `to_bytes`, `from_bytes`: its format, the latter raises
    `ValueError` for anything else.
    """

    def __init__(
        self,
        client: Client,
        confirmation: Confirmation,
        *,
        key: bytes,
        default: T,
        to_bytes: Callable[[T], bytes],
        from_bytes: Callable[[bytes], T],
    ) -> None:
        self._key = key
        self._client = client
        self._confirmation = confirmation
        self._default = default
        self._to_bytes = to_bytes
        self._from_bytes = from_bytes
        self._kept = default
        # What was parsed last: of the same bytes it is the same document, and another one only of others.
        self._parsed: tuple[bytes | None, T] = (None, default)
        self._read_at = float("-inf")

    async def current(self) -> T:
        """Return the document as it was at most `FOLLOWED_S` ago."""
        if time.monotonic() - self._read_at > FOLLOWED_S:
            return await self.fresh()
        return self._kept

    async def fresh(self) -> T:
        """Return the document as it is now."""
        asked_at = time.monotonic()
        return self._keep(await self._read(await self._stored()), asked_at)

    async def known(self) -> T:
        """Return the same as `current`; while the store is away, or what it has cannot be read, the document
        as this process read it last. Raises nothing.
        """
        try:
            return await self.current()
        except (StoreUnavailable, StoreDamaged):
            return self._kept

    async def change(self, change: Callable[[T], T]) -> T:
        """Change the document in one step; return what it is then. Raises what `change` raises."""
        since = self._confirmation.begin()
        for _ in range(_ATTEMPTS):
            data = await self._stored()
            after = change(await self._read(data))
            digest = b"" if data is None else sha1(data, usedforsecurity=False).hexdigest().encode()
            reply: Any
            asked_at = time.monotonic()
            (reply,) = await self._client.call("put_text", ([self._key], [digest, self._to_bytes(after)]))
            if reply[0] == b"OK":
                await self._confirmation.wait(since)
                return self._keep(after, asked_at)
        raise StoreUnavailable(f"others are changing {shown_key(self._key)}", 0.1)

    async def _stored(self) -> bytes | None:
        data: Any = await self._client.get(self._key)
        return None if data is None else bytes(data)

    async def _read(self, data: bytes | None) -> T:
        if data is None:
            return self._default
        bytes_before, document = self._parsed
        if data == bytes_before:
            return document
        try:
            parse = self._from_bytes
            document = await asyncio.to_thread(parse, data) if len(data) > _AT_ONCE_BYTES else parse(data)
        except ValueError as exc:
            raise StoreDamaged(shown_key(self._key), str(exc)) from exc
        self._parsed = data, document
        return document

    def _keep(self, document: T, asked_at: float) -> T:
        # What is parsed in a thread may be there after what was asked for later.
        if asked_at >= self._read_at:
            self._kept, self._read_at = document, asked_at
        return document
