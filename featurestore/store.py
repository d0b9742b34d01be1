"""The single point of control for connections to the store. Invariant: the server behind a `Store` is new
enough, has this version's functions, keeps what it stores, and agrees on what was fixed at creation.
"""

import asyncio

from featurestore.access import AccessKeys
from featurestore.catalogue.attributes import UserAttributes
from featurestore.catalogue.catalogue import Catalogue
from featurestore.catalogue.scenarios import Scenarios
from featurestore.client import Client
from featurestore.commands import Commands
from featurestore.confirmation import EVERYSEC_S, Confirmation
from featurestore.errors import StoreChanged, StoreRefused
from featurestore.experiments.showings import StoredShowings
from featurestore.experiments.stored import StoredExperiments
from featurestore.experiments.tallies import Tallies
from featurestore.generations.catalog import Generations
from featurestore.item_registry import ItemRegistries
from featurestore.keys import Keys
from featurestore.leases import Leases
from featurestore.namespace import NamespaceConfig, prepare
from featurestore.quotas.buckets import Buckets
from featurestore.ratings.epochs import Epochs
from featurestore.ratings.event_types import EventTypes
from featurestore.ratings.files import StoreFiles
from featurestore.ratings.log import RatingsLog
from featurestore.ratings.room import Room
from featurestore.ratings.stored_context_schema import StoredContextSchema
from featurestore.ratings.stream import RatingsStream
from featurestore.settings import StoreSettings, parse_scale
from featurestore.users.active import ActiveUsers
from featurestore.users.copies import UserCopies
from featurestore.users.records import UserRecords
from featurestore.wire.connection import Connection, Prepare
from featurestore.wire.primary import Primary
from processes.errors import CannotStartError


class Store:
    """Everything of the feature store over connections to one server. Made by `open`, ended by `close`."""

    def __init__(self, settings: StoreSettings, *, hot: bool) -> None:
        self.settings = settings
        self.config = NamespaceConfig(settings.partitions, parse_scale(settings.scale))
        self.keys = Keys(settings.namespace, settings.partitions)
        # The address with its password is for connections alone.
        self._primary = Primary(settings.address())
        self._following: asyncio.Task[None] | None = None
        self.redis = Client(self._primary, settings.timeout_s)
        self.bulk = self._connection("bulk", self._prepare, finds=True)
        self.redis.main = self.bulk
        self.hot: Connection | None = self._connection("hot") if hot else None
        # Which store this is, as last seen: another one behind the same address was emptied, or is another.
        self.identity = ""
        self._registries = ItemRegistries(self.keys, self.bulk, self.redis, settings.max_items)
        # `items(epoch)`: the item registry of an epoch.
        self.items = self._registries.of
        wait_s = settings.timeout_s + EVERYSEC_S * (settings.durability == "fsync")
        self.confirmation = Confirmation(
            settings.durability,
            self._primary,
            self.bulk,
            self._connection("confirm", block_s=wait_s),
            key=self.keys.synced,
            wait_s=wait_s,
        )
        # Who asks often keeps copies of what comes.
        copies, hot_or_bulk = UserCopies() if hot else None, self.hot or self.bulk
        self.users = UserRecords(self.keys, hot_or_bulk, self.redis, self.config.scale, copies)
        self.active = ActiveUsers(self.keys, self.redis)
        self.generations = Generations(self.keys, self.bulk, self.redis)
        self.epochs = Epochs(self.keys, self.redis, self.generations, self._prepare)
        self.stream = RatingsStream(self.keys, self.bulk, self.redis, self.config.scale)
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
            scale=self.config.scale,
        )
        self.commands = Commands(self.keys, self.redis, block_s=settings.timeout_s / 2)
        self.leases = Leases(self.keys, self.redis)
        self.access = AccessKeys(self.keys, self.redis)
        self.room = Room(self.keys, self.redis)
        self.catalogue = Catalogue(
            *(self.keys, self.hot or self.bulk, self.redis, self.confirmation), max_items=settings.max_items
        )
        self.attributes = UserAttributes(self.keys, self.redis, self.confirmation, self.epochs)
        self.scenarios = Scenarios(self.keys, self.hot or self.bulk, self.redis, self.confirmation)
        self.event_types = EventTypes(self.keys, self.redis, self.confirmation)
        self.contexts = StoredContextSchema(self.keys, self.redis, self.confirmation)
        self.experiments = StoredExperiments(self.keys, self.redis, self.confirmation)
        self.tallies = Tallies(self.keys, self.redis)
        self.showings = StoredShowings(self.keys, self.redis)
        self.quotas = Buckets(self.keys, self.redis)
        self.files = StoreFiles(self.keys, self.redis)

    @classmethod
    async def open(cls, settings: StoreSettings, *, hot: bool = True) -> "Store":
        """Connect, check and prepare.

        Raises `StoreUnavailable` (try again), `StoreRefused` (nothing stays open).
        """
        try:
            parse_scale(settings.scale)
        except ValueError as exc:
            raise StoreRefused(f"the scale {exc} (it is {settings.scale!r})") from exc
        try:
            store = cls(settings, hot=hot)
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
            if store._primary.followed:
                store._following = asyncio.create_task(store._primary.follow(), name="follow the primary")
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
        self._primary.close()

    async def look_again(self) -> None:
        """Make sure of the store, which may be another one: read its identity, bring back what it lost."""
        await self._prepare()

    async def require_same(self) -> None:
        """Raise `StoreChanged` where the store no longer says that it is the one that was opened."""
        found = await self.redis.hget(self.keys.config, "identity")
        if not isinstance(found, bytes) or found.decode() != self.identity:
            raise StoreChanged("the store was emptied, or another one has taken its place")

    async def time_ms(self) -> int:
        """Return the store's time in milliseconds, as the entries of the streams have it."""
        seconds, micros = await self.redis.time()
        return int(1000 * seconds + micros // 1000)

    async def time(self) -> int:
        """Seconds since 1970 by the clock of the store."""
        return (await self.redis.time())[0]

    def _connection(
        self, name: str, prepare: Prepare | None = None, *, finds: bool = False, block_s: float = 0.0
    ) -> Connection:
        return Connection(
            *(self._primary, self.settings.timeout_s, name),
            prepare=prepare,
            load_library=self.redis.load_library,
            finds=finds,
            block_s=block_s,
        )

    async def _prepare(self) -> None:
        # A client of its own, closed each time: `redis` asks nothing while the bulk connection is away, and
        # its sockets may lead to a server that is no longer the one to ask.
        client = Client(self._primary, self.settings.timeout_s)
        try:
            identity = await prepare(client, self.settings.namespace, self.config, self.keys)
            if self.identity in {"", identity}:
                await self._registries.verify(client)
            else:
                # Rows of items here may be those of others there.
                self._registries.clear()
            self.identity = identity
        finally:
            await client.aclose(close_connection_pool=True)
