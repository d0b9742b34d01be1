"""What a store must be and hold before anything is asked of it. Invariant: a process that goes on agrees with
all others on what was fixed when the namespace was created.
"""

from dataclasses import dataclass
from typing import Any

from factors import Scale
from featurestore.errors import StoreError, StoreRefused
from featurestore.item_registry import ItemRegistries
from featurestore.keys import Keys
from featurestore.settings import format_scale
from featurestore.wire.connection import Execute
from featurestore.wire.functions import encode_call, load_library
from featurestore.wire.resp import ReplyError, encode, store_error

# Grows when keys or bytes change so that versions before cannot read them.
LAYOUT = b"2"
# `WAITAOF` came with it.
OLDEST_REDIS = (7, 2)
# The first release of its own; the one before was Redis 7.2 renamed.
OLDEST_VALKEY = (8, 0)


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    """What is fixed when a namespace is created."""

    partitions: int
    scale: Scale


class Namespace:
    """Checks and prepares the store for the namespace called `name`."""

    def __init__(self, name: str, config: NamespaceConfig, keys: Keys, registries: ItemRegistries) -> None:
        self._name = name
        self._config = config
        self._keys = keys
        self._registries = registries

    async def prepare(self, execute: Execute) -> None:
        """Make sure of the store, at the start and whenever the connection comes back. May be repeated.

        Raises `StoreRefused`, `StoreUnavailable`.
        """
        # A store that comes back may be another one: restarted without its data, failed over, flushed.
        check_server(*[_checked(reply) for reply in await execute(encode(b"INFO"), 1)])
        await load_library(execute)
        keys = self._keys
        config = {
            b"layout": LAYOUT,
            b"partitions": b"%d" % self._config.partitions,
            b"scale": format_scale(self._config.scale).encode(),
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
        await self._registries.verify(execute)

    def _check_config(self, wanted: dict[bytes, bytes], found: dict[bytes, bytes]) -> None:
        names = {b"partitions": "FOLDIN_PARTITIONS", b"scale": "FOLDIN_SCALE", b"layout": "the layout"}
        for field, value in wanted.items():
            if found.get(field) != value:
                stored = found.get(field, b"").decode()
                raise StoreRefused(
                    f"the namespace {self._name!r} was created with {names[field]} {stored}, "
                    f"not {value.decode()}: use that, or another FOLDIN_NAMESPACE"
                )


def _checked(reply: Any) -> Any:
    if isinstance(reply, ReplyError):
        raise store_error(reply)
    return reply


def check_server(info: bytes) -> None:
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
