"""`python -m trainer.publication.recording`: writes records of users into the store, as
the process of its own that `record_process` starts. Invariant: it takes the cores only while nobody else
wants them, and ends when its parent does.

In: frames, each behind its length (4 bytes, little endian), a `Task` and then `Batch` after `Batch`, until
the end of the input. Out: a line when it is ready, and one a batch with how many records are there.
"""

import asyncio
import os
import sys
from typing import BinaryIO

import msgspec
import numpy as np

from featurestore.errors import StoreError
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.record_writer import RecordWriter

LENGTH_BYTES = 4
READY = b"ready"


class Task(msgspec.Struct, frozen=True):
    """Whose records are written: see `RecordWriter`. `width`: numbers in a row."""

    store: StoreSettings
    epoch: int
    number: int
    kept: list[int]
    width: int


class Batch(msgspec.Struct, frozen=True):
    """Users with their `n` (u,) as int64 and their rows (u, width) as float32."""

    user_ids: list[bytes]
    n: bytes
    vectors: bytes


class _InputEndedError(Exception):
    """The parent has closed its end, or is gone."""


def to_frame(message: Task | Batch) -> bytes:
    """A message behind its length."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def _read_frame(stream: BinaryIO) -> bytes:
    length = int.from_bytes(_read(stream, LENGTH_BYTES), "little")
    return _read(stream, length)


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _InputEndedError
    return data


def give_way() -> None:
    """From here on this process runs only where no other wants the core; where the system has no such thing,
    with the lowest priority. There is no way back without privileges.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        os.nice(19)


async def _write_all(task: Task, stream: BinaryIO) -> None:
    store = await Store.open(task.store, hot=False)
    try:
        writer = RecordWriter(store.keys, store.bulk, epoch=task.epoch, number=task.number, kept=task.kept)
        _answer(READY)
        while True:
            frame = await asyncio.to_thread(_read_frame, stream)
            batch = msgspec.msgpack.decode(frame, type=Batch)
            n = np.frombuffer(batch.n, dtype=np.int64)
            vectors = np.frombuffer(batch.vectors, dtype=np.float32).reshape(len(n), task.width)
            if len(batch.user_ids) != len(n) or not np.isfinite(vectors).all():
                raise ValueError("rows that are not finite, or not one a user")
            _answer(b"%d" % await writer.write(batch.user_ids, n, vectors))
    finally:
        await store.close()


def _answer(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Write what comes in; 0 at its end, 1 when the last line says why not."""
    give_way()
    stream = sys.stdin.buffer
    try:
        task = msgspec.msgpack.decode(_read_frame(stream), type=Task)
        asyncio.run(_write_all(task, stream))
    except (_InputEndedError, BrokenPipeError):
        return 0
    except (StoreError, ValueError) as exc:
        _answer(str(exc).encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
