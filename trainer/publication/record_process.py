"""Writes records of users by a helper process beside the trainer. Invariant: the process is gone when its
block is left, and its end loses nothing: a batch that it did not answer may be written again.

Records of a million users keep a core busy for some ten seconds. A process of its own can give way to those
that answer requests; the trainer, which reads ratings and renews its lease, must not.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
import numpy as np

from factors import Float32s, Int64s
from processes.messages import Helper, HelperEndedError, helper
from trainer.publication.recording import READY, Batch, Task

# Imports and connecting, while other processes have the cores.
START_S = 15.0
# A batch of 2,000 takes 0.2 s where the cores are free. Only what goes beyond this uses up patience.
BATCH_S = 1.0
# With the cores taken for good each of 500 batches could be answered just in time, and a million users would
# take the better part of an hour. Once so much is used up, over all batches, the trainer does better itself.
PATIENCE_S = 5.0


class RecordProcess:
    """A running process for one generation, made by `record_process`."""

    def __init__(self, running: Helper) -> None:
        self._running = running
        self._patience_s = PATIENCE_S
        self.pid = running.pid
        self.end = running.end

    async def write(self, user_ids: Sequence[bytes], n: Int64s, vectors: Float32s) -> int:
        """See `RecordWriter.write`. Raises `HelperEndedError`."""
        rows = np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        batch = Batch(list(user_ids), np.ascontiguousarray(n, dtype=np.int64).tobytes(), rows)
        began_at = time.monotonic()
        answer = await self._running.ask(msgspec.msgpack.encode(batch), BATCH_S + self._patience_s)
        self._patience_s -= max(0.0, time.monotonic() - began_at - BATCH_S)
        if not answer.isdigit():
            raise HelperEndedError(answer.decode(errors="replace"))
        return int(answer)


@contextlib.asynccontextmanager
async def record_process(task: Task) -> AsyncIterator[RecordProcess]:
    """Start the process; it is ready when the block begins, and gone when it ends.

    Raises `HelperEndedError` where it does not start.
    """
    async with helper("trainer.publication.recording") as running:
        answer = await running.ask(msgspec.msgpack.encode(task), START_S)
        if answer != READY:
            raise HelperEndedError(answer.decode(errors="replace"))
        yield RecordProcess(running)
