"""What the handlers of one worker share, under one key of the application.

Invariant: it is made once, by `app`, before the port opens; handlers read its parts and replace none.
"""

import contextlib
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from featurestore.errors import StoreFull
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.store import Store
from service.catalogue.follower import CatalogueFollower
from service.experiments.counting import ArmCounts, Membership
from service.feedback.recorder import FeedbackRecorder
from service.http.access import Access
from service.http.audit import Audit
from service.http.bodies import Admission, BodyReader
from service.http.dispatch import Traffic
from service.http.quotas import Quotas
from service.metrics import Counts, SnapshotFiles
from service.micro_batcher import MicroBatcher
from service.neighbours.nearest import Nearest
from service.ranking_queue import RankingDesk
from service.rules.scenarios import ScenarioReader
from service.scoring import PairScorer, require_live
from service.settings import ServiceSettings, WorkerSlot
from service.training import Training


class Serving(NamedTuple):
    """What answers a user: a generation, and the arm of an experiment that it is, if it is one."""

    live: LiveGeneration
    member: Membership | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceContext:
    """The parts of one worker. `predictions`, `imports`: how many large bodies of each kind it takes on."""

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
    batcher: MicroBatcher
    scorer: PairScorer
    rankings: RankingDesk
    nearest: Nearest
    catalogue: CatalogueFollower
    scenarios: ScenarioReader
    training: Training
    access: Access
    audit: Audit
    quotas: Quotas
    arm_counts: ArmCounts
    feedback: FeedbackRecorder

    def live(self) -> LiveGeneration:
        """Return the generation that is served; raises `no_generation` before the first."""
        return require_live(self.follower)

    def serving(self, user_id: bytes) -> Serving:
        """Return what answers a user, and count the user where that is an arm; raises `no_generation`."""
        live, experiment, arm, mark = self.follower.for_user(user_id)
        if live is None or experiment is None:
            return Serving(self.live())
        self.arm_counts.asked(experiment, arm, [mark])
        return Serving(live, Membership(experiment, arm, mark))

    def require_room(self) -> None:
        """Raise `StoreFull` while the leader says that there is no room for ratings."""
        if (reason := self.follower.full) is not None:
            raise StoreFull("ratings are refused", reason)

    async def epoch(self) -> int:
        """Return the epoch that is served; before the first generation, the one that takes ratings."""
        live = self.follower.live
        return live.epoch if live else (await self.store.generations.live()).epoch

    def snapshot(self) -> Counts:
        """Return the counts with what this worker is at this moment."""
        counts, live = self.counts, self.follower.live
        counts.at = time.time()
        counts.generation = live.generation if live else 0
        counts.epoch = live.epoch if live else 0
        counts.ranking_head = int(live is not None and live.ranking is not None)
        counts.in_flight = self.traffic.in_flight
        counts.connections = self.traffic.connections
        counts.resident_bytes = _resident_bytes()
        return counts


CONTEXT = web.AppKey("context", ServiceContext)


def _resident_bytes() -> int:
    """Return the resident memory of this process: now where the system tells, else its peak."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
