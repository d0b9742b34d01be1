"""What a store keeps besides ratings, as one file: the list that archive, backup, restore and verify go by.

Invariant: what is put back replaces nothing: a store that has an item, or has deleted it since, keeps that.
"""

import asyncio
import re
import zlib
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import msgspec

from featurestore.access import AccessKeys
from featurestore.catalogue.attributes import UserAttributes, Values
from featurestore.catalogue.catalogue import READ_AT_ONCE, Catalogue, Change
from featurestore.catalogue.item import AttributeType, AttributeValue, CatalogueItem, type_of
from featurestore.catalogue.scenarios import Scenarios
from featurestore.catalogue.schema import KINDS, Kind, Types
from featurestore.errors import StoreRefused
from featurestore.experiments import Definition, ExperimentExists, StoredExperiments
from featurestore.ratings.context_schema import ContextField, schema_to_bytes
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, types_to_bytes, with_types
from featurestore.ratings.stored_document import EventTypes, StoredContextSchema

FORMAT = "foldin-catalogue-1"
# Text of one language: a higher level takes five times as long for a tenth less.
_LEVEL = 1
# Users whose attributes are put back side by side: they share a wait for the store's disk, and none waits for
# one of the process's few sockets for more than a fraction of the timeout.
_USERS_AT_ONCE = 200
# What a file of this format begins with, and how many bytes of it that is at most.
_HEAD = re.compile(rb'\{"format":"([^"]*)","version":"([0-9a-f]*)"')
_HEAD_BYTES = 200
# As `gzip` has it: the same bytes for the same content.
_GZIP = 31


class DumpUnreadable(ValueError):  # noqa: N818 - says what happened
    """The bytes are no catalogue, or one of a newer format. Refuse the file."""


class DumpedUser(msgspec.Struct, frozen=True):
    """Attributes of a user, and since when they were these, in milliseconds by the store's clock."""

    user_id: str
    at_ms: int
    values: dict[str, AttributeValue]


class Dump(msgspec.Struct, frozen=True):
    """All that is kept. `deleted`: ids of deleted items; `types`: of attributes, by kind and name;
    `scenarios`: rules as JSON, by name; `event_types`: where they are not those that a store begins with;
    `default_scenario`: of calls that ask for none, as an experiment has left it; `contexts`: the fields of
    contexts of ratings; `keys`: of the API, by digest, as they are stored; `version`: see
    `KeptDocuments.version`.
    """

    types: dict[str, dict[str, AttributeType]]
    items: list[CatalogueItem]
    deleted: list[str]
    users: list[DumpedUser]
    scenarios: dict[str, str] = {}
    event_types: list[EventType] = []
    default_scenario: str | None = None
    # By this name since their rows have one width: those of before are not read as such.
    contexts: list[ContextField] = msgspec.field(name="context_places", default_factory=list)
    experiments: dict[str, Definition] = {}
    keys: dict[str, str] = {}
    version: str = ""
    format: str = FORMAT


@dataclass(frozen=True, slots=True)
class PutBack:
    """How many of each came back."""

    items: int
    users: int
    scenarios: int
    experiments: int


def dump_from_bytes(data: bytes) -> Dump:
    """Return what bytes of `KeptDocuments.packed` have. Raises `DumpUnreadable`."""
    try:
        unpacking = zlib.decompressobj(_GZIP)
        dump = msgspec.json.decode(unpacking.decompress(data), type=Dump)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise DumpUnreadable(f"it cannot be read: {exc}") from exc
    if not unpacking.eof:
        raise DumpUnreadable("it cannot be read: its end is missing")
    _require_known(dump.format)
    return dump


def version_of_dump(data: bytes) -> str:
    """Return the version that packed bytes have, from their beginning alone; "" where they do not say. Raises
    `DumpUnreadable` for another format.
    """
    try:
        head = _HEAD.match(zlib.decompressobj(_GZIP).decompress(data, _HEAD_BYTES))
    except zlib.error:
        return ""
    if head is None:
        return ""
    _require_known(head[1].decode("utf-8", "replace"))
    return head[2].decode()


def _require_known(found: str) -> None:
    if found != FORMAT:
        raise DumpUnreadable(
            f"it has format {found!r}, this version reads {FORMAT!r}: use the version that wrote it"
        )


@dataclass(frozen=True, slots=True)
class KeptDocuments:
    """What a store keeps besides ratings. Every method may raise `StoreUnavailable`, and may then be
    repeated; `StoreDamaged` names the key.
    """

    catalogue: Catalogue
    attributes: UserAttributes
    scenarios: Scenarios
    experiments: StoredExperiments
    event_types: EventTypes
    contexts: StoredContextSchema
    access: AccessKeys

    async def version(self) -> str:
        """Return what is another after each change but of users' attributes. Small replies, whatever the
        catalogue has.
        """
        types = [sorted((await self.catalogue.schema.types(kind)).items()) for kind in KINDS]
        parts = [
            await self.catalogue.version(),
            msgspec.json.encode(types),
            msgspec.json.encode(sorted((await self.scenarios.versions()).items())),
            (await self.experiments.all()).version.encode(),
            types_to_bytes(await self.event_types.fresh()),
            schema_to_bytes(await self.contexts.fresh()),
            msgspec.json.encode(sorted((await self.access.texts()).items())),
        ]
        state = blake2b(digest_size=16)
        for part in parts:
            state.update(b"%d " % len(part) + part)
        return state.hexdigest()

    async def packed(self, *, users: bool = True) -> tuple[str, bytes]:
        """Return the version, and all that was acknowledged before the call, as a file has it. `users`: with
        the attributes of users.

        Items go through as they are stored: of a large catalogue no more than a page is in memory unpacked.
        """
        version = await self.version()
        packing = zlib.compressobj(_LEVEL, wbits=_GZIP)
        begin = f'{{"format":"{FORMAT}","version":"{version}","items":['
        parts = [packing.compress(begin.encode())]
        after, comma = b"", b""
        while ids := await self.catalogue.ids(READ_AT_ONCE, after=after):
            found = [state.data for state in await self.catalogue.states(ids) if state.data is not None]
            for data in found:
                self.catalogue.read(data)
            if found:
                # Up to 2 MB take some 20 ms: not on the event loop.
                parts.append(await asyncio.to_thread(packing.compress, comma + b",".join(found)))
                comma = b","
            after = ids[-1]
        await self.catalogue.require_whole()
        rest = await asyncio.to_thread(msgspec.json.encode, await self._rest(users=users))
        parts.append(await asyncio.to_thread(packing.compress, b"]," + rest[1:]))
        return version, b"".join([*parts, packing.flush()])

    async def put_back(self, dump: Dump, *, experiments: bool) -> PutBack:
        """Put back what the store lacks; values whose attribute has another type there are left out. Keys and
        fields of contexts have ways of their own. `experiments`: these, too; one that the store has, or that
        is about the same calls, stays.

        Safe to repeat. Raises `StoreRefused` where a code means another type of event there.
        """
        if dump.event_types:
            await self.event_types.change(partial(with_types, more=dump.event_types))
        types = {kind: await _types(self.catalogue, dump, kind) for kind in KINDS}
        items = await _put_items(self.catalogue, dump, types["items"])
        users = await _put_users(self.attributes, dump, types["users"])
        scenarios = 0
        for name, text in dump.scenarios.items():
            if await self.scenarios.get(name.encode()) is None:
                await self.scenarios.put(name.encode(), text.encode())
                scenarios += 1
        if dump.default_scenario is not None:
            await self.scenarios.put_default(dump.default_scenario)
        begun = 0
        # After the scenarios that they are among.
        for name, definition in dump.experiments.items() if experiments else ():
            try:
                await self.experiments.begin(name, definition)
                begun += 1
            except (ExperimentExists, StoreRefused):
                continue
        return PutBack(items, users, scenarios, begun)

    async def _rest(self, *, users: bool) -> dict[str, object]:
        deleted: set[str] = set()
        async for ids in self.catalogue.deleted():
            # What is no UTF-8 was never the id of an item.
            deleted.update(item_id.decode("utf-8", "replace") for item_id in ids)
        dumped: dict[bytes, DumpedUser] = {}
        if users:
            async for found in self.attributes.scan():
                for user_id, (values, at_ms) in found.items():
                    dumped[user_id] = DumpedUser(user_id.decode(), at_ms, values)
        known = await self.event_types.fresh()
        return {
            "types": {kind: await self.catalogue.schema.types(kind) for kind in KINDS},
            "deleted": sorted(deleted),
            "users": list(dumped.values()),
            "scenarios": await self.scenarios.texts(),
            "event_types": [] if known == DEFAULT_TYPES else list(known),
            "default_scenario": await self.scenarios.default(),
            "context_places": list((await self.contexts.fresh()).fields),
            "experiments": await self.experiments.definitions(),
            "keys": await self.access.texts(),
        }


async def _put_items(catalogue: Catalogue, dump: Dump, types: Types) -> int:
    by_id = {item.item_id.encode(): item for item in dump.items}
    gone = {item_id.encode() for item_id in dump.deleted}
    count = 0
    ids = [*by_id, *gone]
    for start in range(0, len(ids), READ_AT_ONCE):
        states = await catalogue.states(ids[start : start + READ_AT_ONCE])
        lacking = [state.item_id for state in states if state.data is None and not state.deleted]
        count += sum(item_id in by_id for item_id in lacking)
        await catalogue.change({item_id: _put(by_id.get(item_id), types) for item_id in lacking})
    return count


async def _put_users(attributes: UserAttributes, dump: Dump, types: Types) -> int:
    count = 0
    for start in range(0, len(dump.users), _USERS_AT_ONCE):
        some = dump.users[start : start + _USERS_AT_ONCE]
        calls = [_put_user(attributes, user, types) for user in some]
        # All have ended before an error is told: nothing is written after that.
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            count += result
    return count


async def _put_user(attributes: UserAttributes, user: DumpedUser, types: Types) -> bool:
    """Put back attributes of a user who has none; say whether that was so."""
    user_id = user.user_id.encode()
    if await attributes.get(user_id) is not None:
        return False
    values = _fitting(user.values, types)
    await attributes.change(user_id, lambda now: now or values)
    return True


async def _types(catalogue: Catalogue, dump: Dump, kind: Kind) -> Types:
    held = await catalogue.schema.types(kind)
    new = {name: each for name, each in dump.types.get(kind, {}).items() if name not in held}
    await catalogue.schema.hold(kind, new)
    return {**new, **held}


def _put(item: CatalogueItem | None, types: Types) -> Change:
    if item is None:
        return lambda now: now
    fitting = msgspec.structs.replace(item, attributes=_fitting(item.attributes, types))
    return lambda now: now or fitting


def _fitting(values: Values, types: Types) -> Values:
    return {name: value for name, value in values.items() if types.get(name) == type_of(value)}
