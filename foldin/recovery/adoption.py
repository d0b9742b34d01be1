"""The archive follows a store that was filled from it. Invariant: it is moved to the trash only when all its
ratings are in the store, and no trainer leads.

A trainer stops beside a store that is not its archive's. After a restore the archive is the older of the two.
"""

import asyncio
import time
import uuid
from collections.abc import Collection

from featurestore.errors import LeaseLost, StoreUnavailable
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.retries import Say, has_leader, retried
from processes.errors import CannotStartError
from trainer.archive.identity import ArchiveState, read_identity
from trainer.archive.listing import read_ends
from trainer.archive.root import ArchiveRoot
from trainer.consume.matching import WHAT_TO_DO, difference, match, replaced
from trainer.errors import ArchiveFailedError, ArchiveWaitsError
from trainer.leadership import Leadership
from trainer.settings import TrainerSettings
from trainer.threads import Threads

# To read the ids of 100 million archived ratings takes less; nothing waits for this lease.
_LEASE_S = 120.0
# A trainer that starts, looks, and ends again is gone after a second or two.
_PATIENCE_S = 20.0


async def mismatch(store: Store, settings: TrainerSettings) -> str | None:
    """Return why the archive here keeps trainers from leading in this store; None where it does not.

    Raises `ArchiveRefusedError` for an archive of a newer version, `StoppedError` where the archive
    of a history that the store has cannot be read.
    """
    # It has compared the two itself, and would have stopped.
    if await has_leader(store):
        return None
    state = await asyncio.to_thread(_state, settings, await retried(replaced, store))
    return await retried(difference, store, state)


async def must_adopt(store: Store, settings: TrainerSettings) -> bool:
    """Say whether the archive must go to the trash before a trainer leads in this store. Raises as
    `mismatch`.
    """
    return await mismatch(store, settings) is not None


async def require_match(store: Store, settings: TrainerSettings) -> None:
    """Raise `CannotStartError` where the archive here is not the store's: no trainer brings the two
    together.
    """
    if why := await mismatch(store, settings):
        raise CannotStartError(f"{why}; {WHAT_TO_DO}")


async def was_put_back(store: Store, settings: TrainerSettings) -> bool:
    """Say whether the store is an older copy of the one that the archive here belongs to. Raises as
    `must_adopt`.
    """
    identity = await asyncio.to_thread(read_identity, settings.archive_folder)
    return identity == store.identity and await must_adopt(store, settings)


async def adopt(store: Store, settings: TrainerSettings, say: Say) -> None:
    """Move what the archive has to its trash, and say whose it is from now on. Safe to repeat.

    Raises `StoppedError`.
    """
    say("The archive was another store's: it goes to the trash, and this store's takes its place.")
    began = time.monotonic()
    while True:
        try:
            await _adopt_once(store, settings)
            return
        except (ArchiveWaitsError, LeaseLost, StoreUnavailable) as exc:
            if time.monotonic() - began > _PATIENCE_S:
                raise StoppedError(f"{exc}: stop the trainer, and run this again") from exc
            await asyncio.sleep(0.2)
        except ArchiveFailedError as exc:
            raise StoppedError(f"{exc}: free it, and run this again") from exc


async def _adopt_once(store: Store, settings: TrainerSettings) -> None:
    began_at = time.monotonic()
    lease = await store.leases.acquire(uuid.uuid4().hex, round(1000 * _LEASE_S))
    if lease is None:
        # A trainer leads: it has found the archive to be the store's.
        return
    try:
        # As a trainer that leads does it: none begins while files are moved.
        leadership = Leadership(lease, _LEASE_S, began_at)
        root = await asyncio.to_thread(ArchiveRoot, settings.archive_folder, guard=leadership.check)
        threads = Threads()
        try:
            await match(store, root, leadership, threads, adopt=True, restored=True)
        finally:
            await threads.drained()
            root.leave()
    finally:
        await lease.release()


def _state(settings: TrainerSettings, left: Collection[int]) -> ArchiveState:
    """What the archive says of itself, read beside the process that holds it. `left`: the epochs that the
    store has begun and left.
    """
    root = settings.archive_folder
    ends = {}
    try:
        for folder in root.glob("epoch-*") if root.is_dir() else ():
            number = folder.name.removeprefix("epoch-")
            if number.isdigit() and folder.is_dir():
                ends[int(number)] = read_ends(folder, replaced=int(number) in left)
        return ArchiveState(read_identity(root), ends)
    except ArchiveFailedError as exc:
        raise StoppedError(f"{exc}: put the file away if it never can be, and run this again") from exc
