"""The single point of control for connections to the store. Invariant: the server behind a `Store` is new
enough, has this version's functions, keeps what it stores, and agrees on what was fixed at creation.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.access import AccessKeys
from featurestore.catalogue.attributes import UserAttributes
from featurestore.catalogue.catalogue import Catalogue
from featurestore.catalogue.dump import KeptDocuments
from featurestore.catalogue.scenarios import Scenarios
from featurestore.cluster.servers import keys_of, servers_of
from featurestore.commands import Commands
from featurestore.confirmation import EVERYSEC_S
from featurestore.errors import StoreChanged, StoreRefused
from featurestore.experiments import StoredExperiments, StoredShowings, Tallies
from featurestore.generations.catalog import Generations
from featurestore.item_registry import ItemRegistries
from featurestore.leases import Leases
from featurestore.namespace import StoredScale, prepare
from featurestore.ratings.epochs import Epochs
from featurestore.ratings.event_types import DEFAULT_TYPES, types_from_bytes, types_to_bytes
from featurestore.ratings.files import StoreFiles
from featurestore.ratings.log import RatingsLog
from featurestore.ratings.room import Room
from featurestore.ratings.stored_document import EventTypes, StoredContextSchema
from featurestore.ratings.stream import RatingsStream
from featurestore.settings import StoreSettings, parse_scale
from featurestore.telemetry.points import Telemetry
from featurestore.users.active import ActiveUsers
from featurestore.users.copies import UserCopies
from featurestore.users.records import UserRecords
from featurestore.users.search import UserSearch
from featurestore.wire.connection import Connection, Prepare
from processes.errors import CannotStartError

if TYPE_CHECKING:
    # With the extra `telemetry` alone.
    from featurestore.telemetry.tracing import Tracing


class Store:
    """Everything of the feature store over connections to its servers. Made by `open`, ended by `close`."""

    def __init__(self, settings: StoreSettings, *, hot: bool, traced_as: str = "") -> None:
        self.settings = settings
        self.tracing = _tracing(settings, traced_as)
        scale = None if settings.scale is None else parse_scale(settings.scale)
        self.keys = keys_of(settings)
        # The address with its password is for connections alone.
        self._servers = servers_of(settings)
        self._following: asyncio.Task[None] | None = None
        self.redis = self._servers.client()
        self.scale = StoredScale(self.keys, self.redis, scale)
        self.bulk = self._connection("bulk", self.look_again)
        self.redis.main = self.bulk
        self.hot: Connection | None = self._connection("hot") if hot else None
        # Which store this is, as last seen: another one behind the same address was emptied, or is another.
        self.identity = ""
        self._registries = ItemRegistries(self.keys, self.bulk, self.redis, settings.max_items)
        # `items(epoch)`: the item registry of an epoch.
        self.items = self._registries.of
        wait_s = settings.timeout_s + EVERYSEC_S * (settings.durability == "fsync")
        asking = self._connection("confirm", block_s=wait_s)
        self.confirmation = self._servers.confirmation(self.bulk, asking, wait_s)
        # Who asks often keeps copies of what comes.
        copies, read = UserCopies(2.0 * settings.timeout_s) if hot else None, self.hot or self.bulk
        self.users = UserRecords(self.keys, read, self.redis, self.scale, copies, writing=self.bulk)
        self.active = ActiveUsers(self.keys, self.redis)
        self.user_search = UserSearch(self.keys, self.redis)
        self.generations = Generations(self.keys, self.bulk, self.redis)
        self.epochs = Epochs(self.keys, self.redis, self.generations, self.look_again)
        self.stream = RatingsStream(self.keys, self.bulk, self.redis, self.scale)
        tracing = self.tracing
        self.traces = None if tracing is None else tracing.traces(self.keys, self.redis, self.stream)
        self.ratings = RatingsLog(
            self.keys,
            self.bulk,
            self.redis,
            epochs=self.epochs,
            registries=self._registries,
            stream=self.stream,
            stream_limit=settings.stream_limit,
            identity=lambda: self.identity,
            confirmation=self.confirmation,
            scale=self.scale,
            mark=None if self.traces is None else self.traces.mark,
        )
        self.commands = Commands(
            self.keys, self.redis, block_s=settings.timeout_s / 2, identity=lambda: self.identity
        )
        self.leases = Leases(self.keys, self.redis)
        self.access = AccessKeys(self.keys, self.bulk, self.redis)
        self.room = Room(self.keys, self.redis)
        self._open_catalogue()
        self._open_figures()

    def _open_catalogue(self) -> None:
        """What is told of items, users and events."""
        self.catalogue = Catalogue(
            *(self.keys, self.hot or self.bulk, self.redis, self.confirmation),
            max_items=self.settings.max_items,
        )
        self.attributes = UserAttributes(self.keys, self.redis, self.confirmation, self.epochs)
        self.scenarios = Scenarios(self.keys, self.hot or self.bulk, self.redis, self.confirmation)
        self.event_types = EventTypes(
            *(self.redis, self.confirmation),
            key=self.keys.event_types,
            default=DEFAULT_TYPES,
            to_bytes=types_to_bytes,
            from_bytes=types_from_bytes,
        )
        self.contexts = StoredContextSchema(self.keys, self.redis, self.confirmation)

    def _open_figures(self) -> None:
        """What is counted, and what is looked for by people."""
        self.experiments = StoredExperiments(self.keys, self.redis, self.confirmation)
        self.tallies = Tallies(self.keys, self.redis)
        self.showings = StoredShowings(self.keys, self.redis)
        self.telemetry = Telemetry(self.keys, self.redis)
        self.files = StoreFiles(self.keys, self.redis)
        # The one list of what is kept besides ratings.
        self.kept = KeptDocuments(
            self.catalogue,
            self.attributes,
            self.scenarios,
            self.experiments,
            self.event_types,
            self.contexts,
            self.access,
        )

    @classmethod
    async def open(cls, settings: StoreSettings, *, hot: bool = True, traced_as: str = "") -> "Store":
        """Connect, check and prepare. `traced_as`: the name of this process in traces, which it then sends
        where the settings name a collector.

        Raises `StoreUnavailable` (try again), `StoreRefused` (nothing stays open).
        """
        try:
            parse_scale(settings.scale or "1:5")
        except ValueError as exc:
            raise StoreRefused(f"the scale {exc} (it is {settings.scale!r})") from exc
        try:
            store = cls(settings, hot=hot, traced_as=traced_as)
        except (ValueError, OSError) as exc:
            raise StoreRefused(f"the address of the store (FOLDIN_REDIS_URL): {exc}") from exc
        except CannotStartError as exc:
            raise StoreRefused(f"the password of the store: {exc}") from exc
        try:
            # This one first: it prepares the store for the others.
            await store.bulk.open()
            if store.hot is not None:
                await store.hot.open()
            await store.confirmation.open()
            if (following := store._servers.following()) is not None:
                store._following = asyncio.create_task(following, name="follow the store's servers")
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close every connection; calls in flight fail with `StoreUnavailable`."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.confirmation.close()
        for connection in (self.hot, self.bulk):
            if connection is not None:
                await connection.close()
        await self.redis.aclose(close_connection_pool=True)
        self._servers.close()
        if self.tracing is not None:
            await self.tracing.close()

    async def require_same(self) -> None:
        """Raise `StoreChanged` where the store no longer says that it is the one that was opened."""
        found = await self.redis.hget(self.keys.config, "identity")
        if not isinstance(found, bytes) or found.decode() != self.identity:
            raise StoreChanged("the store was emptied, or another one has taken its place")

    def apart(self, epoch: int, user_ids: Sequence[bytes]) -> list[list[int]]:
        """Return which users are of one server, by their places: where one is away, the others are not.
        Raises `StoreUnavailable`.
        """
        return self.bulk.apart(self.keys.users(epoch, user_ids))

    async def time_ms(self) -> int:
        """Return the store's time in milliseconds, as the entries of the streams have it."""
        seconds, micros = await self.redis.time()
        return int(1000 * seconds + micros // 1000)

    async def time(self) -> int:
        """Seconds since 1970 by the clock of the store."""
        return (await self.redis.time())[0]

    def _connection(self, name: str, prepare: Prepare | None = None, *, block_s: float = 0.0) -> Connection:
        return self._servers.connection(
            name,
            prepare=prepare,
            load_library=self.redis.load_library,
            block_s=block_s,
            around=None if self.tracing is None else self.tracing.around,
        )

    async def look_again(self) -> None:
        """Make sure of the store, which may be another one: read its identity, bring back what it lost."""
        # A client of its own, closed each time: `redis` asks nothing while the bulk connection is away, and
        # its sockets may lead to a server that is no longer the one to ask.
        client = self._servers.client()
        try:
            identity = await prepare(client, self.settings, self.keys, self.scale)
            if self.identity in {"", identity}:
                await self._registries.verify(client)
            else:
                # Rows of items here may be those of others there.
                self._registries.clear()
            self.identity = identity
        finally:
            await client.aclose(close_connection_pool=True)


def _tracing(settings: StoreSettings, traced_as: str) -> "Tracing | None":
    if settings.traces_url is None or not traced_as:
        return None
    from featurestore.telemetry.tracing import Tracing

    return Tracing(settings.traces_url, traced_as)
