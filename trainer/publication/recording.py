"""Writes records of users into the store, as the helper process `python -m trainer.publication.recording`.
Invariant: from `READY` on it takes the cores only while no other process wants them, and it ends when its
parent does.

In: a `Task`, then `Batch` after `Batch`. Out: `READY`, then for each batch how many records are there; in
place of either, the words that say why it ends.
"""

import asyncio
import sys

import msgspec
import numpy as np

from featurestore.errors import StoreError
from featurestore.generations.writer import RecordWriter
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.messages import Parent
from processes.priority import give_way

READY = b"ready"


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
