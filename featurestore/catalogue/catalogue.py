"""The stored catalogue. Invariant: a change and the version that says so are one step, so that a reader who
has all changes up to the version has what is stored.

A version is the number of a change, a dash and a random number: two stores, or one that lost its last changes
and took others since, never have the same. The stream of changes has the versions as its ids and says which
items each has changed; what they are is read from the items.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from featurestore.catalogue.item import CatalogueItem, pack_item, unpack_item
from featurestore.catalogue.schema import Kind, Schema, composed, leaving, type_named, types_of
from featurestore.client import Client, digest_of_value
from featurestore.confirmation import Confirmation
from featurestore.errors import ItemDeleted, RegistryFull, StoreDamaged, StoreUnavailable
from featurestore.keys import Keys, shown_key
from featurestore.wire.connection import Connection
from featurestore.wire.resp import encode

# Of one item, as JSON: four pages of text.
MOST_ITEM_BYTES = 16_384
# Items of one change: the store is busy with it for some 5 ms, and so is a worker that follows.
CHANGED_AT_ONCE = 256
# What a worker may be behind by without reading all items anew: 65,000 items of calls that are full.
CHANGES_KEPT = 256
# Items of one reply: 2 MB where they are as large as they may be.
READ_AT_ONCE = 128
# A page ends behind so many bytes of items, which are read and written in some 10 ms.
PAGE_BYTES = 1_000_000
# As often another call may change the same items in between.
ATTEMPTS = 8
# Of a title among those that are searched by their beginning: longer ones are not typed.
TITLE_BYTES = 128
# The version of a store that has had no change.
NO_VERSION = b""
_VERSION = re.compile(rb"(\d{1,15})-\d{1,15}")
# What is behind every text that begins alike: no byte of UTF-8.
_BEHIND = b"\xff"

# From what an item is (None: it is not there) to what it becomes (None: it is deleted). May raise.
Change = Callable[[CatalogueItem | None], CatalogueItem | None]


@dataclass(frozen=True, slots=True)
class ItemState:
    """What is stored of an item: its bytes, None where there are none. `deleted`: it is in no list."""

    item_id: bytes
    data: bytes | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in the order of their ids, or of their titles; `after`: where the next page begins, None at
    the end; `total`: how many items there are in all.
    """

    items: list[CatalogueItem]
    after: bytes | None
    total: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Ids of items that have changed, up to `version`. `whole`: the changes since are all kept; where not,
    all items are to be read anew. `retyped`: an attribute was deleted.
    """

    version: bytes
    item_ids: list[bytes]
    whole: bool
    retyped: bool = False


class Catalogue:
    """Reads and changes the catalogue. Every method may raise `StoreUnavailable`, and may then be repeated;
    `StoreDamaged` names the key. `hot`: the connection over which rankings look up users.
    """

    def __init__(
        self, keys: Keys, hot: Connection, client: Client, confirmation: Confirmation, *, max_items: int
    ) -> None:
        self._keys = keys
        self._hot = hot
        self._client = client
        self._confirmation = confirmation
        self._max_items = max_items
        self._items = shown_key(keys.catalogue_items)
        self._ask = encode(b"GET", keys.catalogue)
        self.schema = Schema(keys, client)

    def ask_version(self) -> "asyncio.Future[list[Any]]":
        """Ask for the version in the write of this turn of the event loop; `version_of` reads the reply."""
        return self._hot.execute(self._ask, 1)

    def version_of(self, reply: Any) -> bytes:
        """Return the version that a reply has. Raises `StoreError`."""
        if isinstance(reply, Exception):
            raise self._hot.failure(reply)
        if reply is not None and not _VERSION.fullmatch(reply):
            raise StoreDamaged(shown_key(self._keys.catalogue), f"{reply[:20]!r} is no version")
        return reply or NO_VERSION

    async def version(self) -> bytes:
        """Return the version now."""
        return self.version_of((await self.ask_version())[0])

    async def changes_since(self, version: bytes, most: int) -> Changes:
        """Return what has changed since a version, `most` changes at a time."""
        key = self._keys.catalogue_changes
        pipe = self._client.pipeline()
        pipe.get(self._keys.catalogue)
        pipe.xrange(key, version or "-", "+", most + 1)
        reply, entries = await pipe.execute()
        now = self.version_of(reply)
        if version == NO_VERSION:
            whole = not entries or entries[0][0].startswith(b"1-")
        else:
            whole = bool(entries) and entries[0][0] == version
            entries = entries[1:]
        if not whole:
            return Changes(now, [], whole=False)
        if not entries:
            if now != version:
                raise StoreDamaged(shown_key(key), f"it lacks the changes up to {now.decode()}")
            return Changes(version, [], whole=True)
        found: dict[bytes, None] = {}
        retyped = False
        for _, fields in entries:
            try:
                ids = msgspec.json.decode(fields.get(b"ids", b""), type=list[str])
            except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                raise StoreDamaged(shown_key(key), f"a change cannot be read: {exc}") from exc
            found.update(dict.fromkeys(map(str.encode, ids)))
            retyped |= not ids
        return Changes(entries[-1][0], list(found), whole=True, retyped=retyped)

    async def states(self, item_ids: Sequence[bytes]) -> list[ItemState]:
        """Return what is stored of each item, a round trip for each `READ_AT_ONCE`."""
        found: list[ItemState] = []
        for start in range(0, len(item_ids), READ_AT_ONCE):
            some = list(item_ids[start : start + READ_AT_ONCE])
            pipe = self._client.pipeline()
            pipe.hmget(self._keys.catalogue_items, some)
            pipe.smismember(self._keys.catalogue_deleted, some)
            values, deleted = await pipe.execute()
            found += [ItemState(*each) for each in zip(some, values, map(bool, deleted), strict=True)]
        return found

    def read(self, data: bytes) -> CatalogueItem:
        """Return the item of stored bytes. Raises `StoreDamaged`."""
        return unpack_item(data, self._items)

    async def get(self, item_id: bytes) -> CatalogueItem | None:
        """Return one item, None where it is not there."""
        (state,) = await self.states([item_id])
        return None if state.data is None else self.read(state.data)

    async def change(
        self,
        changes: Mapping[bytes, Change],
        *,
        brings_back: bool = True,
        staying: AbstractSet[bytes] = frozenset(),
        while_leaving: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Change items, up to `CHANGED_AT_ONCE` in one step, in the order given. Where another call changes
        the same items meanwhile, what they become is decided anew.

        Of those in `staying` what is deleted stays so; returns how many that were. Raises what a `Change`
        raises (of the first step: nothing is changed then), `RegistryFull`, and unless it `brings_back` what
        is deleted `ItemDeleted`. `while_leaving`: fields of the schema and what they must be, else
        `StoreUnavailable`; so for a value that is new or changed must its type.
        """
        ids, stayed = list(changes), 0
        since = self._confirmation.begin()
        for start in range(0, len(ids), CHANGED_AT_ONCE):
            some = ids[start : start + CHANGED_AT_ONCE]
            for _ in range(ATTEMPTS):
                step = {item_id: changes[item_id] for item_id in some}
                types = dict(while_leaving)
                still = await self._step(step, types, brings_back=brings_back, staying=staying)
                if still is not None:
                    stayed += still
                    break
            else:
                raise StoreUnavailable("others are changing the same items", 0.1)
        await self._confirmation.wait(since)
        return stayed

    async def _step(
        self,
        changes: Mapping[bytes, Change],
        types: dict[str, str],
        *,
        brings_back: bool,
        staying: AbstractSet[bytes],
    ) -> int | None:
        """Change items in one step; return how many stay deleted, None where some no longer were what was
        read.
        """
        shown = shown_key(self._keys.catalogue_items)
        parts: list[bytes] = []
        changed: list[str] = []
        stayed = 0
        for state in await self.states(list(changes)):
            if state.deleted and state.item_id in staying:
                stayed += 1
                continue
            if state.deleted and not brings_back:
                raise ItemDeleted(f"{state.item_id.decode()} was deleted")
            # One whose bytes are damaged is replaced as if it was not there.
            before = _readable(state.data, shown)
            after = changes[state.item_id](before)
            data = b"" if after is None else pack_item(after)
            # A delete of one that never was is one, too: it may have ratings, and is in lists until then.
            if data == (state.data or b"") and (data or state.deleted):
                continue
            changed.append(state.item_id.decode())
            if after is not None:
                types |= types_of("items", {} if before is None else before.attributes, after.attributes)
            titles = [_title_entry(before), _title_entry(after)]
            parts += [state.item_id, _digest(state), data, *titles]
        return stayed if not parts or await self._write(changed, types, parts) else None

    async def _write(
        self,
        changed: Sequence[str],
        types: Mapping[str, str],
        parts: Sequence[bytes],
        becomes: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Write a change of the items `changed` where the fields of the schema have these `types`, or what
        fields of it `becomes`; return False where some items no longer were what was read.
        """
        keys = self._keys
        names = [
            *(keys.catalogue, keys.catalogue_items, keys.catalogue_ids, keys.catalogue_titles),
            *(keys.catalogue_deleted, keys.catalogue_changes, keys.schema),
        ]
        # 15 digits: exact in Lua, whose numbers are doubles.
        nonce = b"%d" % secrets.randbelow(10**15)
        told = [msgspec.json.encode(each) for each in (changed, dict(types), dict(becomes))]
        args = [b"%d" % self._max_items, b"%d" % CHANGES_KEPT, nonce, *told, *parts]
        (reply,) = await self._client.call("change_catalogue", (names, args))
        if reply[0] == b"FULL":
            raise RegistryFull(f"there is room for {self._max_items} items, no more may be added")
        if reply[0] == b"TYPES":
            raise StoreUnavailable(f"the type of {reply[1].decode()} is another one now", 0.1)
        return bool(reply[0] == b"OK")

    async def leave(self, kind: Kind, name: str) -> dict[str, str]:
        """Let no value of an attribute be written from here on; return what its field of the schema is then,
        nothing where there is none of it. Another deletion of it ends by that.
        """
        field = f"{kind}:{name}"
        if not (held := await self.schema.text(field)):
            return {}
        mark = leaving(held, secrets.token_hex(8))
        await self._write([], {field: held}, [], {field: mark})
        return {field: mark}

    async def stay(self, left: Mapping[str, str]) -> None:
        """Take an attribute that leaves back."""
        await self._write([], left, [], {field: type_named(text) for field, text in left.items()})

    async def free(self, left: Mapping[str, str]) -> None:
        """Free the name of an attribute that leaves, of which there is no value any more; every worker reads
        the types anew.
        """
        since = self._confirmation.begin()
        await self._write([], left, [], dict.fromkeys(left, ""))
        await self._confirmation.wait(since)

    async def clear(self, left: Mapping[str, str]) -> None:
        """Take an attribute that leaves from all items. Work by how many there are; safe to repeat. What
        cannot be read stays as it is.
        """
        (name,) = (field.partition(":")[2] for field in left)
        shown, after = shown_key(self._keys.catalogue_items), b""
        while ids := await self.ids(CHANGED_AT_ONCE, after=after):
            found = [(state.item_id, _readable(state.data, shown)) for state in await self.states(ids)]
            having = [item_id for item_id, item in found if item is not None and name in item.attributes]
            changes = dict.fromkeys(having, partial(_without, name))
            await self.change(changes, staying=set(having), while_leaving=left)
            after = ids[-1]

    async def texts(self, item_ids: Sequence[bytes]) -> list[bytes | None]:
        """Return what is stored of items, None for nothing, in the write of this turn of the event loop."""
        if not item_ids:
            return []
        (reply,) = await self._hot.execute(encode(b"HMGET", self._keys.catalogue_items, *item_ids), 1)
        if isinstance(reply, Exception):
            raise self._hot.failure(reply)
        return list(reply)

    async def ids(self, n: int, *, prefix: bytes = b"", after: bytes = b"") -> list[bytes]:
        """Return the ids of up to `n` items, in their order, that begin with `prefix`, behind `after`."""
        return await self._entries(self._keys.catalogue_ids, n, prefix, after)

    async def _entries(self, key: bytes, n: int, prefix: bytes, after: bytes) -> list[bytes]:
        # One that is the prefix itself may have been the last of a page.
        low = b"(" + after if after and after >= prefix else b"[" + prefix if prefix else b"-"
        high = b"(" + prefix + _BEHIND if prefix else b"+"
        found: Any = await self._client.zrange(key, low, high, bylex=True, offset=0, num=n)
        return list(found)

    async def page(self, n: int, *, prefix: bytes = b"", after: bytes = b"", by_title: bool = False) -> Page:
        """Return up to `n` items whose id, or title, begins with `prefix`, behind `after` of the page before;
        of large ones fewer.

        Titles are compared without regard to case.
        """
        key = self._keys.catalogue_titles if by_title else self._keys.catalogue_ids
        total = await self.require_whole()
        entries = await self._entries(key, n, prefix, after)
        ids = [entry.partition(b"\0")[2] for entry in entries] if by_title else entries
        items: list[CatalogueItem] = []
        size = listed = 0
        while listed < len(ids) and size < PAGE_BYTES:
            for state in await self.states(ids[listed : listed + READ_AT_ONCE]):
                if size >= PAGE_BYTES:
                    break
                listed += 1
                if state.data is not None:
                    size += len(state.data)
                    items.append(self.read(state.data))
        ended = listed == len(entries) < n
        return Page(items, None if ended else entries[listed - 1], total)

    def deleted(self) -> AsyncIterator[list[bytes]]:
        """Yield ids of deleted items, some at a time; one may come twice."""
        return self._client.pages(None, READ_AT_ONCE, "SSCAN", self._keys.catalogue_deleted)

    async def require_whole(self) -> int:
        """Return how many items there are. Raises `StoreDamaged` where the list by id lacks some."""
        pipe = self._client.pipeline()
        pipe.zcard(self._keys.catalogue_ids)
        pipe.hlen(self._keys.catalogue_items)
        listed, items = await pipe.execute()
        # One that comes in between is counted the second time alone, and only then is it asked again.
        if listed != items and await self._client.zcard(self._keys.catalogue_ids) < items:
            why = f"it lists {listed} items of {items}"
            raise StoreDamaged(shown_key(self._keys.catalogue_ids), why)
        return int(items)


def _without(name: str, item: CatalogueItem | None) -> CatalogueItem | None:
    if item is None:
        return None
    left = {each: value for each, value in item.attributes.items() if each != name}
    return msgspec.structs.replace(item, attributes=left)


def title_key(title: str) -> bytes:
    """Return a title as it is searched: without regard to case, of bounded length."""
    return _cut(composed(title.casefold()))


def _cut(text: str) -> bytes:
    data = text.replace("\0", " ").encode()[:TITLE_BYTES]
    # A character that was cut through would begin like no search.
    return data.decode("utf-8", "ignore").encode()


def _title_entry(item: CatalogueItem | None) -> bytes:
    # Those without a title are before all others: a list by title has each item.
    return b"" if item is None else title_key(item.title) + b"\0" + item.item_id.encode()


def _digest(state: ItemState) -> bytes:
    """Return what tells whether an item is still in this state."""
    return b"deleted" if state.data is None and state.deleted else digest_of_value(state.data)


def _readable(data: bytes | None, key: str) -> CatalogueItem | None:
    try:
        return None if data is None else unpack_item(data, key)
    except StoreDamaged:
        return None
