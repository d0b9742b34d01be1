"""See that the archive is the store's, and take it, before a term begins. Invariant: nothing was removed or
replaced when it is not; only a person who says so lets the archive go to the trash.
"""

import asyncio
import contextlib
from collections.abc import Mapping

from featurestore.errors import EpochGone
from featurestore.ratings.stream import Progress
from featurestore.store import Store
from trainer import log
from trainer.archive.events import Position
from trainer.archive.identity import ArchiveState, StoreState, StreamState, compare, to_look_up
from trainer.archive.root import ArchiveRoot
from trainer.erasure.older_copy import erase_again
from trainer.errors import ArchiveRefusedError
from trainer.leadership import Leadership
from trainer.retry import with_retries
from trainer.threads import Threads

WHAT_TO_DO = (
    "`foldin restore` brings the ratings of the archive into this store; "
    "--adopt goes on with the store as it is, and moves the archive to its trash"
)


async def match(
    store: Store,
    root: ArchiveRoot,
    leadership: Leadership,
    threads: Threads,
    *,
    adopt: bool,
    restored: bool = False,
) -> None:
    """Return when the archive belongs to the store, and this leader alone writes to it. `threads`: of the
    caller, who leaves the archive once they are drained. `adopt`: one that does not belong to it is moved to
    its trash. `restored`: the store has its erasures already.

    Raises `ArchiveRefusedError`, `LeaseLost`.
    """
    lease = leadership.lease
    # The connection may have stood while the store was emptied.
    await with_retries(store.look_again)
    # Before the folder is taken: it may be in the hands of another store's trainer.
    await _compare(store, root, threads, adopt=adopt)
    # The streams first: what the leader before archives after this stays in them, and comes again.
    for epoch in (await with_retries(_epochs, store))[1]:
        with contextlib.suppress(EpochGone):
            await with_retries(store.stream.attach, epoch, lease)
    others = await with_retries(threads.run, root.claim, f"{lease.fence}.{lease.token[:8]}")
    # The store says which leader is the last one. Their numbers would not do: a store that has lost its end
    # gives one twice.
    await with_retries(leadership.renew)
    await with_retries(threads.run, root.take, others)
    # What came before the folder was taken is there now.
    archive, why = await _compare(store, root, threads, adopt=adopt)
    if why is not None:
        log.warning("archive_adopted", why=why, store=store.identity)
        # Of another store the ledger is about users of the same names.
        if archive.identity == store.identity and not restored:
            await _erase_again(store, root, leadership)
        for number in archive.ends:
            entry = await with_retries(threads.run, root.discard, number, "adopted")
            log.event("epoch_to_trash", epoch=number, why="adopted", entry=entry and entry.path.name)
    # Last: an adoption that was cut off is found again by the identity from before.
    if archive.identity != store.identity:
        # What the ledger has from before is about users of the other store.
        since_ms = await with_retries(store.time_ms) if archive.identity is not None and not restored else 0
        await with_retries(threads.run, root.belong_to, store.identity, since_ms)


async def _erase_again(store: Store, root: ArchiveRoot, leadership: Leadership) -> None:
    # It reads all users, and all of the archive: longer than a lease lasts.
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(leadership.keep(), name="keep the lease")
        await erase_again(store, root)
        keeping.cancel()


async def _compare(
    store: Store, root: ArchiveRoot, threads: Threads, *, adopt: bool
) -> tuple[ArchiveState, str | None]:
    """Return what the archive says of itself, and in what it is not the store's. Raises
    `ArchiveRefusedError` where it is not, unless that is to be adopted.
    """
    archive = await with_retries(threads.run, root.state, await with_retries(replaced, store))
    why = await with_retries(difference, store, archive)
    if why is not None and not adopt:
        raise ArchiveRefusedError(f"{why}; {WHAT_TO_DO}")
    return archive, why


async def difference(store: Store, archive: ArchiveState) -> str | None:
    """Return in what the archive is not the store's, if it is not."""
    while True:
        last_epoch, epochs = await _epochs(store)
        streams = {epoch: await _streams(store, epoch, archive.ends.get(epoch, {})) for epoch in epochs}
        partitions = store.keys.partitions
        why = compare(archive, StoreState(store.identity, last_epoch, streams, partitions))
        # The streams of an epoch that was given up meanwhile are gone, which says nothing.
        if why is None or await _epochs(store) == (last_epoch, epochs):
            return why


async def replaced(store: Store) -> set[int]:
    """Return the epochs that the store has begun and left."""
    last_epoch, epochs = await _epochs(store)
    return set(range(1, last_epoch + 1)) - set(epochs)


async def _epochs(store: Store) -> tuple[int, list[int]]:
    """Return the highest epoch that was given, and those that take ratings and will go on to."""
    pointer = await store.generations.live()
    abandoned = int(await store.redis.hget(store.keys.live, "abandoned") or 0)
    return pointer.last_epoch, sorted({pointer.epoch, pointer.pending} - {0, abandoned})


async def _streams(store: Store, epoch: int, ends: Mapping[int, Position]) -> dict[int, StreamState]:
    progress = await store.stream.progress(epoch)
    # An archive may be from before a store moved to fewer partitions.
    ends = {partition: end for partition, end in ends.items() if partition in progress}
    found = await store.stream.entries_at(epoch, to_look_up(ends, progress))
    return {
        partition: StreamState(progress.get(partition, Progress()), found.get(partition))
        for partition in {*progress, *ends}
    }
