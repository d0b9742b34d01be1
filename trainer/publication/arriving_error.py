"""Measure how well the live generation and the one before it predict the ratings that arrive. The term runs
it; the metrics read it. Invariant: both predict a rating from the same history, and neither has learned it.

It changes nothing: going back is up to a person, whom an alert tells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Float32s, Float64s, Histories, PosteriorModel, Scorer, posterior_of
from featurestore.catalogue.columns import columns_of_users
from featurestore.codecs import ENTRY_DTYPE
from featurestore.contexts import codec as contexts
from featurestore.errors import EpochGone, GenerationUnknown, StoreUnavailable
from trainer import log
from trainer.archive.events import contexts_of, ratings_of
from trainer.consume.open_epochs import OpenEpochs
from trainer.fit_job.results import FitResult
from trainer.item_updates.messages import ArchivedBatch, Arrivals, LiveFit
from trainer.publication.switch import Switch
from trainer.stage import Stage, Tools

# Of a batch, which comes twice a second at most: 20 ms of a thread, and a reply of the store of 1 MB at most.
_RATINGS_OF_A_BATCH = 64
# Users with more ratings are left out, so that what is read of the store is bounded.
_LONGEST_HISTORY = 1_000


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Ratings of a batch that are predicted, each of another user or item: arrays (m,). `context` (m, k):
    None where none was given.
    """

    users: list[bytes]
    n: npt.NDArray[np.int64]
    item_row: npt.NDArray[np.int64]
    rating: Float64s
    time: Float64s
    context: Float32s | None = None


@dataclass(frozen=True, slots=True)
class _Predictor:
    """A generation as it was fitted."""

    fit: FitResult
    posterior: PosteriorModel

    def predict(
        self, arrived: _Arrived, histories: Histories, stored: Sequence[bytes]
    ) -> tuple[Float64s, npt.NDArray[np.bool_]]:
        """Return the predicted ratings (m,), and which ratings (m,) the fit has not learned. `stored`: the
        attributes of the users, as they are stored.
        """
        rows = self.fit.rows_of(arrived.users)
        known = rows >= 0
        users = np.repeat(self.posterior.prior_user[None], len(rows), axis=0)
        users[known] = self.fit.users[rows[known]]
        fresh = ~known
        fresh[known] = arrived.n[known] > self.fit.user_n[rows[known]]
        known_by = self.fit.side_attributes("user")
        columns = None if known_by is None else columns_of_users(known_by.encoding, stored)
        users = self.posterior.fold_in_users(self.fit.items, histories, current=users, attributes=columns)
        scorer, scale = Scorer(self.posterior, self.fit.items), self.fit.model.scale
        predicted = scorer.score(users, None, arrived.item_row, arrived.time, arrived.context).rating
        return np.clip(predicted, scale.low, scale.high), fresh


@dataclass
class Comparison:
    """The live generation beside the one before it: how many `ratings` both have predicted, and the sums of
    their squared errors.
    """

    generation: int
    live: _Predictor
    before: _Predictor
    ratings: int = 0
    squared: tuple[float, float] = (0.0, 0.0)

    @property
    def reads_attributes(self) -> bool:
        """Whether attributes of users play a part in either."""
        return any(each.fit.user_attributes is not None for each in (self.live, self.before))

    @property
    def rmse(self) -> dict[str, float]:
        """The root mean squared errors, by the names that the metric has; none before the first rating."""
        named = zip(("live", "previous"), self.squared, strict=True)
        return {name: math.sqrt(total / self.ratings) for name, total in named if self.ratings}

    def add(self, arrived: _Arrived, histories: Histories, stored: Sequence[bytes]) -> None:
        """Add the errors of the ratings that neither has learned."""
        live, fresh = self.live.predict(arrived, histories, stored)
        before, also_fresh = self.before.predict(arrived, histories, stored)
        counted = fresh & also_fresh
        live_error, error_before = (
            float(np.square(arrived.rating - each)[counted].sum()) for each in (live, before)
        )
        self.squared = self.squared[0] + live_error, self.squared[1] + error_before
        self.ratings += int(np.count_nonzero(counted))


class ArrivingError(Stage):
    """Compares for one term, by what comes in `arrivals`. `comparison`: of the generation that is live; None
    where there is none before it, or a fit of either is not here.
    """

    def __init__(self, tools: Tools, epochs: OpenEpochs, switch: Switch, arrivals: Arrivals) -> None:
        super().__init__(tools)
        self._epochs = epochs
        self._switch = switch
        self.arrivals = arrivals
        self.comparison: Comparison | None = None
        # The live generation that `comparison` is about, also where it is None.
        self._live = 0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            batch = await self.arrivals.get()
            try:
                await self._take(batch)
            except (StoreUnavailable, GenerationUnknown, EpochGone) as exc:
                # Other ratings will come; what is unknown was replaced meanwhile.
                log.warning("arrivals_not_predicted", error=str(exc))

    async def _take(self, batch: ArchivedBatch) -> None:
        live = self._switch.live
        if live is None or live.epoch != batch.epoch:
            return
        if self._live != live.generation:
            self.comparison = None
            self.comparison, self._live = await self._begin(live), live.generation
        comparison = self.comparison
        if comparison is None:
            return
        chosen = await self._threads.run(_chosen, batch.table)
        arrived, histories = await self._histories(batch.epoch, chosen)
        stored = await self._store.attributes.stored(arrived.users) if comparison.reads_attributes else []
        await self._threads.run(comparison.add, arrived, histories, stored)

    async def _begin(self, live: LiveFit) -> Comparison | None:
        """Return the comparison of the live generation, if there is one to go back to."""
        pointer = await self._store.generations.live()
        if pointer.generation != live.generation or not pointer.previous:
            return None
        epoch = await self._epochs.open(live.epoch)
        before = await self._threads.run(epoch.fits.read, pointer.previous)
        # Scores of implicit feedback are no ratings.
        if live.result is None or before is None or "implicit" in _feedback(live.result, before):
            return None
        first, second = (_Predictor(fit, posterior_of(fit.model)) for fit in (live.result, before))
        return Comparison(live.generation, first, second)

    async def _histories(self, epoch: int, chosen: pa.Table) -> tuple[_Arrived, Histories]:
        """Return those of the ratings whose users are still there, with the histories before them."""
        stored = await self._store.users.stored(epoch, chosen["user_id"].cast(pa.binary()).to_pylist())
        keep, parts = [], []
        rated = zip(stored, chosen["n"].to_pylist(), chosen["item_row"].to_pylist(), strict=True)
        for k, (user, n, item_row) in enumerate(rated):
            count = len(user.history) // ENTRY_DTYPE.itemsize
            entries = np.frombuffer(user.history, dtype=ENTRY_DTYPE, count=count)
            since = user.n - n + 1
            if since > 0:
                # Each event has added one entry. An earlier rating of the same item would tell.
                entries = entries[: max(0, len(entries) - since)]
                entries = entries[entries["type_code"] == 0]
                parts.append(entries[entries["item_row"] != item_row])
                keep.append(k)
        entries, counts = np.concatenate([np.zeros(0, ENTRY_DTYPE), *parts]), list(map(len, parts))
        rows, time = entries["item_row"].astype(np.int32), entries["time"].astype(np.float64)
        told, of_entries = contexts.of_users([stored[k].contexts for k in keep], range(len(keep)))
        owners = np.repeat(np.arange(len(keep)), counts), of_entries
        histories = Histories(
            np.cumsum([0, *counts]),
            rows,
            entries["rating"].astype(np.float64),
            time,
            context=contexts.match(rows, time, told, owners),
        )
        kept = chosen.take(pa.array(keep, pa.int64()))
        arrived = _Arrived(
            [stored[k].user_id for k in keep],
            kept["n"].to_numpy(),
            kept["item_row"].to_numpy().astype(np.int64),
            kept["rating"].to_numpy(),
            kept["time"].to_numpy(),
            contexts_of(kept),
        )
        return arrived, histories


def _feedback(*fits: FitResult) -> set[str]:
    return {fit.model.feedback for fit in fits}


def _chosen(table: pa.Table) -> pa.Table:
    """Return some of the ratings of a batch, at random; those of the same batch again are the same."""
    rated = pc.and_(pc.invert(pc.is_nan(table["rating"])), pc.less_equal(table["n"], _LONGEST_HISTORY))
    table = ratings_of(table.filter(rated))
    if table.num_rows > _RATINGS_OF_A_BATCH:
        # Not every so many: a panel that is rated in turn would give those of one item.
        rng = np.random.default_rng(table.num_rows)
        table = table.take(pa.array(np.sort(rng.choice(table.num_rows, _RATINGS_OF_A_BATCH, replace=False))))
    return table
