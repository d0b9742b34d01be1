"""A worker's copy of the API keys. Invariant: a key that was removed from the store lets no request in for
longer than two seconds, while the store answers.

While it does not, the last copy holds: a restart of the store must not shut every client out. That keys are
asked for is besides marked by a file in the folder of the workers: one that starts when the store was emptied
asks for keys as its siblings do.

One worker of a host writes to the audit log which keys there are when it starts, and each change:
`foldin keys` asks the store, not the service.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from featurestore.access import ApiKey
from featurestore.errors import StoreError
from featurestore.store import Store
from processes.errors import CannotStartError
from service.http.access import UNKNOWN, Access
from service.settings import ServiceSettings, WorkerSlot

log = logging.getLogger("foldin.service")
audit = logging.getLogger("foldin.audit")

# With the store's answer well within the two seconds that are promised.
POLL_S = 0.5
HOW_TO_START = (
    "other machines can reach this address, and there is no API key yet: make one by `foldin keys add NAME "
    "--role operate`, or say FOLDIN_ACCESS=open to let everyone in"
)
MARK = "keys-asked-for"


@asynccontextmanager
async def following_keys(
    store: Store, settings: ServiceSettings, slot: WorkerSlot, *, loopback: bool
) -> AsyncIterator[Access]:
    """Yield an `Access` that follows the keys of the store.

    Raises CannotStartError where other machines could ask without a key, which nothing has said;
    `StoreError`.
    """
    asks = settings.access != "open"
    access = Access(asks=asks, loopback=loopback, hosts=settings.hosts, origins=settings.origins)
    mark = None if slot.folder is None else slot.folder / MARK
    if mark is not None and mark.exists():
        access.close()
    there, _ = access.update(await store.access.load())
    if access.asks and not access.had_key:
        raise CannotStartError(HOW_TO_START)
    if slot.worker == 0 and there:
        # So that what changes while no worker tells of it is found between two of these lines.
        audit.info("keys at the start %s", _names(there))
    _leave(mark, access)
    if access.asks and not access.known:
        log.warning("asks for API keys, and all were removed: make one by `foldin keys add`")
    elif access.asks:
        log.info("asks for API keys known=%d", access.known)
    elif loopback and asks:
        log.info("asks for no API key: it listens on this machine alone, and there is none yet")
    else:
        log.warning("asks for no API key, as FOLDIN_ACCESS=open says")
    task = asyncio.create_task(_follow(store, access, mark, tells=slot.worker == 0), name="follow the keys")
    try:
        yield access
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _leave(mark: Path | None, access: Access) -> None:
    if mark is not None and access.had_key and not mark.exists():
        mark.touch()


async def _follow(store: Store, access: Access, mark: Path | None, *, tells: bool) -> None:
    failing = False
    while True:
        await asyncio.sleep(POLL_S)
        try:
            added, gone = access.update(await store.access.load())
            if tells and (added or gone):
                audit.info("keys changed added=%s removed=%s", _names(added), _names(gone))
            _leave(mark, access)
            failing = False
        except StoreError as exc:
            if not failing:
                log.warning("the keys cannot be read, the last copy holds reason=%s", exc)
            failing = True
        except Exception:  # the edge of the loop: were it to end, a removed key would stay
            log.exception("the keys cannot be read, the last copy holds")


def _names(keys: list[ApiKey]) -> str:
    """Return keys as the audit log has them: never the key itself."""
    return ",".join(f"{key.name}:{key.role}" for key in keys) or UNKNOWN
