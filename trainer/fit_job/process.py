"""Runs a fit in a process of its own. Invariant: that process is gone when the block is left."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from processes.messages import Helper, HelperEndedError, helper
from trainer import log
from trainer.archive.segments import TEMPORARY
from trainer.errors import FitFailedError, SegmentGoneError
from trainer.fit_job.job import Answer, Failed, FitRequest, Progress
from trainer.fit_job.results import FitResult, read_result


class FitProcess:
    """A fit that runs, made by `fit_process`."""

    def __init__(self, running: Helper, request: FitRequest) -> None:
        self._running = running
        self._request = request

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._running.pid

    async def result(self) -> FitResult:
        """Wait for the end of the fit; return its result, mapped from its files.

        Raises `FitFailedError` where it gave none, `SegmentGoneError` where a new snapshot is wanted.
        """
        try:
            await self._running.send(msgspec.msgpack.encode(self._request))
            while isinstance(answer := await self._answer(), Progress):
                log.LOGGER.debug("%s", log.line("fit_progress", dict(answer.metrics)))
        except HelperEndedError as exc:
            code = await self._running.wait()
            why = f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"
            raise FitFailedError(why) from exc
        if isinstance(answer, Failed):
            raise _error(answer)
        return await asyncio.to_thread(read_result, Path(self._request.output))

    async def _answer(self) -> Answer:
        answer: Answer = msgspec.msgpack.decode(await self._running.receive(), type=Answer)
        return answer


@contextlib.asynccontextmanager
async def fit_process(request: FitRequest) -> AsyncIterator[FitProcess]:
    """Fit in a child process until the block ends. Raises `FitFailedError` where it cannot be started."""
    try:
        async with helper("trainer.fit_job.job") as running:
            yield FitProcess(running, request)
    except HelperEndedError as exc:
        raise FitFailedError(str(exc)) from exc
    finally:
        output = Path(request.output)
        half_written = output.with_name(output.name + TEMPORARY)
        await asyncio.to_thread(shutil.rmtree, half_written, ignore_errors=True)


def _error(failed: Failed) -> Exception:
    if failed.kind == "gone":
        return SegmentGoneError(failed.why)
    if failed.kind == "memory":
        return FitFailedError("it ran out of memory")
    damaged = None if failed.path is None else Path(failed.path)
    return FitFailedError(failed.why, permanent=failed.kind == "refused", damaged=damaged)
