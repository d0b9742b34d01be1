"""skeleton"""

from dataclasses import dataclass
from featurestore.settings import StoreSettings
from featurestore.connection import Connection
from featurestore.users import Users
from featurestore.items import ItemRegistry
from featurestore.ratings import RatingsLog
from featurestore.stream import RatingsStream
from featurestore.generations import Generations
from featurestore.commands import Commands
from featurestore.lease import Leases
from featurestore.keys import Keys
from factors.tables import Scale
from redis.asyncio import Redis


@dataclass(frozen=True, slots=True)
class NamespaceConfig:
    """What is fixed when a namespace is created."""

    partitions: int
    scale: Scale


class Store:
    """skeleton"""

    settings: StoreSettings
    config: NamespaceConfig
    keys: Keys
    hot: Connection | None
    redis: Redis
    users: Users
    ratings: RatingsLog
    generations: Generations
    commands: Commands
    stream: RatingsStream
    leases: Leases

    @classmethod
    async def open(cls, settings: StoreSettings, *, hot: bool = True) -> "Store":
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def items(self, epoch: int) -> ItemRegistry:
        raise NotImplementedError
