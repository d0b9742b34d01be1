"""What services ask for: refit, new epoch, erasure. Invariant: a command leaves the stream only when its
outcome is stored.
"""

import asyncio
from contextlib import ExitStack
from itertools import takewhile

from featurestore.commands import Command, Outcome
from featurestore.errors import EpochGone, LeaseLost, StoreChanged, StoreError, StoreUnavailable
from featurestore.leases import Lease
from featurestore.store import Store
from trainer import log
from trainer.archive.segments import Step
from trainer.consume.open_epochs import OpenEpoch, OpenEpochs
from trainer.erasure.file_rewrites import FileRewrites
from trainer.item_deletion.item_ratings import ItemRatings
from trainer.refit import Ending, Failure, RefitRequests
from trainer.retry import with_retries

# How long the store holds a blocking read: a stop waits for it at most so long.
_BLOCK_MS = 250
# Upkeep moves an epoch within a second or two.
_LOOK_S = 0.25
# What is damaged in the store, or refused by it, stays so for minutes.
_MENDED_S = 5.0
# More commands than services have open; those beyond wait in the stream, not as tasks.
_AT_ONCE = 1_000


class CommandHandler:
    """Takes commands and sees them through, several at a time; fits are `requests` to the refitter."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        epochs: OpenEpochs,
        requests: RefitRequests,
        *,
        rewrites: FileRewrites,
        item_ratings: ItemRatings,
        step: Step,
    ) -> None:
        self._store = store
        self._lease = lease
        self._epochs = epochs
        self._requests = requests
        self._rewrites = rewrites
        self._item_ratings = item_ratings
        self._step = step
        # Taken commands in the order of the stream, by stream id: whether their outcome is stored.
        self._settled: dict[str, bool] = {}

    @property
    def oldest_open_ms(self) -> int | None:
        """When the oldest command was asked for that is taken and not settled, by the store's clock."""
        open_ids = (stream_id for stream_id, settled in self._settled.items() if not settled)
        oldest = next(open_ids, None)
        return None if oldest is None else int(oldest.partition("-")[0])

    async def run(self) -> None:
        """Take commands until cancelled."""
        after, slots = "0", asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            # Of an earlier leader: their commands are gone.
            for erasure in await with_retries(self._store.commands.erasing):
                group.create_task(self._finish_erasure(erasure), name="finish an erasure")
            while True:
                commands = await with_retries(self._store.commands.take, after, _BLOCK_MS)
                # Before the first of them is carried out, which may take long: the others are open, too.
                for command in commands:
                    after = command.stream_id
                    self._settled[after] = False
                    if command.kind == "epoch":
                        self._epochs.claim(command.epoch)
                for command in commands:
                    await slots.acquire()
                    slot = ExitStack()
                    slot.callback(slots.release)
                    group.create_task(self._handle(command, slot), name=f"command {command.kind}")

    async def _handle(self, command: Command, slot: ExitStack) -> None:
        outcome = await with_retries(self._store.commands.outcome, command.id)
        if outcome is None or outcome.state == "running" or await self._half_erased(command):
            await with_retries(self._store.commands.report, self._lease, command.id, Outcome("running"))
            self._step("command:running")
            if command.kind == "take_back":
                # It waits for a new history, whose own command needs a slot; and takes a few KB meanwhile.
                slot.close()
            outcome = await self._outcome(command)
            log.event(
                "command", kind=command.kind, epoch=command.epoch, state=outcome.state, code=outcome.code
            )
            self._step("command:done")
            await with_retries(self._store.commands.report, self._lease, command.id, outcome)
            self._step("command:reported")
        if command.kind == "epoch":
            self._epochs.release(command.epoch)
        await self._settle(command.stream_id)
        slot.close()

    async def _outcome(self, command: Command) -> Outcome:
        # A service of a newer version may know more kinds.
        kind: str = command.kind
        ending: Ending | None = None
        try:
            if kind == "refit":
                ending = await self._refit(command.epoch)
            elif kind == "epoch":
                ending = await self._begin_epoch(command.epoch)
            elif kind == "erase":
                await self._erase_to_the_end(command)
            elif kind == "take_back":
                ending = await self._take_back(command)
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

    async def _refit(self, epoch: int) -> Ending:
        """Fit all that is known, and publish it. An epoch that was replaced meanwhile stands for the live
        one.
        """
        pointer = await with_retries(self._store.generations.live)
        return await self._requests.ask(epoch if epoch == pointer.pending else pointer.epoch)

    async def _begin_epoch(self, epoch: int) -> Ending:
        """Fit a new epoch and let it take the place of the live one."""
        pointer = await with_retries(self._store.generations.live)
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

    async def _take_back(self, command: Command) -> Failure | None:
        if await self._item_ratings.taken_back(command):
            return None
        return Failure(
            "epoch_gone", f"epoch {command.epoch} was replaced: its ratings are gone, or were restored"
        )

    async def _erase(self, user_id: bytes, at_ms: int) -> None:
        """Return when no archive, no fit and no key of the store has anything of a user who was forgotten at
        this time of the store.
        """
        while True:
            pointer = await with_retries(self._store.generations.live)
            needed = {pointer.epoch, pointer.pending} - {0}
            try:
                # What was replaced is archived to its end on its way to the trash, and searched there: a user
                # whom the live epoch never knew has left no mark by which to find those ratings later.
                if not await self._epochs.leaving(needed):
                    for number in needed:
                        await self._erase_from(await self._epochs.open(number), user_id, at_ms)
                    return
                pause_s = _LOOK_S
            except EpochGone:
                # Replaced or given up meanwhile: it leaves.
                pause_s = _LOOK_S
            except (StoreUnavailable, StoreChanged, LeaseLost):
                raise
            except StoreError as exc:
                # Its receipt does not end before the user is gone, whatever a person must mend first.
                log.warning("erasure_waits", why=str(exc))
                pause_s = _MENDED_S
            await asyncio.sleep(pause_s)

    async def _erase_from(self, epoch: OpenEpoch, user_id: bytes, at_ms: int) -> None:
        # The mark of the user's removal is in the stream: by then what came before it has been archived.
        await epoch.consumer.reached_now()
        # A user whom the store did not know has left no mark, and older copies may know that user.
        await epoch.consumer.note_erased([(user_id, at_ms)])
        await epoch.consumer.erase_unknown(user_id)
        # Its snapshot may be from before: it writes the user's id into files, which are cleaned at its end.
        while epoch.fits.may_know(user_id):  # noqa: ASYNC110 - the fit is in other hands, and takes seconds
            await asyncio.sleep(_LOOK_S)

    async def _erase_to_the_end(self, command: Command) -> None:
        await self._erase(command.user or b"", command.at_ms)
        # A service of 0.1.0, which may have forgotten the user, knows of no attributes.
        await with_retries(self._store.attributes.erase, command.epoch, command.user or b"", command.at_ms)
        pointer = await with_retries(self._store.generations.live)
        for epoch in {pointer.epoch, pointer.pending} - {0}:
            await with_retries(self._store.active.remove, epoch, command.user or b"")
        await with_retries(self._store.commands.drop_erasure, self._lease, command)
        self._step("erase:dropped")
        await self._rewrites.rewritten()

    async def _finish_erasure(self, erasure: Command) -> None:
        outcome = Outcome("done")
        if erasure.kind == "take_back":
            outcome = await self._outcome(erasure)
        elif erasure.user is None:
            await self._rewrites.rewritten()
        else:
            await self._erase_to_the_end(erasure)
        await with_retries(self._store.commands.report, self._lease, erasure.id, outcome)

    async def _half_erased(self, command: Command) -> bool:
        """Whether a trainer of 0.1.0 said `done` of an erasure, which does less than is asked for now, or
        that it knows no such command.
        """
        lasts = command.kind in ("erase", "take_back")
        return lasts and await with_retries(self._store.commands.stage, command.id) is not None

    async def _finish_epoch(self, epoch: int) -> None:
        await with_retries(self._store.epochs.finish, epoch)
        self._step("epoch:finished")

    async def _settle(self, stream_id: str) -> None:
        """Drop the commands up to the first that is still open."""
        self._settled[stream_id] = True
        # No further: behind an open one as many may wait as were ever asked for.
        over = list(takewhile(self._settled.__getitem__, self._settled))
        for each in over:
            del self._settled[each]
        if over:
            await with_retries(self._store.commands.drop, over[-1])
