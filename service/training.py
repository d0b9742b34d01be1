"""Commands a training and waits for its end, or answers how far it has come.

Invariant: the live generation answers, untouched, until the new one is live.

A new history is an epoch of its own. If anything fails before the trainer has it, it is abandoned here; the
trainer abandons that of a service which died half-way.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from factors import Float32s
from featurestore.commands import REFUSALS, CommandKind, Outcome
from featurestore.confirmation import Since
from featurestore.errors import RETRY_WHEN_FULL_S, RatingsLeftOut, StoreError
from featurestore.generations.follower import Follower
from featurestore.generations.manifest import GenerationSummary
from featurestore.generations.served import wait_until_served
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from service.http.problems import Problem

log = logging.getLogger("foldin.service")

# Ratings, or item ids, in one call: the store is busy with it for some 40 ms, in which others wait.
_SLICE = 5000
# Workers load a generation within a second or two; longer is told to the caller, who need not wait for it.
SERVED_WITHIN_S = 5.0
# A training takes seconds: the caller finds it done, or further.
_BUSY_RETRY_S = 5
_NO_ROOM = "there is no room for another generation; the live one goes on"
# One that found no trainer, or ended without a result: it takes a while yet.
_LATE_RETRY_S = 10


@dataclass(frozen=True, slots=True)
class Trained:
    """The generation that went live. `served`: whether every worker answers from it already."""

    summary: GenerationSummary | None
    generation: int
    epoch: int
    served: bool


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The trainer goes on with the `command`: `outcome` is how far it has come, None before it takes it."""

    command: str
    outcome: Outcome | None


class Training:
    """Commands one training at a time, and waits `wait_s` for its end, or as long as a call says."""

    def __init__(self, store: Store, follower: Follower, wait_s: float) -> None:
        self._store = store
        self._follower = follower
        self._wait_s = wait_s
        self._busy = False

    async def refit(self, wait_s: float | None = None) -> Trained | UnderWay:
        """Fit again on all that is known, and return the generation. Raises `Problem`."""
        with self._alone():
            await self._require_trainer()
            pointer = await self._store.generations.live()
            since = self._store.confirmation.begin()
            command = await self._store.commands.ask("refit", epoch=pointer.epoch)
            return await self._end_of("refit", command, pointer.epoch, since, wait_s)

    async def begin_history(
        self,
        ratings: Columns,
        item_ids: Sequence[bytes],
        *,
        replace: bool,
        contexts: Callable[[], Awaitable[Float32s]] | None = None,
        wait_s: float | None = None,
    ) -> Trained | UnderWay:
        """Replace what is known by `ratings`, with a catalogue of `item_ids` and the items that they name.
        `contexts`: stores which fields those of the ratings have, and returns them.

        Raises `ratings_would_be_lost` unless `replace`, where ratings came in by other ways.
        """
        with self._alone():
            await self._require_trainer()
            pointer = await self._store.generations.live()
            if pointer.pending:
                raise Problem(
                    "train_in_progress",
                    f"epoch {pointer.pending} is being prepared",
                    retry_after_s=_BUSY_RETRY_S,
                )
            live_ratings = await self._store.ratings.count_live(pointer.epoch)
            if live_ratings and not replace:
                raise _would_be_lost(live_ratings)
            if contexts is not None:
                # Fields stay for ever: not those of a call that is refused.
                ratings = dataclasses.replace(ratings, context=await contexts())
            try:
                # What comes in from here on belongs to the new epoch.
                epoch = await self._store.epochs.begin(None if replace else 0)
            except RatingsLeftOut as exc:
                # Acknowledged since they were counted.
                raise _would_be_lost(exc.ratings) from exc
            try:
                registry = self._store.items(epoch)
                for start in range(0, len(item_ids), _SLICE):
                    await registry.register(item_ids[start : start + _SLICE])
                for start in range(0, len(ratings), _SLICE):
                    part = ratings.part(slice(start, start + _SLICE))
                    await self._store.ratings.append_columns(part, epoch=epoch)
                since = self._store.confirmation.begin()
                command = await self._store.commands.ask("epoch", epoch=epoch)
            except BaseException:
                await self._abandon(epoch)
                raise
            try:
                return await self._end_of("epoch", command, epoch, since, wait_s)
            except Problem:
                # No trainer has it, or it failed. One that goes on is not given up with this call, for want
                # of the store or of this service.
                await self._abandon(epoch)
                raise

    async def _abandon(self, epoch: int) -> None:
        # The trainer abandons it where the store cannot be reached.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(SERVED_WITHIN_S):
                await self._store.epochs.abandon(epoch)

    async def _end_of(
        self, kind: CommandKind, command: str, epoch: int, since: Since, wait_s: float | None
    ) -> Trained | UnderWay:
        wait_s = self._wait_s if wait_s is None else wait_s
        outcome = await self._store.commands.wait(command, wait_s)
        if outcome is None and kind == "epoch":
            # It is abandoned where no trainer takes it up; a refit is made by the next one that leads.
            outcome = await self._store.commands.wait(command, self._wait_s - wait_s, taken=True)
        # The id of the command lets an operator find it in the trainer's log.
        if outcome is None and kind == "epoch":
            raise Problem(
                "training_timeout",
                f"no trainer took this up in {max(wait_s, self._wait_s):g} s; is one running?",
                retry_after_s=_LATE_RETRY_S,
                extra={"command": command},
            )
        if outcome is None or outcome.state == "running":
            return UnderWay(command, outcome)
        if outcome.code == "store_full":
            raise Problem("store_full", _NO_ROOM, retry_after_s=RETRY_WHEN_FULL_S)
        if outcome.state == "failed" or outcome.generation is None:
            refused = outcome.code in REFUSALS
            raise Problem(
                "training_refused" if refused else "training_failed",
                outcome.detail or "the trainer's log has the cause",
                retry_after_s=None if refused else _LATE_RETRY_S,
                extra={"cause": outcome.code} if outcome.code else None,
            )
        await self._store.confirmation.wait(since)
        served = await wait_until_served(
            self._store.generations, epoch, outcome.generation, SERVED_WITHIN_S, here=self._follower
        )
        summaries = await self._store.generations.list()
        summary = next((each for each in summaries if each.generation == outcome.generation), None)
        log.info("trained kind=%s epoch=%d generation=%d served=%s", kind, epoch, outcome.generation, served)
        return Trained(summary, outcome.generation, epoch, served)

    async def _require_trainer(self) -> None:
        """Raise `training_failed` where the last trainer has said why it ended, and none leads."""
        if (why := await self._store.leases.ended()) is not None:
            detail = f"no trainer runs: {why}"
            raise Problem(
                "training_failed", detail, retry_after_s=_LATE_RETRY_S, extra={"cause": "no_trainer"}
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # The trainer does one thing at a time: a second caller would wait for the first one's minute too.
        if self._busy:
            raise Problem(
                "train_in_progress",
                "this worker waits for a training already",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


def _would_be_lost(ratings: int) -> Problem:
    detail = f'{ratings} ratings came in by other ways; send "replace": true to throw them away'
    return Problem("ratings_would_be_lost", detail, extra={"ratings": ratings})
