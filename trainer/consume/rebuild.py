"""Rebuild the archive of an epoch from the histories in the store. Invariant: afterwards archive and stream
together hold what the store holds.

Needed when events were trimmed that this archive does not have: its folder was lost, a segment was damaged,
or another host led meanwhile. A history holds the last rating of each pair; superseded ratings are gone from
it, so the entries get new counts `n`, the last one the user's own. Events that come in while the histories
are read may stand in the rebuilt archive and come from the stream once more: the last of a pair counts, so
that they change nothing.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.codecs import ENTRY_BYTES, impossible
from featurestore.contexts import codec as contexts
from featurestore.errors import StoreDamaged
from featurestore.keys import shown_key
from featurestore.ratings.stream import Progress
from featurestore.store import Store
from featurestore.users.records import StoredUser
from trainer import log
from trainer.archive.epoch_archive import EpochArchive, Snapshot
from trainer.archive.events import START, Span, make_table
from trainer.archive.reading import events_of, scan_users
from trainer.retry import with_retries
from trainer.threads import Threads

# Rows of one part: some 20 MB in memory.
_PART_ROWS = 250_000

Keep = Callable[[Sequence[Path]], object]
"""Called with files that are about to be replaced."""


def is_incomplete(snapshot: Snapshot, ends: dict[int, Progress], *, holes: bool) -> bool:
    """Say whether events were trimmed from the stream that the archive does not have."""
    archived = {partition: span.events for partition, span in snapshot.spans.items()}
    return holes or any(end.done > archived.get(partition, 0) for partition, end in ends.items())


async def rebuild(store: Store, archive: EpochArchive, threads: Threads, keep: Keep) -> None:
    """Replace the archive of an epoch by what the store's histories say. Killed at any step it is begun
    again. What is replaced is given to `keep` first: it may have what the store does not.

    Raises what the lease's guard raises; waits for a store that cannot be reached and a disk that is full.
    """
    epoch = archive.epoch
    log.warning("archive_rebuild", epoch=epoch)
    # Before the histories are read: what comes later is not covered, so that it is archived from the stream.
    ends = await with_retries(store.stream.progress, epoch)
    since_ms = await with_retries(store.time_ms)
    old = await threads.run(archive.begin_rebuild)
    # Each step by itself: a rebuild that begins again would append all of it once more.
    if any(segment.rows for segment in old):
        await with_retries(threads.run, keep, [segment.path for segment in old])
    rows = 0
    async for users in _parts(store, epoch):
        part = await _table(store, epoch, users, since_ms, threads)
        rows += part.num_rows
        await with_retries(threads.run, archive.append, part, {})
    spans = {
        partition: Span(end.last, end.last, end.last[1])
        for partition, end in ends.items()
        if end.last > START
    }
    await with_retries(threads.run, archive.finish_rebuild, old, spans)
    log.event("archive_rebuilt", epoch=epoch, ratings=rows)


async def _parts(store: Store, epoch: int) -> AsyncIterator[list[StoredUser]]:
    """Yield all users of an epoch, as many at a time as have a part's rows; one may come twice."""
    users: list[StoredUser] = []
    async for _, found in scan_users(store, epoch, with_retries):
        users = users + found
        if sum(len(user.history) for user in users) >= _PART_ROWS * ENTRY_BYTES:
            yield users
            users = []
    if users:
        yield users


async def _table(
    store: Store, epoch: int, users: Sequence[StoredUser], since_ms: int, threads: Threads
) -> pa.Table:
    events, entries, sound = await threads.run(events_of, users)
    owner, counts = events.user, np.bincount(events.user, minlength=len(users))
    if (bad := np.flatnonzero(impossible(entries, store.scale.stored))).size:
        key = store.keys.history(epoch, users[int(owner[bad[0]])].user_id)
        raise StoreDamaged(shown_key(key), "an entry that no rating has")
    n = np.array([user.n for user in users], dtype=np.int64)
    for k in np.flatnonzero(n < counts)[:1].tolist():
        key = store.keys.user(epoch, users[k].user_id)
        raise StoreDamaged(shown_key(key), f"n is {n[k]}, and the history has {counts[k]} entries")
    for user in () if sound else users:
        if not contexts.unpack(user.contexts).sound:
            log.warning("contexts_damaged", key=shown_key(store.keys.user_contexts(epoch, user.user_id)))
    # Its arrival is not known. It was there at this time: what was erased later is told by that.
    events = replace(events, n=events.n + (1 + n - counts)[owner], stream_seq=events.stream_seq + since_ms)
    registry = store.items(epoch)
    if events.n_items > len(registry):
        await with_retries(registry.refresh)
        if events.n_items > len(registry):
            await with_retries(registry.require_whole)
    for k in np.flatnonzero(entries["item_row"] >= len(registry))[:1].tolist():
        key = store.keys.history(epoch, users[int(owner[k])].user_id)
        raise StoreDamaged(shown_key(key), f"an item row that was never given, there are {len(registry)}")
    return await threads.run(make_table, events, registry.ids)
