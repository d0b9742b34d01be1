"""What services ask for: refit, new epoch, erasure. Invariant: a command leaves the stream only when its
outcome is stored.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

from featurestore.client import POOL_SOCKETS
from featurestore.commands import GONE, OUTCOME_S, Command, Outcome
from featurestore.errors import (
    EpochGone,
    LeaseLost,
    StoreChanged,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
)
from trainer import log
from trainer.consume.open_epochs import OpenEpoch, OpenEpochs
from trainer.erasure import waiting
from trainer.erasure.file_rewrites import FileRewrites
from trainer.errors import ArchiveFailedError
from trainer.item_ratings import ItemRatings
from trainer.refit import Ending, Failure, RefitRequests
from trainer.retry import with_retries
from trainer.stage import Stage, Tools

# How long the store holds a blocking read: a stop waits for it at most so long.
_BLOCK_MS = 250
# Upkeep moves an epoch within a second or two.
_LOOK_S = 0.25
# What is damaged in the store, or refused by it, stays so for minutes.
_MENDED_S = 5.0
# Someone who waits for a fit of minutes looks every second or two.
_TELL_S, _LONGEST_TELL_S = 1.0, 30.0
# More commands than services have open; those beyond wait in the stream, erasures as tasks of 2 KB.
_AT_ONCE = 1_000
# Of these so many ask the store at a time, and two look which epochs are stored: some sockets are left.
_CALLS_AT_ONCE, _LOOKS_AT_ONCE = POOL_SOCKETS // 2, 2

P = ParamSpec("P")
T = TypeVar("T")


class CommandHandler(Stage):
    """Takes commands and sees them through, several at a time; fits are `requests` to the refitter."""

    def __init__(
        self,
        tools: Tools,
        epochs: OpenEpochs,
        requests: RefitRequests,
        rewrites: FileRewrites,
        item_ratings: ItemRatings,
    ) -> None:
        super().__init__(tools)
        self._epochs = epochs
        self._requests = requests
        self._rewrites = rewrites
        self._item_ratings = item_ratings
        # When those were asked for that are taken and have no outcome yet, in milliseconds by the store's
        # clock, by their ids.
        self._open: dict[str, int] = {}
        self._erasing = asyncio.Semaphore(_AT_ONCE)
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._looks = asyncio.Semaphore(_LOOKS_AT_ONCE)
        # What erasures wait for, by command. Those without an entry wait for the archive.
        self._waits: dict[str, str] = {}

    @property
    def oldest_open_ms(self) -> int | None:
        """When the oldest command was asked for that is taken and not settled, by the store's clock; since
        this term of an erasure of an earlier leader for which only the store's files are left to be written.
        """
        return min(self._open.values(), default=None)

    async def run(self) -> None:
        """Take commands until cancelled."""
        after, slots, sockets = "0", asyncio.Semaphore(_AT_ONCE), -1
        async with asyncio.TaskGroup() as group:
            while True:
                if sockets != self._store.bulk.reconnects_total:
                    # What was reported of a command may have gone with a primary: it is done once more.
                    sockets, after = self._store.bulk.reconnects_total, "0"
                    await self._take_left(group)
                taken = await with_retries(self._store.commands.take, after, _BLOCK_MS)
                after = taken[-1].stream_id if taken else after
                commands = [
                    command for command in taken if not _is_damaged(command) and command.id not in self._open
                ]
                # Before the first of them is carried out, which may take long: the others are open, too.
                for command in commands:
                    self._open[command.id] = int(command.stream_id.partition("-")[0])
                    if command.kind == "epoch":
                        self._epochs.claim(command.epoch)
                for command in commands:
                    slot = ExitStack()
                    # Erasures have slots of their own: they may wait for a new history, whose command comes
                    # behind them.
                    if command.kind != "erase":
                        await slots.acquire()
                        slot.callback(slots.release)
                    group.create_task(self._handle(command, slot), name=f"command {command.kind}")

    async def _take_left(self, group: asyncio.TaskGroup) -> None:
        """Take the erasures whose commands are gone: those of an earlier leader."""
        began_ms = await with_retries(self._store.time_ms)
        for erasure in await with_retries(self._store.commands.erasing):
            if erasure.id in self._open or _is_damaged(erasure):
                continue
            self._open[erasure.id] = erasure.at_ms or began_ms
            group.create_task(self._finish_erasure(erasure), name="finish an erasure")

    async def _ask(self, call: Callable[P, Awaitable[T]], *args: P.args, **how: P.kwargs) -> T:
        """Ask the store, as one of few: sockets are few, and others need them, the lease first of all."""

        @wraps(call)
        async def once() -> T:
            # A pause before the next try takes no place.
            async with self._calls:
                return await call(*args, **how)

        return await with_retries(once)

    async def _handle(self, command: Command, slot: ExitStack) -> None:
        try:
            outcome = await self._ask(self._store.commands.outcome, command.id)
        except StoreDamaged as exc:
            # It is written anew when the command has been carried out once more, which is harmless.
            log.warning("command_damaged", error=str(exc))
            outcome = None
        if outcome is None or outcome.state == "running":
            await self._ask(self._store.commands.report, self._lease, command.id, Outcome("running"))
            self._step("command:running")
            if command.kind == "take_back":
                # It waits for a new history, whose own command needs a slot; and takes a few KB meanwhile.
                slot.close()
            outcome = await self._outcome(command)
            log.event(
                "command", kind=command.kind, epoch=command.epoch, state=outcome.state, code=outcome.code
            )
            self._step("command:done")
            await self._ask(self._store.commands.report, self._lease, command.id, outcome)
            self._step("command:reported")
        if command.kind == "epoch":
            self._epochs.release(command.epoch)
        # At once: behind one that waits for days others would stay, and be done again by the next leader when
        # their outcomes have expired.
        await self._ask(self._store.commands.drop, command.stream_id)
        self._open.pop(command.id, None)
        slot.close()

    async def _outcome(self, command: Command) -> Outcome:
        # A service of a newer version may know more kinds.
        kind: str = command.kind
        ending: Ending | None = None
        try:
            if kind == "refit":
                ending = await self._telling(command, self._refit(command.epoch), self._fitting)
            elif kind == "epoch":
                ending = await self._telling(command, self._begin_epoch(command.epoch), self._fitting)
            elif kind == "erase":
                await self._erase_and_tell(command)
            elif kind == "take_back":
                if not await self._item_ratings.taken_back(command):
                    why = "its ratings are gone, or were restored"
                    ending = Failure("epoch_gone", f"epoch {command.epoch} was replaced: {why}")
            else:
                return Outcome("failed", code="unknown_command", detail=f"this trainer cannot {kind!r}")
        except (StoreUnavailable, LeaseLost):
            # The next term carries the command out again.
            raise
        except StoreError as exc:
            return Outcome("failed", code="store", detail=str(exc))
        if isinstance(ending, Failure):
            return Outcome("failed", code=ending.code, detail=ending.detail)
        return Outcome("done", generation=ending)

    async def _telling(
        self,
        command: Command,
        work: Coroutine[None, None, T],
        outcome: Callable[[], Outcome | None],
        *,
        longest_s: float = _TELL_S,
    ) -> T:
        """Return what came of `work`; while it goes on, tell how far it has come, ever more seldom up to each
        `longest_s`.
        """
        running = asyncio.create_task(work, name=f"work of command {command.kind}")
        told, told_at, tell_s = None, 0.0, _TELL_S
        try:
            while not (await asyncio.wait({running}, timeout=tell_s))[0]:
                tell_s = min(1.5 * tell_s, longest_s)
                now, said = time.monotonic(), outcome()
                if said is not None and (said != told or now - told_at > OUTCOME_S / 2):
                    told, told_at = said, now
                    try:
                        await self._ask(self._store.commands.report, self._lease, command.id, said)
                    except (StoreUnavailable, LeaseLost, StoreChanged):
                        raise
                    except StoreError as exc:
                        if command.kind != "erase":
                            raise
                        # What a receipt says of it must not keep a user from being erased.
                        log.warning("erasure_not_told", why=str(exc))
            return running.result()
        finally:
            running.cancel()
            await asyncio.wait({running})

    def _fitting(self) -> Outcome | None:
        progress = self._requests.progress
        return None if progress is None else Outcome("running", phase=progress.phase, sweep=progress.sweep)

    async def _refit(self, epoch: int) -> Ending:
        """Fit all that is known, and publish it. An epoch that was replaced meanwhile stands for the live
        one.
        """
        pointer = await self._ask(self._store.generations.live)
        return await self._requests.ask(epoch if epoch == pointer.pending else pointer.epoch)

    async def _begin_epoch(self, epoch: int) -> Ending:
        """Fit a new epoch and let it take the place of the live one."""
        pointer = await self._ask(self._store.generations.live)
        if pointer.epoch == epoch:
            # A leader before this one came so far and could not report it.
            await self._finish_epoch(epoch)
            return pointer.generation
        if pointer.pending != epoch:
            return Failure("epoch_gone", f"epoch {epoch} is not being prepared any more")
        ending = await self._requests.ask(epoch)
        if not isinstance(ending, Failure):
            await self._finish_epoch(epoch)
        return ending

    async def _erase_and_tell(self, command: Command) -> None:
        """Erase to the end; tell what that waits for, once it has waited for a second."""

        def waits() -> Outcome:
            return Outcome("running", detail=self._waits.get(command.id, waiting.ARCHIVED))

        # Those that wait for the store's files make room for others: files are written anew only once few
        # commands are left.
        async with self._erasing:
            try:
                await self._telling(command, self._erase_but_in_files(command), waits)
            finally:
                self._waits.pop(command.id, None)
        # Tens of thousands may wait for that at a time.
        rewritten = self._rewrites.rewritten()
        await self._telling(command, rewritten, self._rewriting, longest_s=_LONGEST_TELL_S)
        self._step("erase:rewritten")

    async def _erase(self, command: Command) -> None:
        """Return when no archive, no fit and no key of the store has anything of a user who was forgotten at
        this time of the store.
        """
        while True:
            pointer = await self._ask(self._store.generations.live)
            needed = {pointer.epoch, pointer.pending} - {0}
            try:
                # What was replaced is archived to its end on its way to the trash, and searched there: a user
                # whom the live epoch never knew has left no mark by which to find those ratings later.
                async with self._looks:
                    leaving = await self._epochs.leaving(needed)
                if not leaving:
                    for number in needed:
                        self._waits[command.id] = waiting.ARCHIVED
                        await self._erase_from(await self._epochs.open(number), command)
                    return
                pause_s, self._waits[command.id] = _LOOK_S, waiting.REPLACED
            except EpochGone:
                # Replaced or given up meanwhile: it leaves.
                pause_s = _LOOK_S
            except (StoreUnavailable, StoreChanged, LeaseLost):
                raise
            except (StoreError, ArchiveFailedError) as exc:
                # Its receipt does not end before the user is gone, whatever a person must mend first.
                log.warning("erasure_waits", why=str(exc))
                pause_s, self._waits[command.id] = _MENDED_S, waiting.words_of(exc)
            await asyncio.sleep(pause_s)

    async def _erase_from(self, epoch: OpenEpoch, command: Command) -> None:
        user_id, at_ms = command.user or b"", command.at_ms
        # The mark of the user's removal is in the stream: by then what came before it has been archived.
        await epoch.consumer.reached_now()
        await epoch.erasures.erase(user_id, at_ms)
        # Its snapshot may be from before: it writes the user's id into files, which are cleaned at its end.
        while epoch.fits.may_know(user_id):
            self._waits[command.id] = waiting.FIT
            await asyncio.sleep(_LOOK_S)

    async def _erase_but_in_files(self, command: Command) -> None:
        await self._erase(command)
        self._step("erase:archive")
        while True:
            try:
                await self._erase_from_store(command)
                break
            except (StoreUnavailable, StoreChanged, LeaseLost):
                raise
            except StoreError as exc:
                log.warning("erasure_waits", why=str(exc))
                self._waits[command.id] = waiting.words_of(exc)
                await asyncio.sleep(_MENDED_S)
        await self._ask(self._store.commands.drop_erasure, self._lease, command)
        self._step("erase:dropped")

    async def _erase_from_store(self, command: Command) -> None:
        # The service has done so; attributes that came meanwhile go, too.
        await self._ask(self._store.attributes.erase, command.epoch, command.user or b"", command.at_ms)
        self._step("erase:attributes")
        pointer = await self._ask(self._store.generations.live)
        for epoch in {pointer.epoch, pointer.pending} - {0}:
            await self._ask(self._store.active.remove, epoch, command.user or b"")
        self._step("erase:active")

    async def _finish_erasure(self, erasure: Command) -> None:
        outcome = Outcome("done")
        if erasure.kind == "take_back":
            outcome = await self._outcome(erasure)
        elif erasure.user is None:
            await self._telling(erasure, self._rewrites.rewritten(), self._rewriting)
        else:
            await self._erase_and_tell(erasure)
        await self._ask(self._store.commands.report, self._lease, erasure.id, outcome)
        if erasure.stream_id != GONE:
            # Its command, which could not be read.
            await self._ask(self._store.commands.drop, erasure.stream_id)
        self._open.pop(erasure.id, None)

    def _rewriting(self) -> Outcome:
        return Outcome("running", detail=self._rewrites.waits_for)

    async def _finish_epoch(self, epoch: int) -> None:
        await self._ask(self._store.epochs.finish, epoch)
        self._step("epoch:finished")


def _is_damaged(command: Command) -> bool:
    """Say whether a command cannot be read, and tell of it. It stays where it is, for a person."""
    if command.damaged is not None:
        log.warning("command_damaged", error=str(command.damaged))
    return command.damaged is not None
