"""Keep the items of the live generation up to date between fits: fold in what is new or changed, push the
rows.

Invariant: rows are pushed to the generation that they were folded in for, and to no other. The vector of an
item is the half-step over all of its ratings, as the fit's would be, with its raters as they are now.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Ranker, RankingHead, Scorer, SideAttributes
from featurestore.codecs import pack_feedback
from featurestore.errors import GenerationUnknown, StoreDamaged, StoreError, StoreUnavailable
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import RANKING, GenerationMeta
from processes.backoff import Backoff
from trainer import log
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.events import START, Position, after, in_registry, parse_position, string_array
from trainer.archive.segments import open_rows, read_spans
from trainer.catalogue.described import DescribedItems
from trainer.catalogue.reading import read_all, read_changes
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentGoneError
from trainer.item_updates.messages import (
    ArchivedBatch,
    Arrivals,
    ErasedUser,
    ItemUpdate,
    ItemUpdates,
    LiveFit,
)
from trainer.item_updates.since_fit import SPARE_ROWS, RatingsSinceFit, Round
from trainer.retry import with_retries
from trainer.stage import Stage, Tools

# How often the version of the catalogue is asked for: a new item is served within a second.
LOOK_S = 0.25
# When the store did not answer, or said what cannot be read: not a line of the log four times a second.
LOOK_AGAIN_S = 5.0
# Histories that are read at once for the ranking head: 25 MB of the longest.
HISTORIES_AT_ONCE = 256


@dataclass(slots=True)
class _Target:
    """The generation that rows are folded in for. `positions`: up to where `ratings` has been read from
    the archive. `catalogue`: the version of it that `ratings` has the attributes of. `user_attributes`: how
    those of users are encoded.
    """

    meta: GenerationMeta
    ratings: RatingsSinceFit
    items: npt.NDArray[np.float32]
    positions: dict[int, Position]
    catalogue: bytes
    user_attributes: SideAttributes | None

    @property
    def generation(self) -> int:
        """The number of the generation."""
        return self.meta.summary.generation


class ItemUpdater(Stage):
    """Folds items in for one term, as told by `updates`. What arrives for the live generation is offered to
    `arrivals`, too.
    """

    def __init__(self, tools: Tools, updates: ItemUpdates, arrivals: Arrivals) -> None:
        super().__init__(tools)
        self._updates = updates
        self._arrivals = arrivals
        # The live generation, where its items can be folded in.
        self._target: _Target | None = None

    async def run(self) -> None:
        """Fold in until cancelled."""
        backoff = Backoff(0.1, 5.0)
        next_round_at = next_look_at = 0.0
        while True:
            target = self._target
            described = target if target is not None and target.ratings.described is not None else None
            if described is not None and time.monotonic() >= next_look_at:
                followed = await self._follow_catalogue(described)
                next_look_at = time.monotonic() + (LOOK_S if followed else LOOK_AGAIN_S)
            now = time.monotonic()
            waits = target is not None and target.ratings.waiting_items > 0
            if target is None or not waits or now < next_round_at:
                # Updates are taken over during a pause, too: the consumer would wait when the queue is full.
                ends = [next_round_at] * waits + [next_look_at] * (described is not None)
                try:
                    async with asyncio.timeout(max(0.0, min(ends) - now) if ends else None):
                        update = await self._updates.get()
                except TimeoutError:
                    continue
                # Outside of the timeout, which would leave a thread behind that still adds.
                await self._take(update)
                continue
            try:
                await self._push_round(target)
                backoff.reset()
                # A flood: four fifths of the time for those who bring it and for lookups.
                next_round_at = time.monotonic() + 4.0 * (time.monotonic() - now)
            except GenerationUnknown:
                # Removed since: the switch to the generation after it is on its way.
                self._target = None
            except StoreUnavailable as exc:
                log.warning("items_wait", failures=backoff.failures + 1, error=str(exc))
                next_round_at = time.monotonic() + backoff.next_s()
            except StoreDamaged as exc:
                # The items of this round stay as they are until the next fit, which reads the archive.
                log.warning("items_left_out", error=str(exc))
                next_round_at = time.monotonic() + backoff.next_s()

    async def _take(self, update: ItemUpdate) -> None:
        if isinstance(update, LiveFit):
            self._target = None
            if not update.files_missing:
                self._target = await self._open(update)
            return
        target = self._target
        if target is None or update.epoch != target.meta.summary.epoch:
            return
        if isinstance(update, ErasedUser):
            if not update.has_returned:
                await self._threads.run(target.ratings.forget, update.user_id)
            await self._threads.run(target.ratings.fold_in_again, update.items)
            return
        newer = after(update.table, target.positions)
        with contextlib.suppress(asyncio.QueueFull):
            self._arrivals.put_nowait(ArchivedBatch(update.epoch, newer))
        await self._threads.run(target.ratings.add, newer)

    async def _follow_catalogue(self, target: _Target) -> bool:
        """Take in what the catalogue says of items since `target` was told last; whether that was read."""
        catalogue, registry = self._store.catalogue, self._store.items(target.meta.summary.epoch)
        try:
            version = await catalogue.version()
            while target.catalogue != version:
                changed = await read_changes(catalogue, registry, target.catalogue)
                if changed is None:
                    async for items in read_all(catalogue, registry):
                        await self._threads.run(target.ratings.describe, items)
                    target.catalogue = version
                    break
                await self._threads.run(target.ratings.describe, changed.items)
                target.catalogue = changed.version
                if not changed.more:
                    break
        except StoreError as exc:
            # The next look goes on from there.
            log.warning("catalogue_not_followed", error=str(exc))
            return False
        return True

    async def _open(self, live: LiveFit) -> _Target | None:
        # Before anything is read: what the leader before pushes from now on is refused.
        claim = self._store.generations.claim_deltas
        try:
            await with_retries(claim, self._lease, live.epoch, live.generation)
        except GenerationUnknown:
            return None
        registry = self._store.items(live.epoch)
        try:
            while True:
                # Taken here, after the updates before the switch: a batch that is archived later comes as an
                # update, and one that lies behind the switch in the queue and is in the snapshot already is
                # known by its position.
                snapshot, files = await with_retries(self._threads.run, live.archive.open_snapshot)
                await with_retries(registry.refresh)
                try:
                    return await self._threads.run(_open_target, live, snapshot, files, registry.ids[:])
                except SegmentGoneError as exc:
                    # Rewritten by an erasure since, else it is damage.
                    live.archive.require_replaced(str(exc))
        except SegmentDamagedError as exc:
            # The next fit repairs the archive; until then items stay as the fit before left them.
            log.warning("items_incomplete", segment=exc.path.name, error=str(exc))
        except OSError as exc:
            # An erasure has removed the files of a fit that it could not search.
            log.warning("items_incomplete", generation=live.generation, error=str(exc))
        return None

    async def _push_round(self, target: _Target) -> None:
        ratings, summary = target.ratings, target.meta.summary
        chosen = await self._threads.run(ratings.next_round)
        if not chosen.items:
            return
        if chosen.users:
            live = LiveGeneration(
                epoch=summary.epoch,
                generation=summary.generation,
                posterior=ratings.posterior,
                items=target.items,
                n_items=len(target.items),
                scorer=Scorer(ratings.posterior, target.items),
                # Nothing is ranked here: of no items it costs nothing.
                ranker=Ranker(ratings.posterior, target.items[:0]),
                meta=target.meta,
                user_attributes=target.user_attributes,
            )
            current = await self._store.users.current(live, chosen.users)
            if ratings.head is not None:
                await self._read_histories(target, chosen)
            # Last: of a round that the store cuts off before, all users are read again.
            ratings.set_users(chosen.slots, current.n, current.vectors)
        folded = await self._threads.run(ratings.fold, chosen)
        rows = np.array(chosen.items, dtype=np.int32)
        self._step("items:push")
        try:
            since = self._store.confirmation.begin()
            await self._store.generations.push_delta(
                *(self._lease, summary.epoch, summary.generation, rows, folded.vectors),
                levels=folded.levels,
                factors=folded.factors,
                positives=folded.positives,
            )
            # A replica that is promoted without them would leave these items as they were before.
            await self._store.confirmation.wait(since)
        except StoreError:
            ratings.put_back(chosen)
            raise
        missing = int(rows.max()) + 1 - len(target.items)
        if missing > 0:
            later = np.tile(ratings.posterior.prior_item, (missing + SPARE_ROWS, 1))
            target.items = np.concatenate([target.items, later])
        target.items[rows] = folded.vectors
        if folded.factors is not None:
            await self._threads.run(ratings.took, rows, folded.factors)

    async def _read_histories(self, target: _Target, chosen: Round) -> None:
        """Fold the users of a round into the ranking head, some at a time: histories may be long."""
        for start in range(0, len(chosen.users), HISTORIES_AT_ONCE):
            some = slice(start, start + HISTORIES_AT_ONCE)
            parts = await self._store.users.parts(target.meta.summary.epoch, chosen.users[some])
            await self._threads.run(target.ratings.set_histories, chosen.slots[some], pack_feedback(parts))


def _open_target(
    live: LiveFit, snapshot: Snapshot, files: Sequence[pa.NativeFile], ids: Sequence[bytes]
) -> _Target:
    """Add up what was archived since the fit of a generation. `files`: of the snapshot, open; each is
    closed. `ids`: of the items, by row.
    """
    item_ids, fit, model = string_array(ids), live.result, live.meta.model
    head: RankingHead | None = None
    described: DescribedItems | None = None
    of_users: SideAttributes | None = None
    items, version = np.zeros((0, model.item_width), dtype=np.float32), b""
    if fit is not None:
        # What has no head that is served needs none kept up to date.
        head = fit.head() if RANKING in live.meta.blobs else None
        attributes, of_users = fit.side_attributes("item"), fit.side_attributes("user")
        if fit.columns is not None and attributes is not None:
            described = DescribedItems(attributes, fit.columns)
        items = np.load(fit.path / "items.npy", mmap_mode="c", allow_pickle=False)
        version = (fit.catalogue or "").encode()
    ratings = RatingsSinceFit(model, fit, head, described)
    fitted = {partition: parse_position(text) for partition, text in live.meta.positions.items()}
    for table in events_since(snapshot, files, fitted):
        ratings.add(in_registry(table, item_ids))
    return _Target(live.meta, ratings, items, snapshot.positions, version, of_users)


def events_since(
    snapshot: Snapshot, files: Sequence[pa.NativeFile], positions: Mapping[int, Position]
) -> Iterator[pa.Table]:
    """Yield what a snapshot has after the positions of the partitions, a row group at a time. `files`: its
    own, open; each is closed. Segments of which nothing is wanted are not read. Raises `SegmentGoneError`.
    """
    for path, file in zip(snapshot.paths, files, strict=True):
        try:
            with file:
                spans = read_spans(path, file)
                if spans and all(span.last <= positions.get(p, START) for p, span in spans.items()):
                    # After a flip nearly all are of this kind.
                    continue
                rows = open_rows(path, file)
                for part in rows.read(rows.schema.names):
                    if (newer := after(part, positions)).num_rows:
                        yield newer
        except (SegmentDamagedError, ArchiveFailedError) as exc:
            # The next fit repairs the archive, or waits for it; until then these items stay as the fit before
            # left them.
            log.warning("items_incomplete", segment=path.name, error=str(exc))
