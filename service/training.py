"""Trains for a caller and waits.

Invariant: what was live answers until the new generation is, untouched.

A new history is an epoch of its own. If anything fails before the trainer has it, it is abandoned here; a
service that dies half-way leaves that to the trainer.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from featurestore.commands import REFUSALS, CommandKind, Outcome
from featurestore.errors import StoreError
from featurestore.generations.catalog import GenerationSummary
from featurestore.generations.follower import Follower
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from service.http.problems import Problem

log = logging.getLogger("foldin.service")

# Ratings, or item ids, in one call to the store.
_SLICE = 5000
_SERVED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What went live. `served`: whether every worker answers from it already."""

    summary: GenerationSummary | None
    generation: int
    epoch: int
    served: bool


class Training:
    """Asks the trainer, one thing at a time, and waits up to `wait_s` for it."""

    def __init__(self, store: Store, follower: Follower, wait_s: float) -> None:
        self._store = store
        self._follower = follower
        self._wait_s = wait_s
        self._busy = False

    async def refit(self) -> Trained:
        """Fit again on all that is known."""
        with self._alone():
            pointer = await self._store.generations.live()
            return await self._ask("refit", pointer.epoch)

    async def begin_history(
        self, ratings: Sequence[NewRating], item_ids: Sequence[bytes], *, replace: bool
    ) -> Trained:
        """Replace what is known by `ratings`, with a catalogue of `item_ids` and whatever else they name.

        Raises `ratings_would_be_lost` unless `replace`, where ratings came in by other ways.
        """
        with self._alone():
            pointer = await self._store.generations.live()
            if pointer.pending:
                raise Problem(
                    "train_in_progress", f"epoch {pointer.pending} is being prepared", retry_after_s=5
                )
            loose = await self._store.ratings.loose_count(pointer.epoch)
            if loose and not replace:
                detail = f'{loose} ratings came in by other ways; send "replace": true to throw them away'
                raise Problem("ratings_would_be_lost", detail, extra={"ratings": loose})
            epoch = await self._store.ratings.begin_epoch()
            try:
                registry = self._store.items(epoch)
                for start in range(0, len(item_ids), _SLICE):
                    await registry.register(item_ids[start : start + _SLICE])
                for start in range(0, len(ratings), _SLICE):
                    await self._store.ratings.append(ratings[start : start + _SLICE], epoch=epoch)
                return await self._ask("epoch", epoch)
            except _StillRunning as exc:
                raise exc.problem from None
            except BaseException:
                await self._abandon(epoch)
                raise

    async def _abandon(self, epoch: int) -> None:
        # A store that is gone cannot be told; the trainer abandons what nobody speaks for.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_SERVED_WITHIN_S):
                await self._store.ratings.abandon_epoch(epoch)

    async def _ask(self, kind: CommandKind, epoch: int) -> Trained:
        command = await self._store.commands.ask(kind, epoch=epoch)
        outcome = await self._store.commands.wait(command, self._wait_s)
        if outcome is None or outcome.state == "running":
            raise self._late(command, outcome)
        if outcome.state == "failed" or outcome.generation is None:
            raise _failure(outcome)
        served = await self._follower.wait_for(epoch, outcome.generation, _SERVED_WITHIN_S)
        summaries = await self._store.generations.list()
        summary = next((each for each in summaries if each.generation == outcome.generation), None)
        log.info("trained kind=%s epoch=%d generation=%d served=%s", kind, epoch, outcome.generation, served)
        return Trained(summary, outcome.generation, epoch, served)

    def _late(self, command: str, outcome: Outcome | None) -> Exception:
        extra = {"command": command}
        if outcome is None:
            detail = f"no trainer took this up in {self._wait_s:g} s; is one running?"
            return Problem("training_timeout", detail, retry_after_s=10, extra=extra)
        detail = f"still running after {self._wait_s:g} s; GET /generations shows when it is live"
        return _StillRunning(Problem("training_timeout", detail, retry_after_s=10, extra=extra))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise Problem("train_in_progress", "this worker waits for a training already", retry_after_s=5)
        self._busy = True
        try:
            yield
        except _StillRunning as exc:
            raise exc.problem from None
        finally:
            self._busy = False


class _StillRunning(Exception):  # noqa: N818 -- not an error: the trainer has it and goes on
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def _failure(outcome: Outcome) -> Problem:
    detail = outcome.detail or "the trainer's log has the cause"
    code = "training_refused" if outcome.code in REFUSALS else "training_failed"
    return Problem(code, detail, extra={"cause": outcome.code} if outcome.code else None)
