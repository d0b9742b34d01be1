"""Starts the process of a fit and waits for it. Invariant.

When `fit` returns or raises, that process is gone.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.archive.segments import TEMPORARY
from trainer.errors import FitFailedError, SegmentGoneError
from trainer.fit_job.job import FitRequest
from trainer.fit_job.results import FitResult, read_result

# Lines of progress are short; anything longer is not from us.
_LINE_LIMIT = 1 << 16

Started = Callable[[int], None]


async def fit(
    request: FitRequest, *, started: Started, progress: Callable[[dict[str, float]], None]
) -> FitResult:
    """Fit in a child process; the result is mapped. `started` is told its process id.

    Raises `FitFailedError` where it gave none, `SegmentGoneError` where a new snapshot is wanted. Cancelling
    kills the child.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trainer.fit_job.job",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    output = Path(request.output)
    try:
        started(process.pid)
        answer = await _talk(process, request, progress)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.to_thread(shutil.rmtree, output.with_name(output.name + TEMPORARY), ignore_errors=True)
    _raise_if_failed(answer, code)
    return await asyncio.to_thread(read_result, output)


async def _talk(
    process: asyncio.subprocess.Process, request: FitRequest, progress: Callable[[dict[str, float]], None]
) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise FitFailedError("the process of the fit has no pipes")
    answer: dict[str, Any] = {}
    try:
        stdin.write(request.to_line())
        await stdin.drain()
        async for line in stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(message["progress"])
            else:
                answer = message
    except (OSError, ValueError):
        # It died while talking; its exit code says so.
        pass
    return answer


def _raise_if_failed(answer: dict[str, Any], code: int) -> None:
    if code == 0 and answer.get("done"):
        return
    kind, why = answer.get("failed"), str(answer.get("why", ""))
    if kind == "gone":
        raise SegmentGoneError(why)
    if kind == "damaged":
        raise FitFailedError(why, damaged=Path(answer["path"]))
    if kind == "memory":
        raise FitFailedError("it ran out of memory")
    if kind is not None:
        raise FitFailedError(why, permanent=kind == "refused")
    raise FitFailedError(f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}")
