"""Keeps the parts of a stack running:

starts them in order, starts crashed ones again, ends all in the opposite order. Whatever way a run ends,
`close` leaves no process behind. A part that keeps failing ends the whole stack.
"""

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from processes.child import Child, ChildEndedError, ChildSpec
from processes.errors import CannotStartError, StackFailedError

MAX_FAILURES = 5
FAILURE_WINDOW_S = 60.0
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 8.0
STEADY_S = 2.0

Say = Callable[[str], None]


def describe_end(code: int) -> str:
    """An exit code in words: `code 3`, or `signal 9`."""
    return f"signal {-code}" if code < 0 else f"code {code}"


class FailureRecord:
    """Decides after each end of a part how long to wait before its next start, and when to give up.

    A part that was killed from outside (SIGKILL) while it worked has not failed: it is started again without
    limit.
    """

    def __init__(self) -> None:
        self._failures: deque[float] = deque()
        self._short_lives = 0

    def ended(self, now: float, code: int, ready_at: float | None) -> float | None:
        """Seconds until the next start, None to give up. `ready_at`.

        Since when it worked, None if it never did.
        """
        if ready_at is not None and now - ready_at >= STEADY_S:
            self._short_lives = 0
        self._short_lives += 1
        if ready_at is None or code != -signal.SIGKILL:
            self._failures.append(now)
        while self._failures and self._failures[0] < now - FAILURE_WINDOW_S:
            self._failures.popleft()
        if len(self._failures) >= MAX_FAILURES:
            return None
        return float(min(FIRST_PAUSE_S * 2.0 ** (self._short_lives - 1), MAX_PAUSE_S))


class Supervisor:
    """Owner of the processes of one stack. `failed` resolves when the stack cannot go on."""

    def __init__(self, log_dir: Path, say: Say, inherit: tuple[int, ...] = ()) -> None:
        self._log_dir = log_dir
        self._say = say
        self._inherit = inherit
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _child(self, spec: ChildSpec) -> Child:
        child = Child(spec, self._log_dir / f"{spec.name}.log", self._inherit)
        self._children.append(child)
        return child

    async def start(self, *specs: ChildSpec) -> None:
        """Start parts that do not need each other, return when all are ready, and keep them from then on.

        Raises CannotStartError with the part's own words if one ends with code 2, StackFailedError if it ends
        or stays silent.
        """
        children = [self._child(spec) for spec in specs]
        for child in children:
            self._say(f"  {child.spec.name}: starting")
            try:
                await child.start()
            except OSError as exc:
                raise CannotStartError(f"{child.spec.name} cannot be started: {exc}") from exc
        await self._all_ready(children)
        self._keepers.extend(
            asyncio.create_task(self._keep(child), name=f"keeper of {child.spec.name}") for child in children
        )

    async def _all_ready(self, children: Sequence[Child]) -> None:
        """Return when every part with a probe is ready.

        Raise as soon as any part, with a probe or without, has ended.
        """
        ready = {asyncio.create_task(self._ready(child)) for child in children if child.spec.probe}
        ended = {asyncio.create_task(self._ended(child)) for child in children if not child.spec.probe}
        try:
            while ready and not any(task.done() and task.exception() for task in ready | ended):
                await asyncio.wait(ready | ended, return_when=asyncio.FIRST_COMPLETED)
                ready = {task for task in ready if not task.done() or task.exception()}
            problems = [task.exception() for task in ready | ended if task.done()]
        finally:
            for task in ready | ended:
                task.cancel()
            await asyncio.gather(*ready, *ended, return_exceptions=True)
        # A part that needs a person says more than one that waited for it in vain.
        problems.sort(key=lambda problem: not isinstance(problem, CannotStartError))
        if problems and problems[0] is not None:
            raise problems[0]

    async def _ready(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await child.wait_ready()
        except ChildEndedError as exc:
            raise self._reason(exc, child) from exc
        self._say(f"  {child.spec.name}: ready after {loop.time() - began:.1f} s")

    async def _ended(self, child: Child) -> None:
        code = await child.wait()
        raise self._reason(ChildEndedError(child.spec.name, code, child.last_line), child)

    @staticmethod
    def _reason(ended: ChildEndedError, child: Child) -> Exception:
        if ended.code == 2:
            return CannotStartError(str(ended))
        return StackFailedError(f"{ended}; its log: {child.log_path}")

    async def once(self, spec: ChildSpec) -> int:
        """Run something to its end; its exit code.

        Not started again, and ended by `close` if it still runs.
        """
        child = self._child(spec)
        try:
            await child.start()
        except OSError as exc:
            raise CannotStartError(f"{spec.name} cannot be started: {exc}") from exc
        code = await child.wait()
        if code == 2:
            raise CannotStartError(
                child.last_line or f"{spec.name} refused to run; its log: {child.log_path}"
            )
        return code

    async def _keep(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        record = FailureRecord()
        ready_at: float | None = loop.time()
        while True:
            code = await child.wait()
            if self._closing:
                return
            pause = record.ended(loop.time(), code, ready_at)
            if pause is None:
                self._fail(child, code)
                return
            self._say(f"  {child.spec.name} ended ({describe_end(code)}): starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            ready_at = None
            try:
                await child.stop()  # what the ended process may have left in its group
                await child.start()
                await child.wait_ready()
            except ChildEndedError as exc:
                if exc.code is None:  # alive but useless: its end is the next failure
                    await child.stop()
                continue
            except OSError as exc:
                self._say(f"  {child.spec.name} cannot be started: {exc}")
                continue
            ready_at = loop.time()
            self._say(f"  {child.spec.name} is back")

    def _fail(self, child: Child, code: int) -> None:
        if self.failed.done():
            return
        words = f"{child.spec.name} ended {MAX_FAILURES} times within {FAILURE_WINDOW_S:.0f} s, last with "
        words += f"{describe_end(code)}: {child.last_line or 'no word'}; its log: {child.log_path}"
        self.failed.set_exception(CannotStartError(words) if code == 2 else StackFailedError(words))

    async def close(self, hurry: asyncio.Event | None = None) -> None:
        """End every process, the last started first, each given its grace unless `hurry` is set.

        Never raises.
        """
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in reversed(self._children):
            await child.stop(hurry)
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # seen: asyncio must not complain about it at exit

    def running(self) -> Sequence[str]:
        """Names of the parts that run right now."""
        return [child.spec.name for child in self._children if child.running]
