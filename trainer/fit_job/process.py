"""Runs a fit in a process of its own. Invariant: that process is gone when the call ends, however it ends."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import pyarrow as pa

from processes.messages import HelperEndedError, helper
from trainer import log
from trainer.archive.segments import TEMPORARY, Step, no_step
from trainer.errors import FitFailedError
from trainer.fit_job.job import Answer, Failed, FitRequest, Progress
from trainer.fit_job.result_files import read_result, take_name
from trainer.fit_job.results import FitResult


async def fit_in_process(
    request: FitRequest,
    files: Sequence[pa.OSFile],
    users: BinaryIO | None = None,
    *,
    step: Step = no_step,
) -> FitResult:
    """Fit in a child process; return the result, mapped from its files. `files`: the segments of the request,
    open; `users`: the file of the attributes of users, where there are any.

    Where the process is killed while it fits the ranking head, the result has none. Raises `FitFailedError`
    where there is no result.
    """
    request = replace(request, descriptors=tuple(file.fileno() for file in files))
    opened = request.descriptors
    if users is not None:
        request = replace(request, user_attributes=users.fileno())
        opened += (users.fileno(),)
    output = Path(request.output)
    decode = msgspec.msgpack.Decoder(Answer).decode
    try:
        async with helper("trainer.fit_job.job", opened) as running:
            step("fit:started")
            answer = decode(await running.ask(msgspec.msgpack.encode(request)))
            while isinstance(answer, Progress):
                log.LOGGER.debug("%s", log.line("fit_progress", dict(answer.metrics)))
                answer = decode(await running.receive())
    except HelperEndedError as exc:
        # As by the kernel, where memory runs out: the ratings' fit was written before.
        if not await asyncio.to_thread(take_name, output):
            raise FitFailedError(str(exc)) from exc
        log.warning("ranking_fit_failed", why=str(exc))
        return await asyncio.to_thread(read_result, output)
    finally:
        half_written = output.with_name(output.name + TEMPORARY)
        await asyncio.to_thread(shutil.rmtree, half_written, ignore_errors=True)
    if not isinstance(answer, Failed):
        return await asyncio.to_thread(read_result, output)
    if answer.kind == "memory":
        raise FitFailedError("it ran out of memory")
    damaged = None if answer.path is None else Path(answer.path)
    raise FitFailedError(answer.why, permanent=answer.kind == "refused", damaged=damaged)
