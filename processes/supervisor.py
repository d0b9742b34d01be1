"""Keeps the parts of a stack running: starts them in order, starts crashed ones again, ends all in the
opposite order.

Invariant: whatever way a run ends, `close` leaves no process behind. A part that keeps failing ends the whole
stack, unless it is one that the others wait for, or can do without while a person decides.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from processes.backoff import FAILURE_WINDOW_S, MAX_FAILURES, MAX_PAUSE_S, FailureRecord
from processes.child import Child, ChildSpec
from processes.errors import CannotStartError, ChildEndedError, StackFailedError

Say = Callable[[str], None]

# A part that waits for room on a disk is back within seconds of there being some, and a look costs next to
# nothing.
LOOK_AGAIN_S = 1.0


def describe_end(code: int) -> str:
    """Return an exit code in words: `code 3`, or `signal 9`."""
    return f"signal {-code}" if code < 0 else f"code {code}"


def _again(child: Child, code: int, pause: float | None) -> str:
    words = f"  {child.spec.name} ended ({describe_end(code)}): "
    if pause is not None:
        return f"{words}starting it again in {pause:g} s"
    # What a person reads who looks at the terminal hours later.
    return (
        f"{words}{child.last_line or 'no word'}; trying on every {MAX_PAUSE_S:g} s, its log: {child.log_path}"
    )


def _is_spared(child: Child, code: int) -> bool:
    return code == 2 and child.spec.spared is not None and child.spec.spared(child.last_line)


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

    async def _started(self, spec: ChildSpec) -> Child:
        child = Child(spec, self._log_dir / f"{spec.name}.log", self._inherit)
        self._children.append(child)
        try:
            await child.start()
        except OSError as exc:
            raise CannotStartError(f"{spec.name} cannot be started: {exc}") from exc
        return child

    async def start(self, *specs: ChildSpec) -> None:
        """Start parts that do not need each other, return when all are ready, and keep them from then on.

        Raises CannotStartError with the part's own words if one ends with code 2, StackFailedError if it ends
        or stays silent.
        """
        children = []
        for spec in specs:
            self._say(f"  {spec.name}: starting")
            children.append(await self._started(spec))
        await self._all_ready(children)
        self._keepers.extend(
            asyncio.create_task(self._keep(child), name=f"keeper of {child.spec.name}") for child in children
        )

    async def _all_ready(self, children: Sequence[Child]) -> None:
        """Return when every part with a probe is ready.

        Raise as soon as any part, with a probe or without, has ended; but for one that is spared.
        """
        ready = {asyncio.create_task(self._ready(child)) for child in children if child.spec.probe}
        ended = {asyncio.create_task(self._ended(child)) for child in children if not child.spec.probe}
        problems: list[BaseException] = []
        try:
            while ready and not problems:
                done, _ = await asyncio.wait(ready | ended, return_when=asyncio.FIRST_COMPLETED)
                ready, ended = ready - done, ended - done
                problems = [exc for task in done if (exc := task.exception()) is not None]
        finally:
            for task in ready | ended:
                task.cancel()
            await asyncio.gather(*ready, *ended, return_exceptions=True)
        # A part that needs a person says more than one that waited for it in vain.
        for problem in sorted(problems, key=lambda problem: not isinstance(problem, CannotStartError)):
            raise problem

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
        if not _is_spared(child, code):
            raise self._reason(ChildEndedError(child.spec.name, code, child.last_line), child)

    @staticmethod
    def _reason(ended: ChildEndedError, child: Child) -> Exception:
        if ended.code == 2:
            return CannotStartError(str(ended))
        return StackFailedError(f"{ended}; its log: {child.log_path}")

    async def once(self, spec: ChildSpec) -> int:
        """Run something to its end; return its exit code.

        It is not started again, and `close` ends it if it still runs. Raises CannotStartError for code 2.
        """
        child = await self._started(spec)
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
            spared = _is_spared(child, code)
            if spared:
                self._say(f"  {child.last_line}")
                self._say(f"  {child.spec.name} has stopped; the rest goes on without it")
                if child.spec.obstacle is None:
                    return
            if not await self._waited(child, code, quiet=spared) and not spared:
                pause = record.ended(loop.time(), code, ready_at)
                if pause is None and not child.spec.lasting:
                    self._fail(child, code)
                    return
                self._say(_again(child, code, pause))
                await asyncio.sleep(MAX_PAUSE_S if pause is None else pause)
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

    async def _waited(self, child: Child, code: int, *, quiet: bool) -> bool:
        """Wait while something keeps a part that has ended from another start; say whether anything did."""
        obstacle = child.spec.obstacle
        why = None if obstacle is None else await asyncio.to_thread(obstacle)
        if obstacle is None or why is None:
            return False
        if not quiet:
            self._say(f"  {child.spec.name} ended ({describe_end(code)}): {why}")
        while await asyncio.to_thread(obstacle) is not None:  # noqa: ASYNC110 -- of room there is no event
            await asyncio.sleep(LOOK_AGAIN_S)
        return True

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
        # An end from here on is one that was asked for: no keeper may start that part again.
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        # What was started last may need what was started first: the service its store.
        for child in reversed(self._children):
            await child.stop(hurry)
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # seen: asyncio must not complain about it at exit

    def running(self) -> dict[str, int]:
        """Return the process ids of the parts that run right now, by their names."""
        return {child.spec.name: child.pid for child in self._children if child.running and child.pid}
