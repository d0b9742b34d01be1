"""Opening both stores of a migration. Invariant: what either acknowledges to the command is on its disk,
wherever it keeps an append-only file: by `decide` the target has all, and by the time it opens the source
says so.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from featurestore.cluster.servers import keys_of, looking
from featurestore.errors import StoreRefused
from featurestore.migration.errors import MigrationRefused
from featurestore.settings import StoreSettings, redacted
from featurestore.store import Store


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
