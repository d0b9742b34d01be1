"""skeleton"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from factors import Ranker, Scorer
from factors.tables import Float32s, Model
from featurestore.generations import GenerationMeta

if TYPE_CHECKING:
    from featurestore.store import Store


@dataclass(frozen=True, slots=True)
class LiveGeneration:
    """skeleton"""

    epoch: int
    generation: int
    model: Model
    items: Float32s
    n_items: int
    scorer: Scorer
    ranker: Ranker
    meta: GenerationMeta


class Follower:
    """skeleton"""

    live: LiveGeneration | None

    def __init__(self, store: "Store", cache_dir: Path, worker_id: str, poll_s: float = 0.1) -> None:
        raise NotImplementedError

    async def run(self, stop: asyncio.Event) -> None:
        raise NotImplementedError

    async def wait_for(self, epoch: int, generation: int, timeout_s: float) -> bool:
        """Whether every worker that beat in the last 2 s serves it (or something later) within `timeout_s`."""
        raise NotImplementedError
