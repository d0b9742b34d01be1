"""The single point of control for connections to the store. Invariant: the server behind a `Store` is new
enough, has this version's functions, keeps what it stores, and agrees on what was fixed at creation.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from factors import Scale
from featurestore.client import Client
from featurestore.commands import Commands
from featurestore.disk_sync import DiskSync
from featurestore.errors import StoreError, StoreRefused
from featurestore.generations.catalog import Generations
from featurestore.item_registry import ItemRegistry
from featurestore.keys import Keys
from featurestore.leases import Leases
from featurestore.ratings.epochs import Epochs
from featurestore.ratings.log import RatingsLog
from featurestore.ratings.stream import RatingsStream
from featurestore.settings import StoreSettings, format_scale, parse_scale
from featurestore.users.records import UserRecords
from featurestore.wire.connection import Connection, Execute
from featurestore.wire.functions import encode_call, load_library
from featurestore.wire.resp import ReplyError, encode, store_error

# Grows when keys or bytes change so that versions before cannot read them.
LAYOUT = b"2"
# `WAITAOF` came with Redis 7.2; of Valkey, 8 is the first that is supported.
OLDEST_REDIS = (7, 2)
OLDEST_VALKEY = (8, 0)


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    """What is fixed when a namespace is created."""

    partitions: int
    scale: Scale


class _Lazy:
    """A connection that is opened when it is first wanted."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._opened: Connection | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> Connection:
        async with self._lock:
            if self._opened is None:
                connection = self._make()
                await connection.open()
                self._opened = connection
            return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


class Store:
    """Everything of the feature store over connections to one server. Made by `open`, ended by `close`."""

    def __init__(self, settings: StoreSettings, *, hot: bool) -> None:
        self.settings = settings
        self.config = NamespaceConfig(settings.partitions, parse_scale(settings.scale))
        self.keys = Keys(settings.namespace, settings.partitions)
        self._registries: dict[int, ItemRegistry] = {}
        self.bulk = self._connection("bulk", self._prepare)
        self.hot: Connection | None = self._connection("hot") if hot else None
        self.redis = Client(settings.url, settings.timeout_s, self.bulk)
        self._stream_connection = _Lazy(lambda: self._connection("stream"))
        self._disk: DiskSync | None = None
        self._disk_connection: Connection | None = None
        if settings.durability == "fsync":
            self._disk_connection = self._connection("fsync")
            self._disk = DiskSync(self._disk_connection, self.keys.synced, settings.timeout_s)
        self.users = UserRecords(self.keys, self.hot or self.bulk, self.redis)
        self.generations = Generations(self.keys, self.bulk, self.redis)
        self.ratings = RatingsLog(
            self.keys,
            self.bulk,
            self.redis,
            epochs=Epochs(self.keys, self.redis, self.generations, self._mend),
            registry=self.items,
            stream_limit=settings.stream_limit,
            synced=None if self._disk is None else self._disk.wait,
        )
        self.commands = Commands(self.keys, self.redis, block_s=settings.timeout_s / 2)
        self.stream = RatingsStream(self.keys, self.bulk, self._stream_connection.get)
        self.leases = Leases(self.keys, self.redis)

    @classmethod
    async def open(cls, settings: StoreSettings, *, hot: bool = True) -> "Store":
        """Connect, check and prepare.

        Raises `StoreUnavailable` (try again), `StoreRefused` (nothing stays open).
        """
        try:
            store = cls(settings, hot=hot)
        except ValueError as exc:
            raise StoreRefused(f"the scale {exc} (it is {settings.scale!r})") from exc
        try:
            for connection in (store.bulk, store.hot, store._disk_connection):
                if connection is not None:
                    await connection.open()
            if store._disk is not None:
                await store._disk.check()
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close every connection; calls in flight fail with `StoreUnavailable`."""
        if self._disk is not None:
            await self._disk.close()
        for connection in (self.hot, self.bulk, self._disk_connection):
            if connection is not None:
                await connection.close()
        await self._stream_connection.close()
        await self.redis.aclose(close_connection_pool=True)

    async def time(self) -> int:
        """Seconds since 1970 by the clock of the store."""
        return (await self.redis.time())[0]

    def items(self, epoch: int) -> ItemRegistry:
        """The item registry of an epoch."""
        registry = self._registries.get(epoch)
        if registry is None:
            registry = ItemRegistry(self.keys, self.bulk, self.redis, epoch, self.settings.max_items)
            self._registries[epoch] = registry
            # An epoch that was replaced is not asked for again; the one before may be, during the change.
            for old in sorted(self._registries)[:-3]:
                del self._registries[old]
        return registry

    def _connection(
        self, name: str, prepare: Callable[[Execute], Awaitable[None]] | None = None
    ) -> Connection:
        return Connection(self.settings.url, self.settings.timeout_s, name, prepare)

    async def _mend(self) -> None:
        await self._prepare(self.bulk.execute)

    async def _prepare(self, execute: Execute) -> None:
        """Make sure of the store, at the start and whenever the connection comes back: it may be another
        one now.
        """
        _check_server(*[_checked(reply) for reply in await execute(encode(b"INFO"), 1)])
        await load_library(execute)
        keys = self.keys
        config = {
            b"layout": LAYOUT,
            b"partitions": b"%d" % self.config.partitions,
            b"scale": format_scale(self.config.scale).encode(),
        }
        commands = [
            encode_call(
                "create_namespace", [keys.config], [part for pair in config.items() for part in pair]
            ),
            encode(b"HGET", keys.live, b"epoch"),
        ]
        replies = [_checked(reply) for reply in await execute(b"".join(commands), len(commands))]
        flat = replies[0][1]
        self._check_config(config, dict(zip(flat[::2], flat[1::2], strict=True)))
        epoch = replies[1] or b"1"
        commands = []
        if replies[1] is None:
            # Only then: the mark of an epoch that was removed must not come back.
            commands += [encode(b"HSETNX", keys.items(1), b"", b""), encode(b"SADD", keys.stored, b"1")]
            commands += [encode(b"HSETNX", keys.live, name, b"1") for name in (b"last_epoch", b"epoch")]
        commands += [encode(b"SET", keys.epochs(p), epoch, b"NX") for p in range(keys.partitions)]
        for reply in await execute(b"".join(commands), len(commands)):
            _checked(reply)
        for registry in list(self._registries.values()):
            await registry.verify(execute)

    def _check_config(self, wanted: dict[bytes, bytes], found: dict[bytes, bytes]) -> None:
        names = {b"partitions": "FOLDIN_PARTITIONS", b"scale": "FOLDIN_SCALE", b"layout": "the layout"}
        for field, value in wanted.items():
            if found.get(field) != value:
                stored = found.get(field, b"").decode()
                raise StoreRefused(
                    f"the namespace {self.settings.namespace!r} was created with {names[field]} {stored}, "
                    f"not {value.decode()}: use that, or another FOLDIN_NAMESPACE"
                )


def _checked(reply: Any) -> Any:
    if isinstance(reply, ReplyError):
        raise store_error(reply)
    return reply


def _check_server(info: bytes) -> None:
    """Raises `StoreRefused` for a server that is too old, a cluster, or one that throws data away."""
    fields = dict(line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line)
    valkey = fields.get("valkey_version")
    name, oldest = ("Valkey", OLDEST_VALKEY) if valkey else ("Redis", OLDEST_REDIS)
    version = valkey or fields.get("redis_version", "")
    try:
        found = tuple(map(int, version.split(".")[:2]))
    except ValueError:
        raise StoreError(f"the store says that its version is {version!r}") from None
    if found < oldest:
        wanted = ".".join(map(str, oldest))
        raise StoreRefused(f"the store is {name} {version}, too old: use {wanted} or newer")
    if fields.get("cluster_enabled") == "1":
        raise StoreRefused("the store is a cluster: use a single server, or one with replicas")
    if fields.get("maxmemory", "0") != "0" and fields.get("maxmemory_policy", "").startswith("allkeys"):
        raise StoreRefused(
            "the store may throw ratings away "
            f"(maxmemory-policy {fields['maxmemory_policy']}): set it to noeviction"
        )
