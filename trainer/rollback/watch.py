"""Watch what the ratings that arrive say of the live generation and of the one before it, and go back where
they condemn it. Invariant: both predict a rating that counts from the same history, and neither learned it.

Only a flip forward is judged: what a person holds, or has made live again after it was rolled back, stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Float32s, Float64s, Histories, PosteriorModel, Scorer, posterior_of
from featurestore.catalogue.columns import columns_of_users
from featurestore.codecs import ENTRY_DTYPE, MAX_ITEM_ROW
from featurestore.contexts import codec as contexts
from featurestore.errors import EpochGone, GenerationUnknown, StoreUnavailable
from featurestore.generations.manifest import RolledBack
from featurestore.leases import Lease
from featurestore.store import Store
from trainer import log
from trainer.archive.events import contexts_of, ratings_of
from trainer.consume.open_epochs import OpenEpochs
from trainer.fit_job.results import FitResult
from trainer.item_updates.messages import ArchivedBatch, Arrivals, LiveFit
from trainer.publication.switch import Switch
from trainer.rollback.betting import Bet, liars_among
from trainer.threads import Threads

# Of a batch, which comes twice a second at most: 20 ms of a thread, and a reply of the store of 1 MB at most.
_RATINGS_OF_A_BATCH = 64
# Users with more ratings are left out, so that what is read of the store is bounded.
_LONGEST_HISTORY = 1_000


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Ratings of a batch that are judged, each of another user or item: arrays (m,). `context` (m, k): None
    where none was given.
    """

    users: list[bytes]
    n: npt.NDArray[np.int64]
    item_row: npt.NDArray[np.int64]
    rating: Float64s
    time: Float64s
    context: Float32s | None = None


@dataclass(frozen=True, slots=True)
class _Contender:
    """A generation as it was fitted."""

    fit: FitResult
    posterior: PosteriorModel

    def predict(
        self, arrived: _Arrived, histories: Histories, stored: Sequence[bytes]
    ) -> tuple[Float64s, npt.NDArray[np.bool_]]:
        """Return the predicted ratings (m,), and which ratings (m,) the fit has not learned, of users whom it
        knows: accounts cost an attacker nothing. `stored`: their attributes, as they are stored.
        """
        rows = self.fit.rows_of(arrived.users)
        known = rows >= 0
        users = np.repeat(self.posterior.prior_user[None], len(rows), axis=0)
        users[known] = self.fit.users[rows[known]]
        fresh = known.copy()
        fresh[known] = arrived.n[known] > self.fit.user_n[rows[known]]
        known_by = self.fit.attributes_of_users()
        columns = None if known_by is None else columns_of_users(known_by.encoding, stored)
        users = self.posterior.fold_in_users(self.fit.items, histories, current=users, attributes=columns)
        scorer = Scorer(self.posterior, self.fit.items)
        asked = arrived.item_row, arrived.time, arrived.context
        return scorer.score(users, None, *asked).rating, fresh


@dataclass(frozen=True, slots=True)
class _Match:
    """The live generation against the one before it."""

    live: LiveFit
    before: int
    contenders: tuple[_Contender, _Contender]
    bet: Bet

    @property
    def reads_attributes(self) -> bool:
        """Whether attributes of users play a part in either."""
        return any(each.fit.user_attributes is not None for each in self.contenders)

    def judge(self, arrived: _Arrived, histories: Histories, stored: Sequence[bytes]) -> bool:
        """Say whether the live one is condemned by now."""
        predicted = (each.predict(arrived, histories, stored) for each in self.contenders)
        (live, fresh), (before, also_fresh) = predicted
        for k in np.flatnonzero(fresh & also_fresh).tolist():
            self.bet.add(arrived.users[k], float(live[k]), float(before[k]), float(arrived.rating[k]))
        return self.bet.first_is_worse


@dataclass
class RollbackWatch:
    """Judges the live generation for one term, by what comes in `arrivals`."""

    store: Store
    lease: Lease
    epochs: OpenEpochs
    switch: Switch
    arrivals: Arrivals
    threads: Threads
    _match: _Match | None = None

    async def run(self) -> None:
        """Judge until cancelled. Raises `LeaseLost`."""
        while True:
            batch = await self.arrivals.get()
            try:
                await self._take(batch)
            except (StoreUnavailable, GenerationUnknown, EpochGone) as exc:
                # Other ratings will come; what is unknown was replaced meanwhile.
                log.warning("arrivals_not_judged", error=str(exc))

    async def _take(self, batch: ArchivedBatch) -> None:
        live = self.switch.live
        if live is None or live.epoch != batch.epoch:
            return
        if self._match is None or self._match.live.generation != live.generation:
            self._match = await self._begin(live)
        match = self._match
        # The pointer may have moved, or be held since.
        if match is None or await self._opponent(live) != match.before:
            return
        arrived = await self.threads.run(_chosen, batch.table)
        arrived, histories = await self._histories(batch.epoch, arrived)
        stored = await self.store.attributes.stored(arrived.users) if match.reads_attributes else []
        if await self.threads.run(match.judge, arrived, histories, stored):
            await self._go_back(match)

    async def _begin(self, live: LiveFit) -> _Match | None:
        """Return the match of the live generation, if there is one to go back to."""
        before = await self._opponent(live)
        if live.result is None or not before:
            return None
        epoch = await self.epochs.open(live.epoch)
        fits = live.result, await self.threads.run(epoch.fits.read, before)
        models = [fit.model for fit in fits if fit is not None]
        # Scores of implicit feedback are no ratings.
        if len(models) < 2 or any(model.feedback == "implicit" for model in models):
            return None
        first, second = (_Contender(fit, posterior_of(fit.model)) for fit in fits if fit is not None)
        scale, liars = first.fit.model.scale, liars_among(second.fit.n_users)
        return _Match(live, before, (first, second), Bet(scale.low, scale.high, liars))

    async def _opponent(self, live: LiveFit) -> int:
        """Return the generation before, 0 where the live one is not to be judged."""
        pointer = await self.store.generations.live()
        back = pointer.rolled_back
        forward = 0 < pointer.previous < pointer.generation == live.generation
        insisted = back is not None and back.generation == live.generation
        return pointer.previous if forward and not (pointer.held or insisted) else 0

    async def _histories(self, epoch: int, arrived: _Arrived) -> tuple[_Arrived, Histories]:
        """Return those of the ratings whose users are still there, with the histories before them."""
        stored = await self.store.users.stored(epoch, arrived.users)
        keep, parts = [], []
        for k, user in enumerate(stored):
            count = len(user.history) // ENTRY_DTYPE.itemsize
            entries = np.frombuffer(user.history, dtype=ENTRY_DTYPE, count=count)
            since = user.n - int(arrived.n[k]) + 1
            if since > 0:
                # Each event has added one entry. An earlier rating of the same item would tell.
                entries = entries[: max(0, len(entries) - since)]
                entries = entries[entries["item_row"] <= MAX_ITEM_ROW]
                parts.append(entries[entries["item_row"] != arrived.item_row[k]])
                keep.append(k)
        entries, counts = np.concatenate([np.zeros(0, ENTRY_DTYPE), *parts]), list(map(len, parts))
        item_row, time = entries["item_row"].astype(np.int32), entries["time"].astype(np.float64)
        told, of_entries = contexts.of_users([stored[k].contexts for k in keep], range(len(keep)))
        owners = np.repeat(np.arange(len(keep)), counts), of_entries
        histories = Histories(
            np.cumsum([0, *counts]),
            item_row,
            entries["rating"].astype(np.float64),
            time,
            context=contexts.match(item_row, time, told, owners),
        )
        return _taken(arrived, keep), histories

    async def _go_back(self, match: _Match) -> None:
        bet, summary = match.bet, match.live.meta.summary
        loss, loss_before = ((each / bet.ratings) ** 0.5 for each in bet.errors)
        now = await self.store.time()
        why = RolledBack(summary.generation, match.before, bet.ratings, loss, loss_before, now)
        gone = await self.store.generations.roll_back(self.lease, why)
        self._match = None
        if gone:
            log.warning("generation_rolled_back", epoch=summary.epoch, **msgspec.structs.asdict(why))
            await self.switch.follow(await self.store.generations.live())


def _taken(arrived: _Arrived, rows: Sequence[int]) -> _Arrived:
    index = np.array(rows, dtype=np.int64)
    return _Arrived(
        [arrived.users[row] for row in rows],
        arrived.n[index],
        arrived.item_row[index],
        arrived.rating[index],
        arrived.time[index],
        None if arrived.context is None else arrived.context[index],
    )


def _chosen(table: pa.Table) -> _Arrived:
    """Return some of the ratings of a batch, evenly."""
    rated = pc.and_(pc.invert(pc.is_nan(table["rating"])), pc.less_equal(table["n"], _LONGEST_HISTORY))
    table = ratings_of(table.filter(rated))
    step = max(1, -(-table.num_rows // _RATINGS_OF_A_BATCH))
    table = table.take(pa.array(np.arange(0, table.num_rows, step)))
    return _Arrived(
        table["user_id"].cast(pa.binary()).to_pylist(),
        table["n"].to_numpy().astype(np.int64),
        table["item_row"].to_numpy().astype(np.int64),
        table["rating"].to_numpy(),
        table["time"].to_numpy(),
        contexts_of(table),
    )
