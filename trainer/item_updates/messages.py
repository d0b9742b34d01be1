"""What the item updater is told, in the order in which it happened. Invariant: the archive and the files of
the fits already say what a message says, so a message that is lost with a term loses nothing.
"""

import asyncio
from dataclasses import dataclass

import pyarrow as pa

from featurestore.generations.manifest import HEAD_WAITS, GenerationMeta
from trainer.archive.epoch_archive import EpochArchive
from trainer.fit_job.results import FitResult


@dataclass(frozen=True, slots=True)
class ArchivedBatch:
    """Events of an epoch that are on disk now."""

    epoch: int
    table: pa.Table


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """A user who was forgotten in an epoch. `items`: rows of those that the fits had the user's ratings or
    events of, and have no more. `has_returned`: what has come since stays.
    """

    epoch: int
    user_id: bytes
    items: tuple[int, ...] = ()
    has_returned: bool = False


@dataclass(frozen=True, slots=True)
class LiveFit:
    """The live generation, the files of its fit (None where this host has none), and the archive of its
    epoch.
    """

    meta: GenerationMeta
    result: FitResult | None
    archive: EpochArchive

    @property
    def epoch(self) -> int:
        """The epoch that the generation belongs to."""
        return self.meta.summary.epoch

    @property
    def generation(self) -> int:
        """The number of the generation."""
        return self.meta.summary.generation

    @property
    def files_missing(self) -> bool:
        """Whether items cannot be folded in, because the fit learned ratings and its files are not here."""
        return self.result is None and self.meta.summary.n_ratings > 0

    @property
    def head_missing(self) -> bool:
        """Whether the fit went live before its ranking head, which the next one brings."""
        return bool(self.meta.summary.metrics.get(HEAD_WAITS))

    @property
    def fitted_events(self) -> int:
        """How many events of the streams the fit had learned."""
        return round(self.meta.summary.metrics.get("events", 0.0))


ItemUpdate = ArchivedBatch | ErasedUser | LiveFit
ItemUpdates = asyncio.Queue[ItemUpdate]
Arrivals = asyncio.Queue[ArchivedBatch]
"""What arrives for the live generation; when it is full a batch is let go."""
