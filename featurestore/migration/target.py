"""The store that a namespace moves to, and the opening of both. Invariant: it is empty, or what a command
that was cut off has left there, and no process opens it before it is whole.

What either store acknowledges to the command is on its disk, wherever it keeps an append-only file: by
`decide` the target has all, and by the time it opens the source says so.
"""

import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from featurestore.client import Client
from featurestore.cluster.servers import keys_of, looking
from featurestore.cluster.slots import TAGS_FORMAT
from featurestore.errors import StoreRefused
from featurestore.keys import Keys
from featurestore.migration.stages import ARRIVING, MigrationRefused, flat
from featurestore.migration.stages import slots as slots_of
from featurestore.namespace import ARRIVING as ARRIVING_FIELD
from featurestore.namespace import LAYOUT, check_server
from featurestore.settings import StoreSettings, redacted
from featurestore.store import Store

# Keys that one step of a scan looks at, and that are removed in one: a millisecond of the store.
_SCANNED, _REMOVED = 2_000, 500
# Earlier releases know no target that is not whole, and refuse one of a layout that they do not read.
_NO_LAYOUT = b"0"
# Of the source's configuration what holds in the target as well.
_KEPT = (b"scale", b"scale_open", b"identity", b"backed_up")


async def look(settings: StoreSettings, identity: str) -> str:
    """Return what a target has: `empty`; `begun`, what a command has left; `whole`, this namespace with all
    that it has.

    Raises `MigrationRefused` where it has anything else.
    """
    async with looking(settings) as client:
        for (info,) in await client.each(["INFO"]):
            check_server(info, in_cluster=settings.is_cluster)
        config: Any = await client.hgetall(keys_of(settings).config)
        if config.get(b"identity", b"").decode() == identity:
            return "begun" if ARRIVING_FIELD in config else "whole"
        async for names in _own(client, settings.namespace):
            if names:
                raise MigrationRefused(
                    f"the target has keys of a namespace {settings.namespace!r} already: "
                    "give a target without it"
                )
    return "empty"


def config_of(settings: StoreSettings, config: Mapping[Any, bytes], token: str) -> dict[Any, bytes]:
    """Return the configuration of a target that a command fills, from that of the source."""
    fields: dict[Any, bytes] = {name: config[name] for name in _KEPT if name in config}
    fields |= {b"layout": _NO_LAYOUT, b"partitions": b"%d" % settings.partitions}
    fields[ARRIVING_FIELD] = token.encode()
    return fields | ({b"tags": TAGS_FORMAT} if settings.is_cluster else {})


async def begin(settings: StoreSettings, config: Mapping[Any, bytes], epoch: int, token: str) -> None:
    """Take a target that is empty, or was begun, for this command: it is empty then. `config`: that of the
    source.
    """
    keys = keys_of(settings)
    async with looking(settings) as client:
        fields = config_of(settings, config, token)
        call = [keys.config], flat(fields.items())
        if [b"TAKEN"] in await client.call("claim_namespace", call):
            raise MigrationRefused(
                "a service or trainer has begun a namespace in the target just now: give another one"
            )
        await say(client, keys, epoch, f"{ARRIVING} {token}".encode())
        kept = {keys.config, *(keys.migration(key) for key in slots_of(keys, epoch))}
        async for names in _own(client, settings.namespace):
            gone = [name for name in names if name not in kept]
            for start in range(0, len(gone), _REMOVED):
                await client.unlink(*gone[start : start + _REMOVED])


async def clear(settings: StoreSettings, config: Mapping[Any, bytes], epoch: int) -> None:
    """Leave nothing in a target that was begun. Safe to repeat. `config`: that of the source."""
    token = secrets.token_hex(8)
    # Taken first: whatever fills it does not go on, and nothing that comes later is removed.
    await begin(settings, config, epoch, token)
    keys = keys_of(settings)
    async with looking(settings) as client:
        said = [f"{ARRIVING} {token}".encode(), b"hash", b"1", b"", b"0"]
        await client.call("place", ([keys.migration(keys.config), keys.config], said))
        await say(client, keys, epoch, b"")


async def token_of(settings: StoreSettings) -> str:
    """Return the token of the command that fills a target; "" where none does."""
    async with looking(settings) as client:
        found = await client.hget(keys_of(settings).config, ARRIVING_FIELD.decode())
    return found.decode() if isinstance(found, bytes) else ""


async def say(client: Client, keys: Keys, epoch: int, text: bytes) -> None:
    """Have each slot say which command fills it; none any more where `text` is empty."""
    pipe = client.pipeline()
    for key in slots_of(keys, epoch):
        if text:
            pipe.set(keys.migration(key), text)
        else:
            pipe.unlink(keys.migration(key))
    await pipe.execute()


async def as_it_is(settings: StoreSettings) -> StoreSettings:
    """Return the settings of a target with as many partitions as it has."""
    async with looking(settings) as client:
        found = await client.hget(keys_of(settings).config, "partitions")
    return settings if found is None else replace(settings, partitions=int(found))


async def finish(settings: StoreSettings, epoch: int) -> None:
    """Let processes open the target, which is whole. Safe to repeat."""
    keys = keys_of(settings)
    async with looking(settings) as client:
        # Once it is open, what its slots say may be of a migration of its own.
        if await client.hexists(keys.config, ARRIVING_FIELD.decode()):
            await say(client, keys, epoch, b"")
            await client.change_fields(keys.config, {b"layout": LAYOUT}, [ARRIVING_FIELD])


async def _own(client: Client, namespace: str) -> AsyncIterator[list[bytes]]:
    """Yield the keys of this namespace, among all that the servers have."""
    # A namespace has letters, digits, - and _; a dot, a colon or a brace ends it.
    own = re.compile(rb"\{?%b[.:}]" % re.escape(namespace.encode()))
    async for names in client.pages(None, _SCANNED):
        yield [name for name in names if own.match(name)]


async def on_disk(settings: StoreSettings) -> StoreSettings:
    """Return the settings that wait for the disk of each server, where these would wait for nothing."""
    if settings.durability != "store":
        return settings
    told: list[Any] = []
    async with looking(settings) as client:
        infos = await client.each(["INFO", "persistence"])
        # Where a user may not ask it is as on nearly every server.
        with contextlib.suppress(StoreRefused):
            told = await client.each(["CONFIG GET", "appendfsync"])
    # With `no` the disk is never heard of.
    syncs = all(info.get("aof_enabled") for (info,) in infos)
    syncs = syncs and not any(found.get("appendfsync") == "no" for (found,) in told)
    return replace(settings, durability="fsync") if syncs else settings


@contextlib.asynccontextmanager
async def leaving(settings: StoreSettings) -> AsyncIterator[Store]:
    """Yield the store to move from, with as many partitions as it has. Raises `StoreError`,
    `MigrationRefused`.
    """
    async with looking(settings) as client:
        found = await client.hget(keys_of(settings).config, "partitions")
    if found is None:
        raise MigrationRefused(f"there is no namespace {settings.namespace!r} at {redacted(settings.url)}")
    # Its scale is what it has.
    settings = replace(await on_disk(settings), partitions=int(found), scale=None)
    store = await Store.open(settings, hot=False)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def arriving(settings: StoreSettings, token: str) -> AsyncIterator[Store]:
    """Yield the target, for the command that fills it. Raises `StoreError`."""
    # Its scale is what the source has.
    settings = replace(await on_disk(settings), scale=None)
    store = await Store.open(settings, hot=False, arriving=token)
    try:
        yield store
    finally:
        await store.close()
