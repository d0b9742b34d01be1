"""The process that writes records beside the trainer. Invariant: it is gone when its block is left, and
whatever becomes of it loses nothing: a batch that it did not answer may be written again.

Records of a million users keep a core busy for some ten seconds. A process of its own can give way to those
who answer requests, which the trainer, who reads ratings and renews its lease, must not.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

import numpy as np

from factors import Float32s, Int64s
from featurestore.settings import StoreSettings
from trainer.publication.recording import READY, Batch, Task, to_frame

# Imports and connecting, while others have the cores.
START_S = 15.0
# A batch of 2,000 takes 0.2 s. So late, nobody leaves it a core: the trainer does better itself.
BATCH_S = 5.0


class RecordProcessError(Exception):
    """The process has ended, or is too slow, and will not write any more."""


class RecordProcess:
    """A running process for one generation, made by `record_process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def begin(self, task: Task) -> None:
        """Hand over what all batches need. Raises `RecordProcessError`."""
        answer = await self._ask(to_frame(task), START_S)
        if answer != READY:
            raise RecordProcessError(answer.decode(errors="replace"))

    async def write(self, user_ids: Sequence[bytes], n: Int64s, vectors: Float32s) -> int:
        """See `RecordWriter.write`. Raises `RecordProcessError`."""
        rows = np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        batch = Batch(list(user_ids), np.ascontiguousarray(n, dtype=np.int64).tobytes(), rows)
        answer = await self._ask(to_frame(batch), BATCH_S)
        if not answer.isdigit():
            raise RecordProcessError(answer.decode(errors="replace") or "it ended without a word")
        return int(answer)

    async def _ask(self, frame: bytes, limit_s: float) -> bytes:
        if self._stdin is None or self._stdout is None:
            raise RecordProcessError("it has no pipes")
        try:
            async with asyncio.timeout(limit_s):
                self._stdin.write(frame)
                await self._stdin.drain()
                return (await self._stdout.readline()).rstrip(b"\n")
        except TimeoutError as exc:
            raise RecordProcessError(f"no answer within {limit_s:g} s") from exc
        except (OSError, ValueError) as exc:
            raise RecordProcessError(f"it cannot be talked to: {exc}") from exc

    async def end(self) -> None:
        """End it: nothing of it goes on."""
        if self._stdin is not None:
            self._stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await asyncio.shield(self._process.wait())


@contextlib.asynccontextmanager
async def record_process(
    settings: StoreSettings, *, epoch: int, number: int, kept: Sequence[int], width: int
) -> AsyncIterator[RecordProcess]:
    """Start the process; it is ready when the block begins, and gone when it ends.

    Raises `RecordProcessError` where it does not start.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trainer.publication.recording",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise RecordProcessError(f"it cannot be started: {exc}") from exc
    running = RecordProcess(process)
    try:
        await running.begin(Task(settings, epoch, number, list(kept), width))
        yield running
    finally:
        await running.end()
