"""Restore: what a source holds, and what only the live store knows on top, becomes the live history.

Invariant: nothing that was acknowledged is lost. The history that is live answers until the new one is
fitted, takes every rating meanwhile, as the new one does, and goes to the trash. Killed at any step, the
restore is run again: what was half written is given up, what was written whole is gone on with.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from factors import Int64s
from featurestore.access import KEYS_FOLLOWED_S, names_of, parse_texts
from featurestore.catalogue.dump import Dump
from featurestore.errors import EpochBusy, EpochGone, StoreError, StoreRefused
from featurestore.generations.manifest import Pointer
from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import ContextRefused, ContextSchema
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.adoption import adopt, must_adopt, was_put_back
from foldin.recovery.erased import Erased, are_newer, find_erased, read_ledgers, take_over
from foldin.recovery.events import RatingEvents, as_bytes, joined, read_histories, with_codes_of
from foldin.recovery.merging import differences, holding, merge
from foldin.recovery.reaching import reach
from foldin.recovery.retries import Progress, Say, has_leader, no_progress, retried
from foldin.recovery.sources import (
    Archived,
    Source,
    find_source,
    is_live_archive,
    read_source,
    require_scale,
)
from processes.errors import CannotStartError
from trainer.archive.erasures import Ledger
from trainer.archive.identity import read_identity
from trainer.archive.segments import Step, no_step
from trainer.erasure.older_copy import erase_attributes_again
from trainer.settings import TrainerSettings

# What `Pointer.pending_by` says: ratings are being written; all are, and the trainer was asked.
LOADING, LOADED = "restore", "restored"
# How often a restore says that it is alive, and after how long of silence it is not.
_HOLD_S, _SILENT_S = 2.0, 8.0
# As long as a trainer leaves a new history to a call that never asks for its fit.
_UNASKED_S = 60.0
# Ratings of one call: a few milliseconds of the store, in which others wait; calls side by side.
_AT_ONCE, _LANES = 5_000, 2
# A line of progress.
_TOLD_S = 5.0

Live = Literal["all", "timed", "none"]
"""Which live ratings lie on top: all that the source has not seen; only those with a time, which came in by
other ways than `POST /train`; none but those that come in during the restore."""


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore. `path`: an archive, a backup, an entry of the trash; `until_ms`: only what arrived by
    then, by the store's clock; `erasures`: a ledger, or a folder with ledgers, beside those of the source.
    """

    path: Path
    live: Live = "all"
    until_ms: int | None = None
    skip_damaged: bool = False
    dry_run: bool = False
    skip_damaged_ledger: bool = False
    erasures: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The new history: events in the order in which they are written, and items in that of their rows.

    `kept_out`: users who were forgotten, and their events in the source;
    `on_top`: live events that the source has not seen;
    `change`: how many pairs are new, gone, and have another rating, time or context than what holds now;
    `erased`: who was forgotten.
    """

    events: RatingEvents
    items: list[bytes]
    kept_out: tuple[int, int]
    on_top: int
    change: tuple[int, int, int]
    erased: Erased


class Restore:
    """One restore into an open store."""

    def __init__(
        self,
        store: Store,
        settings: TrainerSettings,
        request: RestoreRequest,
        say: Say,
        *,
        step: Step = no_step,
        progress: Progress = no_progress,
    ) -> None:
        self._store = store
        self._settings = settings
        self._request = request
        self._say = say
        self._step = step
        self._progress = progress

    async def run(self) -> int | None:
        """Restore; return the generation that is live then, None where nothing had to be done.

        Raises `CannotStartError` (nothing was changed), `StoppedError`.
        """
        pointer = await self._settled()
        if pointer.pending:
            self._say(
                f"Going on with a restore that was cut off: all its ratings are in epoch {pointer.pending}."
            )
            return await self._conclude(pointer.pending)
        # Only now: the archive that a restore was begun from may be in the trash when it is gone on with.
        live = self._store.identity, pointer.epoch
        source = find_source(
            self._request.path,
            live,
            self._settings.store.namespace,
            skip_damaged=self._request.skip_damaged,
        )
        if self._request.until_ms is not None and is_live_archive(
            source, live, self._settings.archive_folder
        ):
            # Nothing but the archive counts then: it must have what still waits in the streams.
            await reach(self._store, pointer.epoch, source.folder, self._say)
        archived = await asyncio.to_thread(self._read, source)
        # Another store than that of the source, which has not been filled yet: it takes its place.
        is_new = archived.identity != self._store.identity and pointer.epoch <= 1
        if archived.lacks and archived.identity != self._store.identity:
            self._say(f"  {archived.lacks}")
        await retried(require_scale, archived, source, self._store, decide=False)
        if not self._request.dry_run:
            # First of all: what comes back is answered to callers with a key alone.
            await self._put_keys_back(archived.catalogue, is_new=is_new)
            await retried(require_scale, archived, source, self._store, decide=True)
        archived = await self._recoded(archived)
        # Without a new history: what comes in meanwhile may be missing in what is told.
        if self._request.dry_run:
            self._tell(await self._plan(archived, pointer.epoch), would=True)
            return None
        try:
            epoch = await retried(self._store.epochs.begin, by=LOADING)
        except EpochBusy as exc:
            raise CannotStartError(f"{exc}: run this again in a minute") from exc
        self._step("begun")
        try:
            if not await self._prepare(epoch, archived, is_new=is_new):
                await retried(self._store.epochs.abandon, epoch)
                return None
            command = await retried(self._store.commands.ask, "epoch", epoch=epoch)
            self._step("asked")
            await retried(self._store.epochs.hold, epoch, LOADED)
        except EpochGone as exc:
            raise StoppedError(f"epoch {epoch} was given up meanwhile: run this again") from exc
        except BaseException:
            await self._give_up(epoch)
            raise
        self._step("marked")
        return await self._conclude(epoch, command)

    async def _prepare(self, epoch: int, archived: Archived, *, is_new: bool) -> bool:
        """Write the new history; return False where that would change nothing."""
        async with self._held(epoch):
            # Anew: which one is live cannot change from here on.
            live_epoch = (await retried(self._store.generations.live)).epoch
            plan = await self._plan(archived, live_epoch)
            self._tell(plan)
            await asyncio.to_thread(take_over, archived.ledgers, self._settings.archive_folder)
            # Of no epoch: unlike the ratings they would stay, and keep a backup's newer ones out.
            if await was_put_back(self._store, self._settings):
                await retried(erase_attributes_again, self._store, live_epoch, plan.erased.ledgers)
            await self._put_back(archived.catalogue, plan.erased, experiments=is_new)
            if not any(plan.change) and not await must_adopt(self._store, self._settings):
                return False
            self._step("planned")
            await self._load(epoch, plan)
            # After the ratings: those of a user who came back would be left out.
            await retried(self._store.ratings.stay_forgotten, epoch, live_epoch)
            self._step("loaded")
        return True

    async def _put_keys_back(self, dump: Dump | None, *, is_new: bool) -> None:
        """Let the keys of the source in again. A store that has been filled has its own: one that it lacks
        may have been removed there. `is_new`: it has not been.
        """
        access = self._store.access
        known = await retried(access.texts)
        lacking = {
            digest: text for digest, text in (dump.keys if dump else {}).items() if digest not in known
        }
        if not lacking:
            return
        names = ", ".join(names_of(parse_texts(lacking))) or "none that this version can read"
        if known and not is_new:
            self._say(
                f"  This store has keys of its own; those that the source has besides stay out: {names}"
            )
            return
        await retried(access.put_back, lacking)
        self._say(
            f"  Keys are asked for, and these are back: {names}. `foldin keys remove` takes one away, "
            "`foldin keys add` makes another"
        )
        if not known:
            # No worker answers with what comes back before it knows that keys are asked for.
            await asyncio.sleep(KEYS_FOLLOWED_S)

    async def _put_back(self, dump: Dump | None, erased: Erased, *, experiments: bool) -> None:
        """Put back what the store lacks besides ratings. It is of no epoch: it is there at once.
        `experiments`: these, too; in a store that was filled they may have ended since.
        """
        if dump is None:
            return
        at_ms = np.array([user.at_ms for user in dump.users], dtype=np.int64)
        stays = erased.since_erasure([user.user_id.encode() for user in dump.users], at_ms)
        users = [user for user, is_kept in zip(dump.users, stays.tolist(), strict=True) if is_kept]
        dump = msgspec.structs.replace(dump, users=users)
        try:
            found = await retried(self._store.kept.put_back, dump, experiments=experiments)
        except StoreRefused as exc:
            raise CannotStartError(f"{exc}: its events would mean something else") from exc
        if dump.items or dump.users or dump.scenarios or dump.experiments:
            self._say(
                f"  {found.items:,} items of the catalogue, attributes of {found.users:,} users, "
                f"{found.scenarios:,} scenarios and {found.experiments:,} experiments are back"
            )

    async def _recoded(self, archived: Archived) -> Archived:
        """Return what is archived with its contexts as this store has them, which gets the fields that it
        lacks; what it has deleted stays so. Raises `CannotStartError` where a field means something else
        there, or there is no room for all of them.
        """
        source = ContextSchema(tuple(archived.catalogue.contexts if archived.catalogue else ()))
        # Also fields that no rating has yet: they were told.
        if not source.fields:
            return archived
        contexts = self._store.contexts
        try:
            if self._request.dry_run:
                schema = (await retried(contexts.fresh)).merged(source, keep_deleted=True)
            else:
                # Of no epoch, and first: from here on each field has its place.
                schema = await retried(
                    contexts.change, lambda before: before.merged(source, keep_deleted=True)
                )
        except ContextRefused as exc:
            raise CannotStartError(
                f"the contexts of its ratings do not fit into this store: {exc}. Mend that and run this "
                "again, or restore into an empty namespace (FOLDIN_NAMESPACE)"
            ) from exc
        if archived.events.context is None:
            return archived
        context = schema.recoded(archived.events.context, source)
        return replace(archived, events=replace(archived.events, context=context))

    def _read(self, source: Source) -> Archived:
        """Read what is wanted of the source. Raises `CannotStartError`."""
        request = self._request
        self._say(f"Reading {source.folder}")
        archived = read_source(
            source, skip_damaged=request.skip_damaged, skip_damaged_ledger=request.skip_damaged_ledger
        )
        archived = self._with_erasures(archived, source)
        events = archived.events
        if request.until_ms is not None and len(events):
            # By arrival, not by the time of the rating, which a client gives.
            in_time = events.arrived_ms <= request.until_ms
            unknown = int((events.arrived_ms <= 0).sum())
            if unknown:
                self._say(
                    f"  {unknown:,} ratings do not say when they arrived (a rebuilt archive): they stay"
                )
            if not in_time.any():
                raise CannotStartError(
                    f"{source.folder} begins after that time: `foldin undo` lists what was live before"
                )
            events = events.take(in_time)
        if not len(events):
            raise CannotStartError(f"{source.folder} has no ratings")
        return replace(archived, events=events)

    def _with_erasures(self, archived: Archived, source: Source) -> Archived:
        """Add the ledgers that were asked for. Say where no ledger is newer than the source.

        Raises `CannotStartError`.
        """
        request, root = self._request, self._settings.archive_folder
        skip_damaged = request.skip_damaged or request.skip_damaged_ledger
        more: list[Ledger] = []
        if request.erasures is not None:
            more = read_ledgers(request.erasures, skip_damaged=skip_damaged)
            if not more:
                raise CannotStartError(
                    f"{request.erasures} has no ledger of erasures (a file erasures-*.log)"
                )
        keys = {ledger.key for ledger in archived.ledgers}
        here = [each for each in read_ledgers(root, skip_damaged=skip_damaged) if each.key in keys]
        # The archive that the source is of, or the source itself, knows all erasures.
        is_known = archived.identity is not None and read_identity(root) == archived.identity
        is_known = is_known and not are_newer(archived.ledgers, here)
        is_known = is_known or source.folder.resolve().is_relative_to(root.resolve())
        if not is_known and not are_newer([*more, *here], archived.ledgers):
            self._say(
                "  No ledger of erasures newer than this source is known: users who were forgotten after it "
                "was made come back. Give the ledger of their archive by --erasures, or forget them again"
            )
        return replace(archived, ledgers=(*archived.ledgers, *more))

    async def _plan(self, archived: Archived, live_epoch: int) -> Plan:
        """Decide what the new history has. Once each rating goes to it too, none is missed."""
        erased = await find_erased(
            self._store,
            live_epoch,
            self._settings.archive_folder,
            archived.ledgers,
            skip_damaged=self._request.skip_damaged or self._request.skip_damaged_ledger,
        )
        live = (await read_histories(self._store, live_epoch)).events
        if await was_put_back(self._store, self._settings):
            # The archive has what this copy has not, and says nothing of what has come since.
            live = await asyncio.to_thread(erased.of_older_copy, live)
        return await asyncio.to_thread(self._merged, archived, live, erased)

    def _merged(self, archived: Archived, live: RatingEvents, erased: Erased) -> Plan:
        stays = erased.stays(archived.events)
        source, left_out = archived.events.take(stays), archived.events.user[~stays]
        kept_out = len(np.unique(left_out)), len(left_out)
        live = with_codes_of(live, source)
        # What may lie on top; what changes is told by all that is live.
        offered = live
        if self._request.live != "all":
            timed = ~np.isnan(live.time) if self._request.live == "timed" else np.zeros(len(live), np.bool_)
            offered = live.take(timed)
        found = merge(source, offered)
        above = offered.take(found.live)
        events = joined(source.take(found.source), above)
        after, before = events.take(holding(events)), live.take(holding(live))
        items = as_bytes(archived.items)
        if self._request.live == "all":
            # Items without ratings, too; of another history only those that its ratings name.
            items += as_bytes(live.item_ids)
        items = [item_id for item_id in dict.fromkeys(items) if item_id]
        new, gone, other = differences(before, after)
        change = len(new), len(gone), len(other)
        return Plan(_in_order(events), items, kept_out, len(above), change, erased)

    def _tell(self, plan: Plan, *, would: bool = False) -> None:
        new, gone, other = plan.change
        ratings = int((~np.isnan(plan.events.rating)).sum())
        self._say(
            f"  {ratings:,} ratings, {len(plan.items):,} items; {plan.on_top:,} from the live store on top"
        )
        users, ratings = plan.kept_out
        if users:
            self._say(f"  {ratings:,} ratings of {users:,} users who were forgotten since stay away")
        if any(plan.change):
            verb = "would be" if would else "are"
            self._say(f"  {new:,} pairs {verb} rated again, {gone:,} no more, {other:,} otherwise")
        else:
            self._say("  the live history has all of it: nothing to do")

    async def _load(self, epoch: int, plan: Plan) -> None:
        """Write the new history. What came in meanwhile stays as it is."""
        registry = self._store.items(epoch)
        for start in range(0, len(plan.items), _AT_ONCE):
            await retried(registry.register, plan.items[start : start + _AT_ONCE])
        self._step("items")
        # Where no trainer takes them out of the streams, these are the only place that they are in.
        limit = None if await has_leader(self._store) else 2**53
        settings = (
            self._settings.store if limit is None else replace(self._settings.store, stream_limit=limit)
        )
        writer = await Store.open(settings, hot=False)
        try:
            await self._write(writer, epoch, plan.events)
        finally:
            await writer.close()

    async def _write(self, writer: Store, epoch: int, events: RatingEvents) -> None:
        users, items = as_bytes(events.user_ids), as_bytes(events.item_ids)
        # Shared by the lanes: each takes the next part when it is done with one.
        starts = iter(range(0, len(events), _AT_ONCE))
        written, told = 0, time.monotonic()

        async def lane() -> None:
            nonlocal written, told
            for start in starts:
                rows = slice(start, start + _AT_ONCE)
                columns = Columns(
                    [users[code] for code in events.user[rows].tolist()],
                    [items[code] for code in events.item[rows].tolist()],
                    events.rating[rows],
                    events.time[rows],
                    events.type_code[rows] if events.type_code[rows].any() else None,
                    context=None if events.context is None else events.context[rows],
                )
                await retried(writer.ratings.append_columns, columns, epoch=epoch)
                written += len(columns)
                self._progress(written, len(events))
                self._step("written")
                if time.monotonic() - told > _TOLD_S:
                    told = time.monotonic()
                    self._say(f"  {written:,} of {len(events):,} written")

        # All have ended before an error is told: nothing is written after that.
        for result in await asyncio.gather(*[lane() for _ in range(_LANES)], return_exceptions=True):
            if result is not None:
                raise result

    async def _conclude(self, epoch: int, command: str | None = None) -> int:
        """See that a trainer fits the new history, which then goes live."""
        if command is None:
            command = await retried(self._store.commands.ask, "epoch", epoch=epoch)
        self._say(f"All ratings are in. A trainer fits epoch {epoch}; the history before answers until then.")
        told, wait_s, led_at = False, 0.0, time.monotonic()
        while True:
            outcome = await retried(self._store.commands.wait, command, wait_s)
            wait_s = _TOLD_S
            if outcome is not None and outcome.state == "failed":
                await self._give_up(epoch)
                why = outcome.detail or outcome.code
                raise StoppedError(f"the trainer refused it ({why}): the history before is live")
            if outcome is not None and outcome.state == "done":
                self._say(f"Generation {outcome.generation} is live. `foldin undo last` goes back.")
                return int(outcome.generation or 0)
            # Each time: a trainer that starts leads until it has looked at the archive.
            if await must_adopt(self._store, self._settings):
                await adopt(self._store, self._settings, self._say)
            self._step("adopted")
            if await has_leader(self._store):
                led_at = time.monotonic()
            elif not told and time.monotonic() - led_at > _SILENT_S:
                told = True
                self._say(
                    "No trainer leads: start one (`foldin up`: stop it, and start it again). This waits, and "
                    "need not: the trainer goes on without it."
                )

    async def _settled(self) -> Pointer:
        """Return the pointer once nothing is being prepared, or a restore that was written whole."""
        waiting_since = time.monotonic()
        while True:
            pointer = await retried(self._store.generations.live)
            if not pointer.pending or (pointer.pending_by == LOADED and pointer.pending != pointer.epoch):
                return pointer
            silent_s = await retried(self._store.time) - pointer.pending_since
            if pointer.pending_by == LOADING and silent_s > _SILENT_S:
                self._say(f"Giving up epoch {pointer.pending}, of a restore that was cut off")
                await retried(self._store.epochs.abandon, pointer.pending)
            elif not pointer.pending_by and silent_s > _UNASKED_S and not await self._is_expected(pointer):
                await retried(self._store.epochs.abandon, pointer.pending)
            if time.monotonic() - waiting_since > 2 * _SILENT_S:
                raise CannotStartError(
                    f"epoch {pointer.pending} is being prepared (by a restore, or POST /train): run this "
                    "again when that has ended"
                )
            await asyncio.sleep(0.5)

    async def _is_expected(self, pointer: Pointer) -> bool:
        """Say whether the new history of a call may go live, or be given up by a trainer."""
        if pointer.pending == pointer.epoch or await has_leader(self._store):
            return True
        commands = await retried(self._store.commands.take, "0", 0)
        return any(command.kind == "epoch" and command.epoch == pointer.pending for command in commands)

    async def _give_up(self, epoch: int) -> None:
        # Where the store cannot be reached the next restore, or the trainer, gives it up.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_SILENT_S):
                await self._store.epochs.abandon(epoch)

    @contextlib.asynccontextmanager
    async def _held(self, epoch: int) -> AsyncIterator[None]:
        """Keep the trainer from giving the epoch up, which it does with one that no command asks for."""

        async def hold() -> None:
            while True:
                await asyncio.sleep(_HOLD_S)
                # Where it is gone the next write says so.
                with contextlib.suppress(StoreError):
                    await self._store.epochs.hold(epoch, LOADING)

        holding_on = asyncio.create_task(hold(), name="hold")
        try:
            yield
        finally:
            holding_on.cancel()
            await asyncio.wait([holding_on])


def _in_order(events: RatingEvents) -> RatingEvents:
    """Each user's events together, in the order in which they were made."""
    # Together, so that a call has few users: the store takes ten times as many ratings of one in a step.
    order: Int64s = np.lexsort((events.n, events.user))
    return events.take(order)
