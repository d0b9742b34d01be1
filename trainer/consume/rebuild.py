"""Rebuild the archive of an epoch from the histories in the store. Invariant: afterwards archive and stream
together hold what the store holds.

Needed when events were trimmed that this archive does not have: its folder was lost, a segment was damaged,
or another host led meanwhile. A history holds the last rating of each pair; superseded ratings are gone from
it, so the entries get new counts `n`, the last one the user's own. Events that come in while the histories
are read may stand in the rebuilt archive and come from the stream once more: the last of a pair counts, so
that they change nothing.
"""

from collections.abc import AsyncIterator, Sequence

import numpy as np
import pyarrow as pa

from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE
from featurestore.ratings.stream import Progress
from featurestore.store import Store
from featurestore.wire.functions import commands
from trainer import log
from trainer.archive.epoch_archive import EpochArchive, Snapshot
from trainer.archive.events import Span, make_table, string_array
from trainer.consume.tables import item_ids, tails
from trainer.retry import with_retries
from trainer.threads import Threads

# Keys that the store looks at in one step: a fraction of a millisecond, in which lookups wait.
_SCAN_COUNT = 1_000
# Rows of one part: some 20 MB in memory.
_PART_ROWS = 250_000


def is_incomplete(snapshot: Snapshot, ends: dict[int, Progress], *, holes: bool) -> bool:
    """Say whether events were trimmed from the stream that the archive does not have."""
    archived = {partition: span.events for partition, span in snapshot.spans.items()}
    return holes or any(end.done > archived.get(partition, 0) for partition, end in ends.items())


async def rebuild(store: Store, archive: EpochArchive, threads: Threads) -> None:
    """Replace the archive of an epoch by what the store's histories say. Killed at any step it is begun
    again.

    Raises `ArchiveFailedError` and what the lease's guard raises; waits for a store that cannot be reached.
    """
    epoch = archive.epoch
    log.warning("archive_rebuild", epoch=epoch)
    # Before the histories are read: what comes later is not covered, so that it is archived from the stream.
    ends = await with_retries(tails, store, epoch)
    old = await threads.run(archive.begin_rebuild)
    rows = 0
    async for part in _parts(store, epoch):
        rows += part.num_rows
        await threads.run(archive.append, part, {})
    spans = {partition: Span(end.last, end.last, end.last[1]) for partition, end in ends.items()}
    await threads.run(archive.finish_rebuild, old, spans)
    log.event("archive_rebuilt", epoch=epoch, ratings=rows)


async def _parts(store: Store, epoch: int) -> AsyncIterator[pa.Table]:
    pending: list[tuple[bytes, int, bytes, int]] = []
    waiting = 0
    async for found in _users(store, epoch):
        for user in found:
            pending.append(user)
            waiting += len(user[2]) // ENTRY_BYTES
        if waiting >= _PART_ROWS:
            yield await _table(store, epoch, pending)
            pending, waiting = [], 0
    if pending:
        yield await _table(store, epoch, pending)


async def _users(store: Store, epoch: int) -> AsyncIterator[list[tuple[bytes, int, bytes, int]]]:
    """Yield blocks of (user id, n, history bytes, partition). SCAN may give a user twice; so may this."""
    connection = store.bulk
    for partition, prefix in enumerate(store.keys.user_prefixes(epoch)):
        cursor = b"0"
        pattern = _escaped(prefix) + b"*"
        while True:
            scan = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % _SCAN_COUNT]
            ((cursor, keys),) = await with_retries(commands, connection, [scan])
            user_ids = [key[len(prefix) :] for key in keys]
            if user_ids:
                yield await with_retries(_read, store, epoch, user_ids, partition)
            if cursor == b"0":
                break


async def _read(
    store: Store, epoch: int, user_ids: Sequence[bytes], partition: int
) -> list[tuple[bytes, int, bytes, int]]:
    asked = [
        call
        for user_id in user_ids
        for call in (
            [b"HGET", store.keys.user(epoch, user_id), b"n"],
            [b"GET", store.keys.history(epoch, user_id)],
        )
    ]
    replies = await commands(store.bulk, asked)
    return [
        (user_id, int(n), history or b"", partition)
        for user_id, n, history in zip(user_ids, replies[::2], replies[1::2], strict=True)
        if n is not None
    ]


async def _table(store: Store, epoch: int, users: Sequence[tuple[bytes, int, bytes, int]]) -> pa.Table:
    counts = np.array([len(history) // ENTRY_BYTES for _, _, history, _ in users], dtype=np.int64)
    entries = np.concatenate(
        [
            np.frombuffer(history, dtype=ENTRY_DTYPE, count=count)
            for (_, _, history, _), count in zip(users, counts.tolist(), strict=True)
        ]
    )
    owner = np.repeat(np.arange(len(users)), counts)
    last_n = np.array([n for _, n, _, _ in users], dtype=np.int64)
    after = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(entries))
    item_row = entries["item_row"].astype(np.int64)
    items = await with_retries(item_ids, item_row, store.items(epoch))
    zeros = np.zeros(len(entries), dtype=np.int64)
    return make_table(
        partition=np.array([partition for *_, partition in users], dtype=np.uint16)[owner],
        stream_ms=zeros,
        stream_seq=zeros,
        user_id=string_array([user_id for user_id, *_ in users]).take(pa.array(owner)),
        n=last_n[owner] - after,
        item_row=item_row,
        item_id=items.of(item_row),
        rating=entries["rating"],
        time=entries["time"],
    )


def _escaped(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\" else bytes([c]) for c in text)
