"""What a process holds of one generation. Invariant: everything in it is of that generation."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from factors import (
    BlendedRanker,
    Float32s,
    Float64s,
    HeadLikeness,
    Model,
    PosteriorModel,
    Ranker,
    Scorer,
    SideAttributes,
    item_statistics,
)
from featurestore.codecs import pack_records, record_dtype
from featurestore.generations.activity import Activity, Positives
from featurestore.generations.manifest import GenerationMeta

T = TypeVar("T")


class RowLock:
    """Keeps what reads rows of a table in threads apart from the event loop, which writes them: while one
    reads, no row changes, and the event loop never waits for a lock. Many readers, or one writer; code on
    the event loop needs none to read.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        # Set where a writer waits for the readers that there are.
        self._idle: asyncio.Future[None] | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read for the length of a `with`, in a thread; begins when no writer waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if self._readers == 0 and self._idle is not None:
                    # A loop that is closed has no writer any more.
                    with contextlib.suppress(RuntimeError):
                        self._idle.get_loop().call_soon_threadsafe(_done, self._idle)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write for the length of a `with` that awaits nothing. One writer at a time."""
        with self._changed:
            # Readers that come from here on wait: else the writer might wait for ever.
            self._writing = True
            if self._readers:
                self._idle = asyncio.get_running_loop().create_future()
        try:
            if self._idle is not None:
                await self._idle
            yield
        finally:
            with self._changed:
                self._writing, self._idle = False, None
                self._changed.notify_all()


def _done(idle: "asyncio.Future[None]") -> None:
    # The writer may have been cancelled meanwhile.
    if not idle.done():
        idle.set_result(None)


@dataclass(frozen=True, slots=True)
class LiveGeneration:
    """A generation that can be asked. `items` float32 (n_items, item_width), rows as they are stored.
    `ranking`: by the ranking head, `likeness`: of items by it, `activity`: how much items are rated of late,
    `positives`: what they have of positive events; None where there is none that can be used.
    `user_attributes`: how those of users are encoded, None where they play no part. `by_events`: whether the
    ranking head alone tells users and items apart, as there was next to no rating to fit (`is_by_events`).
    `by_popularity`: whether `ranking` goes by how often items are chosen, until the ranking head is there.

    `items`, `ranker`, `ranking` and `likeness` follow the deltas in place; the model and the users' records
    stay those of the fit.
    """

    epoch: int
    generation: int
    posterior: PosteriorModel
    items: Float32s
    n_items: int
    scorer: Scorer
    ranker: Ranker
    meta: GenerationMeta
    ranking: BlendedRanker | None = None
    likeness: HeadLikeness | None = None
    activity: Activity | None = None
    positives: Positives | None = None
    user_attributes: SideAttributes | None = None
    by_events: bool = False
    by_popularity: bool = False
    # What the follower goes on from: the table whose first rows are `items`, None where it has no others, and
    # the stream id of the last delta in it.
    table: Float32s | None = None
    after: str = "0"
    # Shared by all states of one generation, as the table is.
    row_lock: RowLock = field(default_factory=RowLock)
    # Of the users' records: their layout, and the one that stands for a user without any.
    record_dtype: np.dtype[Any] = field(init=False)
    prior_record: bytes = field(init=False)

    def __post_init__(self) -> None:
        # Once for all lookups of the generation.
        prior = self.posterior.prior_user[None]
        object.__setattr__(self, "record_dtype", record_dtype(self.model.user_width))
        object.__setattr__(self, "prior_record", pack_records(np.zeros(1, np.int64), prior)[0])

    def item_events(self) -> Float64s:
        """Return how many ratings and other events each item has (n_items,)."""
        count = item_statistics(self.items).count.astype(np.float64)
        return count if self.positives is None else count + self.positives.events

    async def in_thread(self, compute: Callable[[], T]) -> T:
        """Return what `compute` makes of the rows, in a thread; none of them changes meanwhile."""

        def run() -> T:
            with self.row_lock.reading():
                return compute()

        return await asyncio.to_thread(run)

    @property
    def rank(self) -> int:
        """Of the ranking head; 0 where there is none."""
        return 0 if self.ranking is None else self.ranking.head.parameters.rank

    def alike_by_events(self, row: int) -> HeadLikeness | None:
        """Return what tells which items are like that of `row` by their events, None where ratings do."""
        rated = row < self.n_items and item_statistics(self.items[row : row + 1]).count[0] > 0
        return None if rated and not self.by_events else self.likeness

    @property
    def model(self) -> Model:
        """What the generation knows besides its tables."""
        return self.posterior.model
