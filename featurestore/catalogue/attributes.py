"""Attributes of users. Invariant: they go with the user, in the step in which the user is forgotten, and so
does the user's place in the list of those who have any, which changes with them alone.

A store of before the list was kept has none: the first who reads the list goes through all keys and makes it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from featurestore.catalogue.item import AttributeValue
from featurestore.catalogue.schema import types_of
from featurestore.client import Call, Client, digest_of_value
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.keys import Keys, digest_of, partition_of, shown_key, whole
from featurestore.ratings.epochs import Epochs

# As often another call may change the same user in between.
ATTEMPTS = 8
# Users whose attributes are changed in one write: the store works for some 5 ms, lookups in between.
CHANGED_AT_ONCE = 256
# By then a write that knew an attribute before it left has been made.
_UNDER_WAY_S = 0.2
# Keys that the store looks at in one step of a scan: a fraction of a millisecond, in which lookups wait.
SCANNED_AT_ONCE = 1_000

# Users whose attributes are read in one round trip: some 500 KB.
LISTED_AT_ONCE = 1_000

Values = dict[str, AttributeValue]
# From what a user's attributes are (None: there are none) to what they become. May raise.
ValuesChange = Callable[[Values | None], Values | None]


_DECODER = msgspec.json.Decoder(Values)


def _without(name: str, values: Values | None) -> Values | None:
    return {each: value for each, value in (values or {}).items() if each != name} or None


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
        """Change a user's attributes; return what they are then. Raises what `change` raises."""
        return (await self.change_all({user_id: change}))[user_id]

    async def change_all(
        self,
        changes: Mapping[bytes, ValuesChange],
        *,
        while_leaving: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[bytes, Values | None]:
        """Change attributes of users, each in a step of its own; return what they are then. In the same step
        the user's records, in each epoch, become such as a reader folds in anew.

        Raises what a change raises: users before that one may be changed then, and to do it again is safe.
        `while_leaving`: fields of the schema and what they must be, else `StoreUnavailable`; so does a value
        whose type is another one by now.
        """
        ids, found = list(changes), dict[bytes, Values | None]()
        since = self._confirmation.begin()
        for start in range(0, len(ids), CHANGED_AT_ONCE):
            left = ids[start : start + CHANGED_AT_ONCE]
            for _ in range(ATTEMPTS):
                some = {user_id: changes[user_id] for user_id in left}
                after = await self._try(some, while_leaving)
                found |= after
                left = [user_id for user_id in left if user_id not in after]
                if not left:
                    break
            else:
                raise StoreUnavailable("others are changing the same users", 0.1)
        await self._confirmation.wait(since)
        return found

    async def _try(
        self, changes: Mapping[bytes, ValuesChange], while_leaving: Mapping[str, str]
    ) -> dict[bytes, Values | None]:
        """Return the attributes of the users who still were as they were read, and so are changed."""
        keys, found = self._keys, dict[bytes, Values | None]()
        if not self._epochs.expected:
            await self._epochs.refresh()
        pipe = self._client.pipeline()
        for user_id in changes:
            pipe.hget(keys.attributes(user_id), "value")
        pipe.hgetall(keys.schema)
        calls: list[Call] = []
        afters = dict[bytes, Values | None]()
        *values, schema = await pipe.execute()
        held = {field.decode(): text.decode("utf-8", "replace") for field, text in schema.items()}
        if any(held.get(field) != text for field, text in while_leaving.items()):
            raise StoreUnavailable("another call has taken the deletion over", 1.0)
        for (user_id, change), data in zip(changes.items(), values, strict=True):
            partition = partition_of(user_id, keys.partitions)
            expected = self._epochs.expected[partition]
            names = [keys.epochs(partition), keys.attributes(user_id), keys.attributes_list(partition)]
            for epoch in map(int, expected.split(b",")):
                names += [keys.counts(epoch, partition), keys.forgotten(epoch, partition)]
                names.append(keys.user(epoch, user_id))
            before = None if data is None else self._read(user_id, data)
            after = change(before)
            if before is None and after is None:
                # Nothing is written of one who has nothing: that would make a key.
                found[user_id] = None
                continue
            for field, kind in types_of("users", before or {}, after or {}).items():
                if held.get(field, kind) != kind:
                    raise StoreUnavailable(f"the type of {field} is another one now", 0.1)
            value = b"" if after is None else msgspec.json.encode(after)
            calls.append((names, [expected, digest_of_value(data), value, digest_of(user_id), user_id]))
            afters[user_id] = after
        replies = await self._client.call("put_attributes", *calls) if calls else []
        for (user_id, after), reply in zip(afters.items(), replies, strict=True):
            if reply[0] == b"OK":
                found[user_id] = after
            elif reply[0] == b"EPOCHS":
                await self._epochs.learn(partition_of(user_id, keys.partitions), reply[1])
        return found

    async def clear(self, left: Mapping[str, str]) -> None:
        """Take an attribute that leaves the schema from all users. Work by how many have any; safe to
        repeat.
        """
        (name,) = (field.partition(":")[2] for field in left)
        found = True
        # A write that was under way when the attribute left may have come behind the first walk.
        while found:
            found = False
            await asyncio.sleep(_UNDER_WAY_S)
            async for page in self.read_all():
                having = [user_id for user_id, data in page.items() if name in self._read(user_id, data)]
                found |= bool(having)
                changes = dict.fromkeys(having, partial(_without, name))
                await self.change_all(changes, while_leaving=left)

    async def erase(self, epoch: int, user_id: bytes, at_ms: int) -> None:
        """Remove what a user had when forgotten, at this time of the store, and of the live `epoch` what
        rests on it. Safe to repeat.
        """
        keys = self._keys
        names = [keys.attributes(user_id), keys.user(epoch, user_id), keys.history(epoch, user_id)]
        names.append(keys.attributes_list(partition_of(user_id, keys.partitions)))
        await self._client.call("erase_attributes", (names, [b"%d" % at_ms, user_id]))

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
        keys = map(self._keys.attributes, user_ids)
        replies = await self._client.of_each("HGET", keys, "value", raise_on_error=False)
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]

    async def read_all(self) -> AsyncIterator[Mapping[bytes, bytes]]:
        """Yield the attributes of all users as they are stored, some at a time: work by how many users have
        any, however many there are.
        """
        after: bytes | None = b""
        while after is not None:
            user_ids, after = await self.listed(LISTED_AT_ONCE, after)
            values = await self.stored(user_ids)
            yield {user_id: data for user_id, data in zip(user_ids, values, strict=True) if data}

    async def page(self, n: int, after: bytes) -> tuple[dict[bytes, Values], bytes | None]:
        """Return attributes of `n` users at most behind the user `after`, from the first on where that is
        empty, and behind whom the next ones are, None at the end. A user who has them all along comes once.
        """
        user_ids, behind = await self.listed(n, after)
        values = zip(user_ids, await self.stored(user_ids), strict=True)
        return {user_id: self._read(user_id, data) for user_id, data in values if data}, behind

    async def listed(self, n: int, after: bytes) -> tuple[list[bytes], bytes | None]:
        """Return the ids of some users, `n` at most, as `page` does."""
        found: list[bytes] = []
        # The users of one partition come after those of another, in the order of their ids.
        first = partition_of(after, self._keys.partitions) if after else 0
        for partition in range(first, self._keys.partitions):
            await self._require_listed(partition)
            low = b"(" + (after if partition == first else b"")
            some: Any = await self._client.zrange(
                *(self._keys.attributes_list(partition), low, b"+"), bylex=True, offset=0, num=n - len(found)
            )
            found += some
            if len(found) == n:
                return found, found[-1]
        return found, None

    async def _require_listed(self, partition: int) -> None:
        """Make the lists of all partitions where that of one is not known to have all."""
        lists = [self._keys.attributes_list(partition)]
        (mark,) = await self._client.of_each("ZSCORE", lists, b"", raise_on_error=False)
        if mark is None or isinstance(mark, Exception):
            await self._list_all()

    async def _list_all(self) -> None:
        """List all who have attributes, by going through the keys of the store. Safe to repeat."""
        keys, partitions = self._keys, range(self._keys.partitions)
        async for found in self._client.pages(keys.attributes_pattern, SCANNED_AT_ONCE):
            by_partition: dict[int, list[bytes]] = {}
            for user_id in map(keys.attributes_user, found):
                by_partition.setdefault(partition_of(user_id, keys.partitions), []).append(user_id)
            calls: list[Call] = [
                ([keys.attributes_list(partition), *map(keys.attributes, some)], some)
                for partition, some in by_partition.items()
            ]
            await self._client.call("list_attributes", *calls)
        # Only now: who reads one before makes it anew.
        whole: list[Call] = [([keys.attributes_list(partition)], []) for partition in partitions]
        await self._client.call("list_attributes", *whole)

    async def scan(self) -> AsyncIterator[Mapping[bytes, tuple[Values, int]]]:
        """Yield of each user the attributes and since when they are these, in milliseconds by the store's
        clock. A user may come twice.
        """
        # Of all partitions: each step looks at as many keys of the store, whichever it asks for.
        async for keys in self._client.pages(self._keys.attributes_pattern, SCANNED_AT_ONCE):
            user_ids = map(self._keys.attributes_user, keys)
            replies = await self._client.of_each("HMGET", keys, "value", "at")
            yield {
                user_id: (self._read(user_id, data), whole(at or b"0", key))
                for key, user_id, (data, at) in zip(keys, user_ids, replies, strict=True)
                if data is not None
            }

    async def given_at(self) -> AsyncIterator[Mapping[bytes, int | None]]:
        """The same of the times alone, whatever the attributes are; None where the time cannot be read."""
        async for keys in self._client.pages(self._keys.attributes_pattern, SCANNED_AT_ONCE):
            times: dict[bytes, int | None] = {}
            replies = await self._client.of_each("HMGET", keys, "value", "at", raise_on_error=False)
            for key, reply in zip(keys, replies, strict=True):
                # Neither is there: removed since the scan.
                if reply != [None, None]:
                    at = (reply[1] or b"0") if isinstance(reply, list) else b""
                    times[self._keys.attributes_user(key)] = int(at) if at.isdigit() else None
            yield times

    def _read(self, user_id: bytes, data: bytes) -> Values:
        try:
            return _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            key = shown_key(self._keys.attributes(user_id))
            raise StoreDamaged(key, f"attributes cannot be read: {exc}") from exc
