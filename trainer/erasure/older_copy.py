"""Erase users again from a store that was put back from an older copy, which does not know of their erasures.

Invariant: of a user in the ledger of erasures nothing stays that is not known to have come after the erasure.
What is known: events that the archive has kept, or that wait in the streams, and are later than it;
attributes that say since when they are these.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import StoreError, StoreUnavailable, UserChanged
from featurestore.item_registry import ItemRegistry
from featurestore.keys import shown_key
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from featurestore.users.records import StoredUser
from trainer import log
from trainer.archive.erasures import Ledger, readable_ledgers
from trainer.archive.identity import read_since
from trainer.archive.listing import uncovered
from trainer.archive.reading import events_of, scan_users, waiting_tables
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import read_parts
from trainer.errors import SegmentDamagedError, SegmentGoneError
from trainer.retry import with_retries

# As often as a leader looks after other things: a copy is put back once in years.
_LOOK_S = 1.0
# Between two steps through the attributes: each lasts a fraction of a millisecond, so that the store is left
# free most of the time.
_PAUSE_S = 0.002
# What says of an event whose it is, of what, of which type, and when it came in.
_COLUMNS = ("user_id", "item_id", "rating", "time", "stream_ms", "stream_seq", "type_code")

Key = tuple[bytes, int, bytes]
"""Item id, code of the event's type, and the bits of rating and time."""


async def erase_again(store: Store, root: ArchiveRoot) -> None:
    """Forget those users of the live epoch who were erased after the copy was made, as a client would do it.

    What such a user rated since stays. Safe to repeat. Raises `StoreRefused`, `LeaseLost`.
    """
    ledgers = await with_retries(asyncio.to_thread, readable_ledgers, root.root)
    epoch = (await with_retries(store.generations.live)).epoch
    users = await _erased_users(store, epoch, ledgers) if ledgers else {}
    ratings = await _erase_ratings_again(store, root, epoch, ledgers, users) if users else 0
    # After the ratings: these took the attributes of their users along.
    attributes = await with_retries(erase_attributes_again, store, epoch, ledgers)
    log.event("users_erased_again", epoch=epoch, users=ratings, attributes=attributes)


async def keep_attributes_erased(store: Store, root: ArchiveRoot) -> None:
    """Remove attributes of erased users whenever the store may be an older copy of itself, until cancelled.

    An erasure of a user without ratings leaves no event, so that nothing else tells that a copy is older.
    """
    seen, looked_through = -1, ""
    while True:
        sockets = store.bulk.reconnects_total
        if sockets != seen:
            try:
                run = await _run_of(store)
                if run and run == looked_through:
                    # The connection alone was lost.
                    seen = sockets
                    continue
                ledgers = await with_retries(asyncio.to_thread, readable_ledgers, root.root)
                since_ms = await with_retries(asyncio.to_thread, read_since, root.root)
                epoch = (await store.generations.live()).epoch
                users = await erase_attributes_again(store, epoch, ledgers, since_ms)
                if users:
                    log.event("attributes_erased_again", users=users)
                seen, looked_through = sockets, run
            except StoreUnavailable:
                # The consumer says so.
                pass
            except StoreError as exc:
                log.warning("attributes_not_looked_at", error=str(exc))
        await asyncio.sleep(_LOOK_S)


async def _run_of(store: Store) -> str:
    """Return what is another after each start of the store, of any of its servers, and where one took over
    what another one had; '' where one does not say.
    """
    said = await store.redis.each(["INFO", "server"], ["INFO", "replication"])
    runs = [(server.get("run_id"), replication.get("master_replid")) for server, replication in said]
    return " ".join(sorted(f"{run} {history}" for run, history in runs)) if all(map(all, runs)) else ""


async def erase_attributes_again(
    store: Store, epoch: int, ledgers: Sequence[Ledger], since_ms: int = 0
) -> int:
    """Remove attributes that were given before an erasure of their user in the ledgers, if that was later
    than `since_ms`; return of how many users. A trainer has the files of the store written anew. Users who
    are gone leave the active ones. `epoch`: the live one.

    Safe to repeat. Raises `StoreError`.
    """
    again = 0
    if not ledgers:
        return again
    async for found in store.attributes.given_at():
        erased = _erased_at(ledgers, list(found))
        for user_id, given_ms in found.items():
            at_ms = erased[user_id]
            if given_ms is None:
                key = shown_key(store.keys.attributes(user_id))
                log.warning("attributes_damaged", key=key, erased=at_ms > since_ms)
            # Where it is not known when they were given: of a user who was erased they go.
            if at_ms <= since_ms or (given_ms or 0) > at_ms:
                continue
            # First: where this is cut off in between, the attributes are what it is repeated by.
            await store.commands.ask("erase", epoch=epoch, user=user_id, at_ms=at_ms)
            await store.attributes.erase(epoch, user_id, at_ms)
            again += 1
        await asyncio.sleep(_PAUSE_S)
    # Of a copy that was made between the two steps of forgetting a user.
    erased = _erased_at(ledgers, await store.active.ids(epoch))
    listed = [user_id for user_id, at_ms in erased.items() if at_ms > since_ms]
    for user in await store.users.stored(epoch, listed):
        if not user.history:
            await store.active.remove(epoch, user.user_id)
    return again


async def _erase_ratings_again(
    store: Store, root: ArchiveRoot, epoch: int, ledgers: list[Ledger], users: Mapping[bytes, StoredUser]
) -> int:
    """Forget users of the ledger whose histories have ratings from before; return how many these were."""
    at_ms = _erased_at(ledgers, list(users))
    # What could not be read may have what came after the erasure, which would be erased with the rest.
    known = await with_retries(asyncio.to_thread, _known, root, store.identity, at_ms)
    registry = store.items(epoch)
    left, again = list(users.values()), 0
    while left:
        await with_retries(registry.refresh)
        # After the histories: of what these have nothing is missing then.
        async for table in waiting_tables(store, epoch):
            _add(known, table, at_ms)
        changed = []
        for user in left:
            keep = _kept(user, known[user.user_id], registry)
            if keep is None:
                # The copy is from after the erasure.
                continue
            # For what a mark in the stream does not reach: the files of the store. First: where this is cut
            # off in between, the ratings from before are what it is repeated by.
            at = at_ms[user.user_id]
            await with_retries(store.commands.ask, "erase", epoch=epoch, user=user.user_id, at_ms=at)
            try:
                # In one step: what was forgotten and not yet written back would be known from nowhere.
                await with_retries(store.ratings.forget, user.user_id, keep, user.n)
                again += 1
            except UserChanged:
                changed.append(user)
        # What services took meanwhile, or what is there where the answer to the step was lost.
        found = await with_retries(store.users.stored, epoch, [user.user_id for user in changed])
        left = [user for user in found if user.history]
    return again


def _kept(user: StoredUser, known: set[Key], registry: ItemRegistry) -> Columns | None:
    """Return what of a history is `known` to have come after the erasure; None where that is all of it."""
    events, _, _ = events_of([user])
    rows, codes = events.item_row.tolist(), events.type_code
    item_ids = [registry.ids[row] if row < len(registry) else b"" for row in rows]
    values = item_ids, codes.tolist(), events.rating.tolist(), events.time.tolist()
    kept = [k for k, each in enumerate(zip(*values, strict=True)) if each[0] and _key(*each) in known]
    if len(kept) == len(events):
        return None
    return Columns(
        [user.user_id] * len(kept),
        [item_ids[k] for k in kept],
        events.rating[kept],
        events.time[kept],
        codes[kept],
        context=None if events.context is None else events.context[kept],
    )


async def _erased_users(store: Store, epoch: int, ledgers: list[Ledger]) -> dict[bytes, StoredUser]:
    """Return the users of an epoch who are in the ledger and have a history, by id."""
    found: dict[bytes, StoredUser] = {}
    async for _, users in scan_users(store, epoch, with_retries):
        erased = _erased_at(ledgers, [user.user_id for user in users])
        found |= {user.user_id: user for user in users if erased[user.user_id] and user.history}
    return found


def _erased_at(ledgers: Iterable[Ledger], user_ids: list[bytes]) -> dict[bytes, int]:
    """Return when each user was last erased, in milliseconds by the store's clock; 0 where never."""
    times = np.zeros(len(user_ids), dtype=np.int64)
    for ledger in ledgers:
        np.maximum(times, ledger.erased_at(user_ids), out=times)
    return dict(zip(user_ids, times.tolist(), strict=True))


def _archived(root: ArchiveRoot, identity: str, users: Collection[bytes]) -> Iterable[pa.Table]:
    """Yield what the archive and its trash have of users, whichever the epoch."""
    folders: list[Path] = [root.folder(number) for number in root.epochs()]
    folders += [entry.path for entry in root.trash.entries() if entry.identity == identity]
    names = pa.array([user_id.decode() for user_id in users])
    for folder in folders:
        for _, path in uncovered(folder):
            try:
                for part in read_parts(path, _COLUMNS):
                    yield part.filter(pc.is_in(part["user_id"], value_set=names))
            except (SegmentDamagedError, SegmentGoneError) as exc:
                log.warning("segment_damaged", segment=path.name, why=str(exc))


def _known(root: ArchiveRoot, identity: str, at_ms: Mapping[bytes, int]) -> dict[bytes, set[Key]]:
    """Return the archived events of each user that came after the erasure. Blocking. Raises
    `ArchiveFailedError`.
    """
    known: dict[bytes, set[Key]] = {user_id: set() for user_id in at_ms}
    for table in _archived(root, identity, at_ms):
        _add(known, table, at_ms)
    return known


def _add(known: dict[bytes, set[Key]], table: pa.Table, at_ms: Mapping[bytes, int]) -> None:
    values = [table[name].to_pylist() for name in _COLUMNS]
    for user, item, rating, time, ms, seq, code in zip(*values, strict=True):
        user_id = user.encode()
        # A rebuilt archive has the time of the rebuild in place of the number: it was there by then.
        if user_id in at_ms and (ms or seq) >= at_ms[user_id]:
            known[user_id].add(_key(item.encode(), code, rating, time))


def _key(item_id: bytes, code: int, rating: float, time: float) -> Key:
    # Bits, not numbers: an unknown time is NaN, which equals nothing.
    return item_id, code, np.array([rating, time]).tobytes()
