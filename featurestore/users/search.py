"""Users by how their ids begin. Invariant: one call reads a bounded part of the store, whatever its size.

There is no index of ids: it would cost every user a hundred bytes, and forgetting one more place to clear. A
search goes over the keys, part by part.
"""

import re
from collections.abc import AsyncIterator
from typing import Any

from featurestore.client import Client
from featurestore.keys import Keys

# Keys that one step looks at: half a millisecond of the store.
_AT_ONCE = 2_000
_STEPS = 10  # of one call: 20,000 keys in some 10 ms
_GLOB = re.compile(rb"([*?\[\]\\^])")


class UserSearch:
    """Looks for users. Every method may raise `StoreUnavailable`, and may then be repeated."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def find(self, epoch: int, prefix: bytes, n: int, start: int = 0) -> tuple[list[bytes], int]:
        """Return some of the users of `epoch` whose ids begin with `prefix`, from `start` on: the user of
        this very id first, and about `n`, if one call finds so many; and where to go on, 0 at the end.
        """
        found: dict[bytes, None] = {}
        if prefix and not start and await self._client.exists(self._keys.user(epoch, prefix)):
            found[prefix] = None
        pattern = self._keys.users_pattern(epoch) + _GLOB.sub(rb"\\\1", prefix) + b"*"
        for _ in range(_STEPS):
            # redis-py does not know that without `decode_responses` keys are bytes.
            reply: Any = await self._client.scan(start, match=pattern, count=_AT_ONCE)
            start, keys = reply
            for key in keys:
                found[self._keys.user_of(key)] = None
            if not start or len(found) >= n:
                break
        return list(found), start

    async def all(self, epoch: int) -> AsyncIterator[list[bytes]]:
        """Yield all users of `epoch`, some at a time and in no order. One who is there all along is among
        them; the store may name one twice.
        """
        async for keys in self._client.pages(self._keys.users_pattern(epoch) + b"*", _AT_ONCE):
            if keys:
                yield [self._keys.user_of(key) for key in keys]
