"""Writes records of users into the store, as the helper process `python -m trainer.publication.recording`,
which `record_process` starts. Invariant: from `READY` on it takes the cores only while no other process wants
them, and it ends when its parent does; its end loses nothing: a batch without an answer may be written again.

Records of a million users keep a core busy for some ten seconds. A process of its own can give way to those
that answer requests; the trainer, which reads ratings and renews its lease, must not.

In: a `Task`, then `Batch` after `Batch`. Out: `READY`, then for each batch how many records are there; in
place of either, the words that say why it ends.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
import numpy as np

from factors import Float32s, Int64s
from featurestore.errors import StoreError
from featurestore.generations.writer import RecordWriter
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.messages import Helper, HelperEndedError, Parent, helper
from processes.priority import give_way

READY = b"ready"
# Imports and connecting, while other processes have the cores.
START_S = 15.0
# A batch of 2,000 takes 0.2 s where the cores are free. Only what goes beyond this uses up patience.
BATCH_S = 1.0
# With the cores taken for good each of 500 batches could be answered just in time, and a million users would
# take the better part of an hour. Once so much is used up, over all batches, the trainer does better itself.
PATIENCE_S = 5.0


class Task(msgspec.Struct, frozen=True):
    """Whose records are written: see `RecordWriter`, for `read_ms` its `write`. `width`: numbers in a row."""

    store: StoreSettings
    epoch: int
    number: int
    kept: list[int]
    width: int
    read_ms: int | None = None


class Batch(msgspec.Struct, frozen=True):
    """Users with their `n` (u,) as int64 and their rows (u, width) as float32."""

    user_ids: list[bytes]
    n: bytes
    vectors: bytes


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


async def _write_all(task: Task, parent: Parent) -> None:
    store = await Store.open(task.store, hot=False)
    try:
        writer = RecordWriter(store.keys, store.bulk, epoch=task.epoch, number=task.number, kept=task.kept)
        # Not before: connecting is little work, which on cores that are busy took more than 15 s.
        give_way()
        parent.send(READY)
        # The store's connections must be served while this process waits for its parent.
        while (message := await asyncio.to_thread(parent.receive)) is not None:
            batch = msgspec.msgpack.decode(message, type=Batch)
            n = np.frombuffer(batch.n, dtype=np.int64)
            vectors = np.frombuffer(batch.vectors, dtype=np.float32).reshape(len(n), task.width)
            if len(batch.user_ids) != len(n) or not np.isfinite(vectors).all():
                raise ValueError("rows that are not finite, or not one a user")
            parent.send(b"%d" % await writer.write(batch.user_ids, n, vectors, task.read_ms))
    finally:
        await store.close()


def main() -> int:
    """Write what comes in; 0 at its end, 1 when the last message says why not."""
    parent = Parent()
    try:
        asyncio.run(_write_all(msgspec.msgpack.decode(parent.request, type=Task), parent))
    except BrokenPipeError:
        return 0
    except (StoreError, ValueError) as exc:
        parent.send(str(exc).encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
