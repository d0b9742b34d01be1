"""The catalogue as one file of a backup, with attributes of users, scenarios, types of events and fields of
contexts.

Invariant: what is put back replaces nothing: a store that has an item, or has deleted it since, keeps that.
"""

import asyncio
import gzip
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import msgspec

from featurestore.catalogue.attributes import UserAttributes, Values
from featurestore.catalogue.catalogue import READ_AT_ONCE, Catalogue, Change
from featurestore.catalogue.item import AttributeType, AttributeValue, CatalogueItem, type_of
from featurestore.catalogue.scenarios import Scenarios
from featurestore.catalogue.schema import KINDS, Kind, Types
from featurestore.ratings.context_schema import ContextField
from featurestore.ratings.event_types import DEFAULT_TYPES, EventType, EventTypes, with_types
from featurestore.ratings.stored_context_schema import StoredContextSchema

FORMAT = "foldin-catalogue-1"
# Text of one language: a higher level takes five times as long for a tenth less.
_LEVEL = 1
# Users whose attributes are put back side by side: they share a wait for the store's disk, and none waits for
# one of the process's few sockets for more than a fraction of the timeout.
_USERS_AT_ONCE = 200


class DumpUnreadable(ValueError):  # noqa: N818 - says what happened
    """The bytes are no catalogue, or one of a newer format. Refuse the file."""


class DumpedUser(msgspec.Struct, frozen=True):
    """Attributes of a user, and since when they were these, in milliseconds by the store's clock."""

    user_id: str
    at_ms: int
    values: dict[str, AttributeValue]


class Dump(msgspec.Struct, frozen=True):
    """All of a catalogue. `deleted`: ids of deleted items; `types`: of attributes, by kind and name;
    `scenarios`: rules as JSON, by name; `event_types`: where they are not those that a store begins with;
    `default_scenario`: of calls that ask for none, as an experiment has left it; `contexts`: the fields of
    contexts of ratings.
    """

    types: dict[str, dict[str, AttributeType]]
    items: list[CatalogueItem]
    deleted: list[str]
    users: list[DumpedUser]
    scenarios: dict[str, str] = {}
    event_types: list[EventType] = []
    default_scenario: str | None = None
    contexts: list[ContextField] = []
    format: str = FORMAT

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        rules = self.scenarios or self.default_scenario or self.event_types or self.contexts
        return bool(self.items or self.deleted or self.users or rules or any(self.types.values()))


@dataclass(frozen=True, slots=True)
class PutBack:
    """How many items and users came back."""

    items: int
    users: int


def dump_to_bytes(dump: Dump) -> bytes:
    """Return a catalogue as bytes; the same for the same catalogue."""
    return gzip.compress(msgspec.json.encode(dump), _LEVEL, mtime=0)


def dump_from_bytes(data: bytes) -> Dump:
    """Return a catalogue from its bytes. Raises `DumpUnreadable`."""
    try:
        dump = msgspec.json.decode(gzip.decompress(data), type=Dump)
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise DumpUnreadable(f"it cannot be read: {exc}") from exc
    if dump.format != FORMAT:
        raise DumpUnreadable(
            f"it has format {dump.format!r}, this version reads {FORMAT!r}: use the version that wrote it"
        )
    return dump


async def read_dump(
    catalogue: Catalogue,
    attributes: UserAttributes,
    scenarios: Scenarios,
    event_types: EventTypes,
    contexts: StoredContextSchema,
) -> Dump:
    """Return all that was acknowledged before the call. Raises `StoreError`."""
    items: dict[str, CatalogueItem] = {}
    after = b""
    while ids := await catalogue.ids(READ_AT_ONCE, after=after):
        for state in await catalogue.states(ids):
            if state.data is not None:
                items[state.item_id.decode()] = catalogue.read(state.data)
        after = ids[-1]
    await catalogue.require_whole()
    deleted: set[str] = set()
    cursor, more = 0, True
    while more:
        cursor, some = await catalogue.deleted(cursor)
        # What is no UTF-8 was never the id of an item.
        deleted.update(item_id.decode("utf-8", "replace") for item_id in some)
        more = cursor != 0
    users: dict[bytes, DumpedUser] = {}
    more = True
    while more:
        cursor, found = await attributes.scan(cursor)
        for user_id, (values, at_ms) in found.items():
            users[user_id] = DumpedUser(user_id.decode(), at_ms, values)
        more = cursor != 0
    types: dict[str, dict[str, AttributeType]] = {kind: await catalogue.schema.types(kind) for kind in KINDS}
    known = await event_types.current()
    lists = list(items.values()), sorted(deleted), list(users.values())
    changed = [] if known == DEFAULT_TYPES else list(known)
    told = list((await contexts.fresh()).fields)
    texts, default = await scenarios.texts(), await scenarios.default()
    return Dump(types, *lists, texts, changed, default, told)


async def put_back(
    catalogue: Catalogue,
    attributes: UserAttributes,
    scenarios: Scenarios,
    event_types: EventTypes,
    dump: Dump,
) -> PutBack:
    """Put back what the store lacks; values whose attribute has another type there are left out.

    Safe to repeat. Raises `StoreError`, `StoreRefused` where a code means another type of event there.
    """
    if dump.event_types:
        await event_types.change(partial(with_types, more=dump.event_types))
    types = {kind: await _types(catalogue, dump, kind) for kind in KINDS}
    by_id = {item.item_id.encode(): item for item in dump.items}
    gone = {item_id.encode() for item_id in dump.deleted}
    count = 0
    for ids in _parts([*by_id, *gone]):
        lacking = [
            state.item_id for state in await catalogue.states(ids) if state.data is None and not state.deleted
        ]
        count += sum(item_id in by_id for item_id in lacking)
        await catalogue.change({item_id: _put(by_id.get(item_id), types["items"]) for item_id in lacking})
    users = 0
    for start in range(0, len(dump.users), _USERS_AT_ONCE):
        some = dump.users[start : start + _USERS_AT_ONCE]
        calls = [_put_user(attributes, user, types["users"]) for user in some]
        # All have ended before an error is told: nothing is written after that.
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            users += result
    for name, text in dump.scenarios.items():
        if await scenarios.get(name.encode()) is None:
            await scenarios.put(name.encode(), text.encode())
    if dump.default_scenario is not None:
        await scenarios.put_default(dump.default_scenario)
    return PutBack(count, users)


async def _put_user(attributes: UserAttributes, user: DumpedUser, types: Types) -> bool:
    """Put back attributes of a user who has none; say whether that was so."""
    user_id = user.user_id.encode()
    if await attributes.get(user_id) is not None:
        return False
    await attributes.change(user_id, partial(_kept, _fitting(user.values, types)))
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


def _kept(values: Values, now: Values | None) -> Values:
    return now or values


def _fitting(values: Values, types: Types) -> Values:
    return {name: value for name, value in values.items() if types.get(name) == type_of(value)}


def _parts(ids: Collection[bytes]) -> list[list[bytes]]:
    whole = list(ids)
    return [whole[start : start + READ_AT_ONCE] for start in range(0, len(whole), READ_AT_ONCE)]
