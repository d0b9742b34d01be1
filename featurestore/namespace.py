"""What a store must be and hold before anything is asked of it. Invariant: a process that goes on agrees with
all others on what was fixed when the namespace was created, and on its scale from the first rating on.
"""

import re
import secrets
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from factors import Float64s, Model, Scale
from featurestore.client import Client
from featurestore.cluster.slots import TAGS_FORMAT
from featurestore.errors import OffScale, StoreDamaged, StoreError, StoreRefused
from featurestore.keys import Keys, shown_key
from featurestore.settings import DEFAULT_SCALE, StoreSettings, format_scale, parse_scale

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


class StoredScale:
    """The scale of a namespace's ratings, decided once: by a setting, a person, an import, or the first
    rating. `value`: that one, and before it is `decided` what the first rating would make it.

    Other versions read the same field, so an undecided scale is stored as the default one, with a mark.
    """

    def __init__(self, keys: Keys, client: Client, wanted: Scale | None) -> None:
        self._keys = keys
        self._client = client
        self.value = wanted or DEFAULT_SCALE
        self.decided = wanted is not None
        self._was_open = False

    @property
    def stored(self) -> Scale:
        """What any stored rating lies on: where this process does not know it yet, every number does."""
        return self.value if self.decided else Scale(-inf, inf)

    @property
    def settled(self) -> bool:
        """Whether all that was checked by `value` was checked by the scale that is decided."""
        return self.decided and not self._was_open

    def take(self, scale: bytes | None, mark: bytes | None) -> None:
        """Take in what the store says of it. Raises `StoreDamaged`."""
        try:
            self.value = parse_scale((scale or b"").decode())
        except ValueError as exc:
            raise StoreDamaged(shown_key(self._keys.config), f"the scale {exc}") from exc
        self.decided = mark is None
        self._was_open |= mark is not None

    async def look(self) -> Scale:
        """Return it as the store has it now."""
        if not self.decided:
            found: Any = await self._client.hmget(self._keys.config, "scale", "scale_open")
            # Unless this process has learned meanwhile that it is decided.
            if not self.decided:
                self.take(*found)
        return self.value

    async def decide(self, scale: Scale) -> bool:
        """Make it `scale` unless it is decided; return whether it is `scale` now. May be repeated."""
        if not self.decided:
            # Ratings that are there, as where the configuration was lost, are taken for ones on the default.
            await self._decide(DEFAULT_SCALE if await self._holds_events() else scale)
        return self.value == scale

    def outdated(self, model: Model, n_ratings: int) -> bool:
        """Say of what was fitted on `n_ratings` whether it is the prior of what the scale was before."""
        ends = model.scale.low, model.scale.high
        return self.decided and not n_ratings and ends != (self.value.low, self.value.high)

    async def require(self, values: Float64s) -> None:
        """Before ratings are stored: decide on the default scale where none is decided. Raises `OffScale`
        where `values` (m,), NaN for none, are off the one that is; nothing is decided for those.
        """
        await self.look()
        self._check(values)
        if not self.decided:
            await self._decide(DEFAULT_SCALE)
            # Another process may have been first.
            self._check(values)

    def _check(self, values: Float64s) -> None:
        off = np.flatnonzero((values < self.value.low) | (values > self.value.high))
        if len(off):
            raise OffScale(float(values[off[0]]), format_scale(self.value))

    async def _decide(self, scale: Scale) -> None:
        call = [self._keys.config], [format_scale(scale).encode()]
        ((_, text),) = await self._client.call("decide_scale", call)
        self.take(text, None)

    async def _holds_events(self) -> bool:
        epoch = int(await self._client.hget(self._keys.live, "epoch") or 1)
        counts = [self._keys.counts(epoch, partition) for partition in range(self._keys.partitions)]
        return any(await self._client.of_each("HEXISTS", counts, "last"))


async def prepare(client: Client, settings: StoreSettings, keys: Keys, scale: StoredScale) -> str:
    """Make sure of the store for the namespace of the settings, at the start and whenever the store was away:
    it may be another one, restarted without its data, failed over, flushed. May be repeated.

    Returns its identity: 32 hex digits, given with the namespace. Another one is another store. `scale` is
    then what the store has.

    Raises `StoreRefused`, `StoreUnavailable`.
    """
    name = settings.namespace
    for (info,) in await client.each(["INFO"]):
        check_server(info, in_cluster=settings.is_cluster)
    await client.load_library()
    wanted = {b"layout": LAYOUT, b"partitions": b"%d" % keys.partitions}
    if settings.is_cluster:
        wanted[b"tags"] = TAGS_FORMAT
    if settings.scale is not None:
        wanted[b"scale"] = format_scale(parse_scale(settings.scale)).encode()
    fields = [part for pair in wanted.items() for part in pair]
    if settings.scale is None:
        fields += [b"scale", format_scale(scale.value).encode()]
        # One that was decided stays so where the store was emptied, or has lost this key.
        fields += [] if scale.decided else [b"scale_open", b"1"]
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
    _require_readable(name, keys.config, found)
    tags = found.get(b"tags", b"")
    if tags != wanted.get(b"tags", b""):
        raise StoreRefused(
            f"the namespace {name!r} spreads its partitions otherwise (tags {tags.decode()!r}): "
            "use the version that wrote it, or another FOLDIN_NAMESPACE"
        )
    if scale.decided and b"scale_open" in found:
        call = [keys.config], [format_scale(scale.value).encode()]
        ((_, found[b"scale"]),) = await client.call("decide_scale", call)
        del found[b"scale_open"]
    _require_same(name, found, wanted)
    scale.take(found[b"scale"], found.get(b"scale_open"))
    identity = str(found[b"identity"].decode())
    await _begin_epochs(client, keys, identity)
    return identity


async def _begin_epochs(client: Client, keys: Keys, identity: str) -> None:
    """Make sure that there is a history that takes ratings, in every partition. Raises `StoreRefused`."""
    pipe = client.pipeline()
    pipe.hmget(keys.live, "epoch", "migration")
    for partition in range(keys.partitions):
        pipe.get(keys.epochs(partition))
    (epoch, migration), *epochs = await pipe.execute()
    if migration:
        raise StoreRefused(
            f"`foldin migrate` of an earlier version moves this namespace ({migration.decode()}): use "
            "the store that it goes to, or give it up by `foldin migrate --abort` of that version"
        )
    # Only what is missing: a store without memory takes no command that writes, and is read all the same.
    missing = [partition for partition, found in enumerate(epochs) if found is None]
    if epoch is not None and not missing:
        return
    pipe = client.pipeline()
    if epoch is None:
        # Only then: the mark of an epoch that was removed must not come back.
        pipe.hsetnx(keys.items(1), b"", b"")
        pipe.sadd(keys.stored, 1)
        for partition in range(keys.partitions):
            # Before there is an epoch that takes ratings: each write says which store it was decided on.
            pipe.hsetnx(keys.counts(1, partition), "identity", identity)
        # What says that this was done comes last: cut off before, it is done again. On a cluster the commands
        # of one pipeline are in no order.
        await pipe.execute()
        pipe = client.pipeline()
        pipe.hsetnx(keys.live, "last_epoch", 1)
        pipe.hsetnx(keys.live, "epoch", 1)
    for partition in missing:
        pipe.set(keys.epochs(partition), epoch or 1, nx=True)
    await pipe.execute()


def _require_readable(name: str, key: bytes, found: Mapping[bytes, bytes]) -> None:
    """Raise `StoreRefused` where a namespace is of another layout, `StoreDamaged` where that is not known."""
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


def _require_same(name: str, found: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
    """Raise `StoreRefused` where a namespace is not the `wanted` one."""
    for field, called in SETTINGS.items():
        if field in wanted and found[field] != wanted[field]:
            raise StoreRefused(
                f"the namespace {name!r} has {called} {found[field].decode()}, "
                f"not {wanted[field].decode()}: use that, or another FOLDIN_NAMESPACE"
            )


def check_server(info: Mapping[str, Any], *, in_cluster: bool = False) -> None:
    """Raises `StoreRefused` for a server that is too old, in a cluster unless it is to be `in_cluster`, or
    one that throws data away.

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
    if info.get("cluster_enabled") and not in_cluster:
        raise StoreRefused("the store is a cluster: give its servers as redis+cluster://HOST:PORT,HOST:PORT")
    policy = str(info.get("maxmemory_policy", ""))
    if info.get("maxmemory") and policy.startswith("allkeys"):
        raise StoreRefused(
            f"the store may throw ratings away (maxmemory-policy {policy}): set it to noeviction"
        )
