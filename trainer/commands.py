"""What services ask for: refit, new epoch, erasure. Invariant: a command leaves the stream only with
its outcome told.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from featurestore.commands import Command, Outcome
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.store import Store
from processes.backoff import Backoff
from trainer import log
from trainer.refit import Ending, Failure
from trainer.retry import patiently

_BLOCK_MS = 250


class Duties(Protocol):
    """What a leader can do for those who ask."""

    async def fit(self, epoch: int) -> Ending:
        """Fit all that is known, publish it."""

    async def begin_history(self, epoch: int) -> Ending:
        """Fit a new epoch and let it take the place of the live one."""

    async def erase(self, user_id: bytes) -> None:
        """Return when nothing of a forgotten user is left in any archive."""


class Orders:
    """Takes commands and sees them through, several at a time."""

    def __init__(self, store: Store, duties: Duties, group: asyncio.TaskGroup) -> None:
        self._store = store
        self._duties = duties
        self._group = group
        self._open: dict[str, bool] = {}
        self.epochs: set[int] = set()

    async def run(self) -> None:
        """Take commands until cancelled."""
        after, backoff = "0", Backoff(0.1, 5.0)
        while True:
            try:
                commands = await self._store.commands.take(after, _BLOCK_MS)
                backoff.reset()
            except StoreUnavailable as exc:
                log.warning("commands_wait", failures=backoff.failures + 1, error=str(exc))
                await asyncio.sleep(backoff.next_s())
                continue
            for command in commands:
                after = command.stream_id
                self._open[after] = False
                if command.kind == "epoch":
                    self.epochs.add(command.epoch)
                self._group.create_task(self._see_through(command), name=f"command {command.kind}")

    async def _see_through(self, command: Command) -> None:
        outcome = await patiently("outcome", lambda: self._store.commands.outcome(command.id))
        if outcome is None or outcome.state == "running":
            await self._report(command, Outcome("running"))
            try:
                outcome = await self._carry_out(command)
            finally:
                self.epochs.discard(command.epoch) if command.kind == "epoch" else None
            log.event(
                "command", kind=command.kind, epoch=command.epoch, state=outcome.state, code=outcome.code
            )
            await self._report(command, outcome)
        await self._close(command.stream_id)

    async def _carry_out(self, command: Command) -> Outcome:
        known: dict[str, Callable[[], Awaitable[Ending | None]]] = {
            "refit": lambda: self._duties.fit(command.epoch),
            "epoch": lambda: self._duties.begin_history(command.epoch),
            "erase": lambda: self._duties.erase(command.user or b""),
        }
        if command.kind not in known:
            return Outcome("failed", code="unknown_command", detail=f"this trainer cannot {command.kind!r}")
        try:
            ending = await known[command.kind]()
        except StoreUnavailable:
            raise
        except StoreError as exc:
            return Outcome("failed", code="store", detail=str(exc))
        if isinstance(ending, Failure):
            return Outcome("failed", code=ending.code, detail=ending.detail)
        return Outcome("done", generation=ending)

    async def _report(self, command: Command, outcome: Outcome) -> None:
        await patiently("report", lambda: self._store.commands.report(command.id, outcome))

    async def _close(self, stream_id: str) -> None:
        """Drop the commands up to the first that is still open."""
        self._open[stream_id] = True
        last = None
        for each, closed in list(self._open.items()):
            if not closed:
                break
            last = each
            del self._open[each]
        if last is not None:
            upto = last
            await patiently("drop", lambda: self._store.commands.drop(upto))
