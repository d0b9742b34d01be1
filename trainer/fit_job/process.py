"""Runs a fit in a process of its own. Invariant: that process is gone when the call ends, however it ends."""

import asyncio
import shutil
from pathlib import Path

import msgspec

from processes.messages import HelperEndedError, helper
from trainer import log
from trainer.archive.segments import TEMPORARY, Step, no_step
from trainer.errors import FitFailedError, SegmentGoneError
from trainer.fit_job.job import Answer, Failed, FitRequest, Progress
from trainer.fit_job.results import FitResult, read_result


async def fit_in_process(request: FitRequest, *, step: Step = no_step) -> FitResult:
    """Fit in a child process; return the result, mapped from its files.

    Raises `FitFailedError` where it gave none, `SegmentGoneError` where a new snapshot is wanted.
    """
    output = Path(request.output)
    decode = msgspec.msgpack.Decoder(Answer).decode
    try:
        async with helper("trainer.fit_job.job") as running:
            step("fit:started")
            answer = decode(await running.ask(msgspec.msgpack.encode(request)))
            while isinstance(answer, Progress):
                log.LOGGER.debug("%s", log.line("fit_progress", dict(answer.metrics)))
                answer = decode(await running.receive())
    except HelperEndedError as exc:
        raise FitFailedError(str(exc)) from exc
    finally:
        half_written = output.with_name(output.name + TEMPORARY)
        await asyncio.to_thread(shutil.rmtree, half_written, ignore_errors=True)
    if not isinstance(answer, Failed):
        return await asyncio.to_thread(read_result, output)
    if answer.kind == "gone":
        raise SegmentGoneError(answer.why)
    if answer.kind == "memory":
        raise FitFailedError("it ran out of memory")
    damaged = None if answer.path is None else Path(answer.path)
    raise FitFailedError(answer.why, permanent=answer.kind == "refused", damaged=damaged)
