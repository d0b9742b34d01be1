"""Attributes of users. Invariant: they go with the user, in the step in which the user is forgotten."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import sha1
from typing import Any

import msgspec

from featurestore.catalogue.item import AttributeValue
from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.keys import Keys, digest_of, partition_of, shown_key, whole
from featurestore.ratings.epochs import Epochs

# As often another call may change the same user in between.
ATTEMPTS = 8
# Keys that the store looks at in one step of a scan: a fraction of a millisecond, in which lookups wait.
SCANNED_AT_ONCE = 1_000

Values = dict[str, AttributeValue]
# From what a user's attributes are (None: there are none) to what they become. May raise.
ValuesChange = Callable[[Values | None], Values | None]

_DECODER = msgspec.json.Decoder(Values)


class UserAttributes:
    """Reads and changes attributes of users. Every method may raise `StoreUnavailable`, and may then be
    repeated; `StoreDamaged` names the key.
    """

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation, epochs: Epochs) -> None:
        self._keys = keys
        self._client = client
        self._confirmation = confirmation
        self._epochs = epochs

    async def get(self, user_id: bytes) -> Values | None:
        """Return a user's attributes, None where there are none."""
        data: Any = await self._client.hget(self._keys.attributes(user_id), "value")
        return None if data is None else self._read(user_id, data)

    async def change(self, user_id: bytes, change: ValuesChange) -> Values | None:
        """Change a user's attributes; return what they are then. In the same step the user's records, in each
        epoch, become such as a reader folds in anew. Raises what `change` raises.
        """
        keys, key = self._keys, self._keys.attributes(user_id)
        partition, owner = partition_of(user_id, keys.partitions), digest_of(user_id)
        since = self._confirmation.begin()
        for _ in range(ATTEMPTS):
            if not self._epochs.expected:
                await self._epochs.refresh()
            expected = self._epochs.expected[partition]
            names = [keys.epochs(partition), key]
            for epoch in map(int, expected.split(b",")):
                names += [keys.forgotten(epoch, partition), keys.user(epoch, user_id)]
            data: Any = await self._client.hget(key, "value")
            after = change(None if data is None else self._read(user_id, data))
            digest = b"" if data is None else sha1(data, usedforsecurity=False).hexdigest().encode()
            value = b"" if after is None else msgspec.json.encode(after)
            (reply,) = await self._client.call("put_attributes", (names, [expected, digest, value, owner]))
            if reply[0] == b"OK":
                await self._confirmation.wait(since)
                return after
            if reply[0] == b"EPOCHS":
                await self._epochs.learn(partition, reply[1])
        raise StoreUnavailable("others are changing the same user", 0.1)

    async def erase(self, epoch: int, user_id: bytes, at_ms: int) -> None:
        """Remove what a user had when forgotten, at this time of the store, and of the live `epoch` what
        rests on it. Safe to repeat.
        """
        keys = self._keys
        names = [keys.attributes(user_id), keys.user(epoch, user_id), keys.history(epoch, user_id)]
        await self._client.call("erase_attributes", (names, [b"%d" % at_ms]))

    async def make_known(self, epoch: int, user_ids: Sequence[bytes]) -> None:
        """Have an epoch know users of whom there are attributes, which may be from before it began: a reader
        then makes the prior that they give. Safe to repeat.
        """
        keys, by_partition = self._keys, dict[int, list[bytes]]()
        for user_id in user_ids:
            by_partition.setdefault(partition_of(user_id, keys.partitions), []).append(user_id)
        calls = []
        for partition, users in by_partition.items():
            names = [keys.forgotten(epoch, partition)]
            for user_id, key in zip(users, keys.users(epoch, users), strict=True):
                names += [keys.attributes(user_id), key]
            calls.append((names, [b"".join(map(digest_of, users))]))
        await self._client.call("know_users", *calls)

    async def stored(self, user_ids: Sequence[bytes]) -> list[bytes]:
        """Return the attributes of users as they are stored, empty for none; one round trip."""
        pipe = self._client.pipeline()
        for user_id in user_ids:
            pipe.hget(self._keys.attributes(user_id), "value")
        replies = await pipe.execute(raise_on_error=False)
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]

    async def read_all(self) -> AsyncIterator[Mapping[bytes, bytes]]:
        """Yield the attributes of all users as they are stored, some at a time; a user may come twice."""
        found: Any
        cursor, more = 0, True
        while more:
            cursor, found = await self._client.scan(cursor, self._keys.attributes_pattern, SCANNED_AT_ONCE)
            user_ids = list(map(self._keys.attributes_user, found))
            values = await self.stored(user_ids)
            yield {user_id: data for user_id, data in zip(user_ids, values, strict=True) if data}
            more = cursor != 0

    async def scan(self, cursor: int) -> tuple[int, Mapping[bytes, tuple[Values, int]]]:
        """Return the next cursor, 0 at the end, and of each user the attributes and since when they are
        these, in milliseconds by the store's clock; begins at cursor 0. A user may come twice.
        """
        found: Any
        # Of all partitions: each step looks at as many keys of the store, whichever it asks for.
        cursor, found = await self._client.scan(cursor, self._keys.attributes_pattern, SCANNED_AT_ONCE)
        user_ids = list(map(self._keys.attributes_user, found))
        pipe = self._client.pipeline()
        for key in found:
            pipe.hmget(key, ["value", "at"])
        values = zip(found, user_ids, await pipe.execute(), strict=True)
        return cursor, {
            user_id: (self._read(user_id, data), whole(at or b"0", key))
            for key, user_id, (data, at) in values
            if data is not None
        }

    async def given_at(self, cursor: int) -> tuple[int, Mapping[bytes, int | None]]:
        """The same of the times alone, whatever the attributes are; None where the time cannot be read."""
        found: Any
        cursor, found = await self._client.scan(cursor, self._keys.attributes_pattern, SCANNED_AT_ONCE)
        pipe = self._client.pipeline()
        for key in found:
            pipe.hmget(key, ["value", "at"])
        times: dict[bytes, int | None] = {}
        for key, reply in zip(found, await pipe.execute(raise_on_error=False), strict=True):
            # Neither is there: removed since the scan.
            if reply != [None, None]:
                at = (reply[1] or b"0") if isinstance(reply, list) else b""
                times[self._keys.attributes_user(key)] = int(at) if at.isdigit() else None
        return cursor, times

    def _read(self, user_id: bytes, data: bytes) -> Values:
        try:
            return _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            key = shown_key(self._keys.attributes(user_id))
            raise StoreDamaged(key, f"attributes cannot be read: {exc}") from exc
