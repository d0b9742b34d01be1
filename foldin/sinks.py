"""Where an import writes: straight to the store, or through the API as any client would.

Both take a batch whole or raise; a batch may be given again. SinkBusyError means: wait so long, then again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

import aiohttp
import numpy as np

from evaluation.api_client import ApiBusyError, ApiClient, ApiError, Rating
from factors import Scale
from featurestore.errors import StoreError, StoreRefused, StoreUnavailable, StreamFull
from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.errors import ImportStoppedError
from processes.errors import CannotStartError
from processes.settings import load

# A call of 5,000 ratings is answered in 50 ms, but waits behind those of others.
API_TIMEOUT_S = 30.0
# Here a late answer does no harm, and a store that is busy with large batches answers late.
STORE_TIMEOUT_S = 15.0
Row = tuple[bytes, bytes, float, float]


class SinkBusyError(Exception):
    """Not now. `full`: ratings arrive faster than they are archived.

    Otherwise the other side does not answer.
    """

    def __init__(self, reason: str, retry_after_s: float, *, full: bool) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.full = full


class RowRefusedError(Exception):
    """The other side refuses one row of a batch, `position` counted from 0, and so took none."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


class Sink(Protocol):
    """One target. `epoch` is 0 where it does not matter."""

    name: str
    batch_rows: int
    scale: Scale
    epoch: int

    async def write(self, rows: Sequence[Row]) -> None:
        """Write a batch. Raises SinkBusyError, RowRefusedError, ImportStoppedError."""

    async def close(self) -> None:
        """Let the connection go."""


class StoreSink:
    """The store itself, by the same function that the API calls."""

    # About a thousand a partition, so that the syncs of the log are few; 5 ms of the store at a time.
    batch_rows = 16_000

    def __init__(self, store: Store, name: str, epoch: int) -> None:
        self._store = store
        self.name = name
        self.epoch = epoch
        self.scale = store.config.scale

    @classmethod
    async def open(cls, environ: Mapping[str, str], name: str) -> "StoreSink":
        """Connect with the settings in `environ`. Raises CannotStartError."""
        settings = load(StoreSettings, (), environ)
        try:
            store = await Store.open(
                replace(settings, timeout_s=max(settings.timeout_s, STORE_TIMEOUT_S)), hot=False
            )
            try:
                live = await store.generations.live()
            except StoreError:
                await store.close()
                raise
        except StoreRefused as exc:
            raise CannotStartError(" ".join(str(exc).split())) from exc
        except StoreError as exc:
            raise CannotStartError(
                f"{name} does not answer ({exc}): start it, or give --url or --data"
            ) from exc
        return cls(store, name, live.epoch)

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            users, items, values, times = zip(*rows, strict=True)
            await self._store.ratings.append_columns(
                Columns(users, items, np.array(values, dtype=np.float64), np.array(times, dtype=np.float64))
            )
        except StreamFull as exc:
            raise SinkBusyError("the trainer archives what it has", exc.retry_after_s, full=True) from exc
        except StoreUnavailable as exc:
            raise SinkBusyError(f"the store does not answer ({exc})", exc.retry_after_s, full=False) from exc
        except StoreError as exc:
            raise ImportStoppedError(f"the store refuses the ratings: {exc}") from exc

    async def close(self) -> None:
        """As in Sink."""
        await self._store.close()


class ApiSink:
    """`POST /ratings`, a call at a time in each lane, so that the order of the file is kept."""

    batch_rows = 5_000  # of the 10,000 that a call may have: half a megabyte of JSON
    epoch = 0

    def __init__(self, session: aiohttp.ClientSession, client: ApiClient, scale: Scale) -> None:
        self._session = session
        self._client = client
        self.name = f"the API at {client.url}"
        self.scale = scale

    @classmethod
    async def open(cls, url: str) -> "ApiSink":
        """Connect to the API at `url`. Raises CannotStartError where none answers."""
        session = aiohttp.ClientSession()
        client = ApiClient(session, url, timeout_s=API_TIMEOUT_S)
        try:
            status = await client.status()
        except ApiError as exc:
            await session.close()
            if exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                why = f"the API at {client.url} is not ready (status {exc.status}): try again soon"
            elif isinstance(exc, ApiBusyError):
                why = f"no API answers at {client.url} ({exc}): start one with `foldin up`, or give --data"
            else:
                why = f"what answers at {client.url} is no Foldin API: give another --url"
            raise CannotStartError(why) from exc
        return cls(session, client, Scale(*status.scale))

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            await self._client.rate(
                [Rating(user.decode(), item.decode(), rating, time) for user, item, rating, time in rows]
            )
        except ApiBusyError as exc:
            full = exc.status == HTTPStatus.TOO_MANY_REQUESTS
            raise SinkBusyError(exc.detail, exc.retry_after_s, full=full) from exc
        except ApiError as exc:
            if exc.row is not None:
                raise RowRefusedError(exc.detail, exc.row) from exc
            raise ImportStoppedError(str(exc)) from exc

    async def close(self) -> None:
        """As in Sink."""
        await self._session.close()
