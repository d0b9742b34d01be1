"""What a store must be and hold before anything is asked of it. Invariant: a process that goes on agrees with
all others on what was fixed when the namespace was created.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factors import Scale
from featurestore.client import Client
from featurestore.errors import StoreDamaged, StoreError, StoreRefused
from featurestore.keys import Keys, shown_key
from featurestore.settings import format_scale

# Grows when keys or bytes change so that versions before cannot read them.
LAYOUT = b"2"
# `WAITAOF` came with it.
OLDEST_REDIS = (7, 2)
# The first release of its own; the one before was Redis 7.2 renamed.
OLDEST_VALKEY = (8, 0)
# What a person calls the fields of the configuration.
SETTINGS = {b"partitions": "FOLDIN_PARTITIONS", b"scale": "FOLDIN_SCALE"}
# What any version writes there.
SIGNS = {
    b"layout": re.compile(rb"\d+"),
    b"partitions": re.compile(rb"\d+"),
    b"scale": re.compile(rb"[-+.:e\d]+"),
    b"identity": re.compile(rb"[0-9a-f]{32}"),
}


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    """What is fixed when a namespace is created."""

    partitions: int
    scale: Scale


async def prepare(client: Client, name: str, config: NamespaceConfig, keys: Keys) -> str:
    """Make sure of the store for the namespace called `name`, at the start and whenever the store was away:
    it may be another one, restarted without its data, failed over, flushed. May be repeated.

    Returns its identity: 32 hex digits, given with the namespace. Another one is another store.

    Raises `StoreRefused`, `StoreUnavailable`.
    """
    check_server(await client.info())
    await client.load_library()
    wanted = {
        b"layout": LAYOUT,
        b"partitions": b"%d" % config.partitions,
        b"scale": format_scale(config.scale).encode(),
    }
    fields = [part for pair in wanted.items() for part in pair]
    found: dict[Any, Any] = await client.hgetall(keys.config)
    # Read first: a store whose disk is full takes no function that may write, and is read all the same.
    if b"identity" not in found:
        ((_, flat),) = await client.call(
            "create_namespace", ([keys.config], [secrets.token_hex(16).encode(), *fields])
        )
        found = dict(zip(flat[::2], flat[1::2], strict=True))
        pipe = client.pipeline()
        for partition in range(keys.partitions):
            # Where only this key was lost, what says the identity before is there still.
            pipe.hset(keys.counts(1, partition), "identity", found[b"identity"])
        await pipe.execute()
    _require_same(name, keys.config, found, wanted)
    identity = str(found[b"identity"].decode())
    pipe = client.pipeline()
    pipe.hget(keys.live, "epoch")
    for partition in range(keys.partitions):
        pipe.get(keys.epochs(partition))
    epoch, *epochs = await pipe.execute()
    # Only what is missing: a store without memory takes no command that writes, and is read all the same.
    missing = [partition for partition, found in enumerate(epochs) if found is None]
    if epoch is not None and not missing:
        return identity
    pipe = client.pipeline()
    if epoch is None:
        # Only then: the mark of an epoch that was removed must not come back.
        pipe.hsetnx(keys.items(1), b"", b"")
        pipe.sadd(keys.stored, 1)
        for partition in range(keys.partitions):
            # Before there is an epoch that takes ratings: each write says which store it was decided on.
            pipe.hsetnx(keys.counts(1, partition), "identity", identity)
        # What says that this was done comes last: cut off before, it is done again.
        pipe.hsetnx(keys.live, "last_epoch", 1)
        pipe.hsetnx(keys.live, "epoch", 1)
    for partition in missing:
        pipe.set(keys.epochs(partition), epoch or 1, nx=True)
    await pipe.execute()
    return identity


def _require_same(name: str, key: bytes, found: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
    """Raises `StoreRefused` where a namespace is not the `wanted` one, or of another layout."""
    for field, sign in SIGNS.items():
        text = found.get(field, b"")
        if not sign.fullmatch(text):
            raise StoreDamaged(shown_key(key), f"{field.decode()} is {text[:40]!r}")
    layout = int(found[b"layout"])
    if layout != int(LAYOUT):
        raise StoreRefused(
            f"the namespace {name!r} has layout {layout}, this version reads {LAYOUT.decode()}: "
            "use the version that wrote it, or another FOLDIN_NAMESPACE"
        )
    for field, called in SETTINGS.items():
        if found[field] != wanted[field]:
            raise StoreRefused(
                f"the namespace {name!r} was created with {called} {found[field].decode()}, "
                f"not {wanted[field].decode()}: use that, or another FOLDIN_NAMESPACE"
            )


def check_server(info: Mapping[str, Any]) -> None:
    """Raises `StoreRefused` for a server that is too old, a cluster, or one that throws data away.

    `info`: what `INFO` says, as redis-py reads it.
    """
    # Valkey calls itself Redis 7.2.4 besides, for clients that do not know it.
    valkey = info.get("valkey_version")
    name, oldest = ("Valkey", OLDEST_VALKEY) if valkey else ("Redis", OLDEST_REDIS)
    version = str(valkey or info.get("redis_version", ""))
    try:
        found = tuple(map(int, version.split(".")[:2]))
    except ValueError:
        raise StoreError(f"the store says that its version is {version!r}") from None
    if found < oldest:
        wanted = ".".join(map(str, oldest))
        raise StoreRefused(f"the store is {name} {version}, too old: use {wanted} or newer")
    if info.get("cluster_enabled"):
        raise StoreRefused("the store is a cluster: use a single server, or one with replicas")
    policy = str(info.get("maxmemory_policy", ""))
    if info.get("maxmemory") and policy.startswith("allkeys"):
        raise StoreRefused(
            f"the store may throw ratings away (maxmemory-policy {policy}): set it to noeviction"
        )
