"""What the handlers of one worker share, under one key of the application.

Invariant: it is made once, by `app`, before the port opens; handlers read its parts and replace none.
"""

import asyncio
import time
from dataclasses import dataclass

from aiohttp import web

from factors import Scale
from featurestore.errors import FullReason, StoreFull
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.namespace import StoredScale
from featurestore.store import Store
from processes.memory import resident_bytes
from service.catalogue.follower import CatalogueFollower
from service.experiments.counting import ArmCounts
from service.feedback import FeedbackRecorder
from service.http.access import Access
from service.http.audit import Audit
from service.http.bodies import Admission, BodyReader
from service.http.dispatch import Traffic
from service.http.rating_limits import MemoryWatch, RatingQuota
from service.metrics import Counts, SnapshotFiles
from service.micro_batcher import MicroBatcher
from service.neighbours import Nearest
from service.ranking_queue import RankingDesk
from service.rating_errors import RatingErrors
from service.rules.scenarios import ScenarioReader
from service.scoring import PairScorer, require_live
from service.settings import ServiceSettings, WorkerSlot
from service.training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContext:
    """The parts of one worker. `predictions`, `imports`: how many large bodies of each kind it takes on;
    `exports`: how many exports; `erasures`: how many of these are waited for.
    """

    settings: ServiceSettings
    slot: WorkerSlot
    store: Store
    follower: Follower
    counts: Counts
    snapshot_files: SnapshotFiles
    traffic: Traffic
    bodies: BodyReader
    predictions: Admission
    imports: Admission
    exports: asyncio.Semaphore
    erasures: asyncio.Semaphore
    batcher: MicroBatcher
    scorer: PairScorer
    rating_errors: RatingErrors
    rankings: RankingDesk
    nearest: Nearest
    catalogue: CatalogueFollower
    scenarios: ScenarioReader
    training: Training
    access: Access
    audit: Audit
    rating_quota: RatingQuota
    arm_counts: ArmCounts
    feedback: FeedbackRecorder
    memory: MemoryWatch

    def live(self) -> LiveGeneration:
        """Return the generation that is served; raises `no_generation` before the first."""
        return require_live(self.follower)

    def scale(self) -> Scale:
        """Return the scale of the ratings. A fit finds the step that they keep where it names none."""
        scale, live = self.store.scale.value, self.follower.live
        if live is None or (live.model.scale.low, live.model.scale.high) != (scale.low, scale.high):
            return scale
        return live.model.scale

    async def scale_now(self) -> StoredScale:
        """Return the scale of the ratings as the store has it: another worker may just have answered that it
        is decided, which this one else learns within a tenth of a second. Raises `StoreError`.
        """
        await self.store.scale.look()
        return self.store.scale

    @property
    def full(self) -> FullReason | None:
        """What has no room left for ratings, as the leader says, or in this replica."""
        return self.follower.full or ("worker_memory" if self.memory.full else None)

    def require_room(self) -> None:
        """Raise `StoreFull` while there is no room for ratings."""
        if (reason := self.full) is not None:
            raise StoreFull("ratings are refused", reason)

    async def epoch(self) -> int:
        """Return the epoch that is served; before the first generation, the one that takes ratings."""
        live = self.follower.live
        return live.epoch if live else (await self.store.generations.live()).epoch

    def take_ratings(self, request: web.BaseRequest, ratings: int) -> None:
        """Take so many ratings from what the key of a request may give. Raises `quota_exceeded`."""
        key = self.access.key_of(request.headers) if self.access.asks else None
        self.rating_quota.take(key, ratings)

    def snapshot(self) -> Counts:
        """Return the counts with what this worker is at this moment."""
        counts, live = self.counts, self.follower.live
        counts.at = time.time()
        counts.generation = live.generation if live else 0
        counts.epoch = live.epoch if live else 0
        counts.ranking_head = int(live is not None and live.ranking is not None and not live.by_popularity)
        counts.in_flight = self.traffic.in_flight
        counts.connections = self.traffic.connections
        counts.resident_bytes = resident_bytes()
        return counts


CONTEXT = web.AppKey("context", ServiceContext)
