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
from trainer.archive.files import TEMPORARY
from trainer.archive.segments import Step
from trainer.errors import FitFailedError, NothingNewError
from trainer.fit_job.job import Answer, Began, Done, FitProgress, FitRequest, NothingNew, Progress
from trainer.fit_job.result_files import read_result, take_name
from trainer.fit_job.results import FitResult


async def fit_in_process(
    request: FitRequest,
    files: Sequence[pa.NativeFile],
    users: BinaryIO | None,
    *,
    step: Step,
    told: FitProgress,
) -> FitResult:
    """Fit in a child process; return the result, mapped from its files. `files`: the segments of the request,
    open; `users`: the file of the attributes of users, where there are any; `told`: is kept up to date.

    Where the process is killed while it fits the ranking head, the result has none. Raises `FitFailedError`
    where there is no result, `NothingNewError` where there need be none.
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
            while isinstance(answer, Began | Progress):
                _note(answer, told)
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
    if isinstance(answer, Done):
        used = {f"cpu_{phase}": seconds for phase, seconds in answer.phases_cpu_s.items()}
        log.event("fit_ended", cpu_s=answer.cpu_s, peak_bytes=answer.peak_bytes or None, **used)
        return await asyncio.to_thread(read_result, output)
    if isinstance(answer, NothingNew):
        raise NothingNewError
    if answer.kind == "memory":
        raise FitFailedError("it ran out of memory")
    path = None if answer.path is None else Path(answer.path)
    damaged, unread = (path, None) if answer.kind == "damaged" else (None, path)
    raise FitFailedError(answer.why, permanent=answer.kind == "refused", damaged=damaged, unread=unread)


def _note(answer: Began | Progress, told: FitProgress) -> None:
    if isinstance(answer, Progress):
        log.LOGGER.debug("%s", log.line("fit_progress", dict(answer.metrics)))
        told.sweep += 1
    else:
        told.begin(answer.phase)
