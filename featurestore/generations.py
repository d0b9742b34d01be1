"""skeleton"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
import numpy as np
from factors.tables import Float32s, Int32s, Int64s, Link, Model
from featurestore.lease import Lease


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is live. `generation` 0: none yet. `previous`: the one to roll back to (0: none). `pending`: the epoch that
    is being prepared (0: none), since `pending_since` (the store's clock, seconds since 1970)."""

    epoch: int
    generation: int
    fence: int
    held: bool
    previous: int
    pending: int
    pending_since: float


@dataclass(frozen=True, slots=True)
class GenerationDraft:
    """What the trainer knows of a generation before it is written. `created`: seconds since 1970.

    `positions`: partition -> last stream id that the fit has seen; `item_rows`: rows of the registry that it knew."""

    created: float
    rank: int
    link: Link
    engine: str
    n_users: int
    n_items: int
    n_ratings: int
    metrics: dict[str, float] = field(default_factory=dict)
    positions: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationSummary:
    """One line of `GET /generations`."""

    generation: int
    epoch: int
    state: Literal["writing", "ready", "removing"]
    created: float
    rank: int
    link: Link
    engine: str
    n_users: int
    n_items: int
    n_ratings: int
    metrics: dict[str, float]
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class GenerationMeta:
    """What a reader needs to load a generation."""

    summary: GenerationSummary
    positions: dict[int, str]
    item_rows: int
    rows_per_chunk: int
    chunks: int
    crc32: int
    model: Model


@dataclass(frozen=True, slots=True)
class Deltas:
    """Item rows folded in since the fit: `rows` int32 (m,), `vectors` float32 (m, item_width), later ones win; `after`:
    where to go on reading."""

    rows: Int32s
    vectors: Float32s
    after: str


@dataclass(frozen=True, slots=True)
class Worker:
    """The heartbeat of a service process; `age_s` by the store's clock."""

    id: str
    epoch: int
    generation: int
    pid: int
    age_s: float


Summaries = list[GenerationSummary]
Workers = list[Worker]


class GenerationWriter:
    """skeleton"""

    number: int

    async def write_items(self, items: Float32s, model: Model) -> None:
        raise NotImplementedError

    async def write_users(self, user_ids: Sequence[bytes], n: Int64s, vectors: Float32s) -> int:
        """Returns how many records were taken (a user forgotten since, or further on in this generation, is not)."""
        raise NotImplementedError

    async def finish(self) -> GenerationMeta:
        raise NotImplementedError

    async def flip(self, *, automatic: bool = True) -> bool:
        """Go live. False: `automatic` and the namespace is held after a roll-back; the generation stays ready."""
        raise NotImplementedError

    async def abort(self, pause_s: float = 0.0) -> None:
        """Remove what was written; for a fit that is not to be published after all."""
        raise NotImplementedError


class Generations:
    """skeleton"""

    async def live(self) -> Pointer:
        raise NotImplementedError

    async def list(self) -> Summaries:
        raise NotImplementedError

    async def meta(self, epoch: int, generation: int) -> GenerationMeta:
        raise NotImplementedError

    async def begin(self, lease: Lease, epoch: int, draft: GenerationDraft) -> GenerationWriter:
        raise NotImplementedError

    async def activate(self, generation: int, *, hold: bool) -> None:
        raise NotImplementedError

    def load_items(self, meta: GenerationMeta) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def push_delta(self, epoch: int, generation: int, rows: Int32s, vectors: Float32s) -> None:
        raise NotImplementedError

    async def read_deltas(self, meta: GenerationMeta, after: str = "0") -> Deltas:
        raise NotImplementedError

    async def workers(self) -> Workers:
        raise NotImplementedError

    async def wait_served(self, epoch: int, generation: int, timeout_s: float) -> bool:
        """Whether every worker that beat in the last 2 s serves this generation, or a later one, within `timeout_s`."""
        raise NotImplementedError

    async def remove(self, epoch: int, generation: int, pause_s: float = 0.0) -> None:
        raise NotImplementedError

    async def remove_epoch(self, epoch: int, pause_s: float = 0.0) -> None:
        raise NotImplementedError
