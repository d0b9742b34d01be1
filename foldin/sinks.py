"""Where an import writes: straight to the store, or through the API as any client would.

Both take a batch whole or raise; a batch may be given again. SinkBusyError means: wait so long, then again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import aiohttp
import msgspec
import numpy as np

from factors import Scale
from featurestore.errors import StoreError, StoreRefused, StoreUnavailable, StreamFull
from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.errors import ImportStoppedError
from processes.errors import CannotStartError
from processes.settings import load

API_TIMEOUT_S = 30.0
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
            # Nobody waits for one answer here, and a store that is busy with large batches answers late.
            patient = replace(settings, timeout_s=max(settings.timeout_s, STORE_TIMEOUT_S))
            store = await Store.open(patient, hot=False)
        except StoreRefused as exc:
            raise CannotStartError(" ".join(str(exc).split())) from exc
        except StoreError as exc:
            raise CannotStartError(
                f"{name} does not answer ({exc}): start it, or give --url or --data"
            ) from exc
        try:
            live = await store.generations.live()
        except StoreError as exc:
            await store.close()
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


class _RatingRow(msgspec.Struct):
    user_id: str
    item_id: str
    rating: float
    timestamp: float


class _Problem(msgspec.Struct):
    detail: str = ""
    code: str = ""
    row: int | None = None


class _Status(msgspec.Struct):
    scale: tuple[float, float, float | None]


class ApiSink:
    """`POST /ratings` with NDJSON, one call after the other, so that the order of the file is kept."""

    batch_rows = 5_000
    epoch = 0

    def __init__(self, session: aiohttp.ClientSession, url: str, scale: Scale) -> None:
        self._session = session
        self._url = url
        self._encoder = msgspec.json.Encoder()
        self.name = f"the API at {url}"
        self.scale = scale

    @classmethod
    async def open(cls, url: str) -> "ApiSink":
        """Ask for what is there. Raises CannotStartError where no API answers."""
        address = url.rstrip("/")
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=API_TIMEOUT_S))
        try:
            async with session.get(f"{address}/status") as response:
                if response.status >= 500:
                    raise CannotStartError(
                        f"the API at {address} is not ready (status {response.status}): try again soon"
                    )
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            await session.close()
            raise CannotStartError(
                f"no API answers at {address} ({exc}): start one with `foldin up`, or give --url or --data"
            ) from exc
        except CannotStartError:
            await session.close()
            raise
        try:
            scale = Scale(*msgspec.json.decode(body, type=_Status).scale)
        except msgspec.MsgspecError as exc:
            await session.close()
            raise CannotStartError(f"what answers at {address} is no Foldin API: give another --url") from exc
        return cls(session, address, scale)

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        body = self._encoder.encode_lines(
            [_RatingRow(user.decode(), item.decode(), rating, time) for user, item, rating, time in rows]
        )
        try:
            async with self._session.post(
                f"{self._url}/ratings", data=body, headers={"Content-Type": "application/x-ndjson"}
            ) as response:
                answer, status = await response.read(), response.status
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise SinkBusyError(f"the API does not answer ({exc!r})", 1.0, full=False) from exc
        if status < 300:
            return
        try:
            problem = msgspec.json.decode(answer, type=_Problem)
        except msgspec.MsgspecError:
            problem = _Problem(detail=answer[:200].decode("utf-8", "replace"))
        if status in {429, 503}:
            wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 1.0
            raise SinkBusyError(problem.detail or f"status {status}", wait_s, full=status == 429)
        if problem.row is not None:
            raise RowRefusedError(problem.detail, problem.row)
        raise ImportStoppedError(f"the API answered {status} {problem.code}: {problem.detail}")

    async def close(self) -> None:
        """As in Sink."""
        await self._session.close()
