"""Where an import writes: straight to the store, or through the API as any client would.

Invariant: a target takes a call whole or raises, and the same call may be made again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import numpy as np

from evaluation.api_client import ApiBusyError, ApiClient, ApiError, Event, Rating
from factors import Scale
from featurestore.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable, StreamFull
from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import ContextRefused, ContextSchema
from featurestore.ratings.event_types import RATING, codes_taken, unknown_type
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.errors import ImportStoppedError
from foldin.settings import DEFAULT_API, FrontDoorSettings, ImportOptions
from processes.errors import CannotStartError
from processes.settings import load, secret_of

# A call of 5,000 ratings is answered in about 50 ms, but it may wait behind those of others.
API_TIMEOUT_S = 30.0
# Here a late answer does no harm, and a store that is busy with large batches answers late.
STORE_TIMEOUT_S = 15.0
DEFAULT_DATA = Path("data")  # as `foldin up` has it
Context = Mapping[str, float | str] | None
_Whole = tuple[bytes, bytes, float, float, bytes | None, Context]
# User id, item id, rating, seconds since 1970; in a file with types the type, whose rating is its value; in
# one with contexts the type or None, and the context by field.
Row = tuple[bytes, bytes, float, float] | tuple[bytes, bytes, float, float, bytes] | _Whole


class SinkBusyError(Exception):
    """The target takes nothing now: the same call may be made after `retry_after_s`.

    `full`: ratings arrive faster than they are archived, or there is no room; otherwise it does not answer.
    """

    def __init__(self, reason: str, retry_after_s: float, *, full: bool) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.full = full


class RowRefusedError(Exception):
    """The target refuses one row of a call, `position` from 0, and so took none."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


class Sink(Protocol):
    """One target. `epoch`: of the history that it takes, 0 where that is unknown."""

    name: str
    batch_rows: int
    scale: Scale
    epoch: int

    async def context_schema(self) -> ContextSchema:
        """Return the fields of contexts that are known. Raises CannotStartError."""

    async def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of one call. Raises SinkBusyError, RowRefusedError, ImportStoppedError."""

    async def close(self) -> None:
        """Close the connection."""


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

    async def context_schema(self) -> ContextSchema:
        """As in Sink."""
        try:
            return await self._store.contexts.fresh()
        except StoreError as exc:
            raise CannotStartError(f"{self.name} cannot be read ({exc})") from exc

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            # As a service does: past it the disk would fill up all the same.
            if (reason := await self._store.room.lacking()) is not None:
                raise StoreFull(f"{reason} has no room", reason)
            users, items, values, times, types, contexts = zip(*map(_whole, rows), strict=True)
            numbers = np.array(values, dtype=np.float64), np.array(times, dtype=np.float64)
            columns = Columns(users, items, *numbers)
            if any(types):
                columns = await self._typed(columns, types)
            if any(contexts):
                admit = partial(self._store.ratings.admit, columns)
                context = await self._store.contexts.rows(contexts, extend=admit)
                columns = replace(columns, context=context)
            await self._store.ratings.append_columns(columns)
        except ContextRefused as exc:
            raise RowRefusedError(f"context: {exc}", -1 if exc.row is None else exc.row) from exc
        except StreamFull as exc:
            raise SinkBusyError("the trainer archives what it has", exc.retry_after_s, full=True) from exc
        except StoreFull as exc:
            raise SinkBusyError(f"ratings are refused ({exc})", exc.retry_after_s, full=True) from exc
        except StoreUnavailable as exc:
            raise SinkBusyError(f"the store does not answer ({exc})", exc.retry_after_s, full=False) from exc
        except StoreError as exc:
            raise ImportStoppedError(f"the store refuses the ratings: {exc}") from exc

    async def _typed(self, columns: Columns, names: Sequence[bytes]) -> Columns:
        """Return events of types by name, held to the rules of the API. Raises RowRefusedError."""
        types = await self._store.event_types.current()
        taken = codes_taken(types)
        known = {name.encode(): code for name, code in taken.items()}
        for position, name in enumerate(names):
            if name not in known:
                raise RowRefusedError(unknown_type(name.decode(), taken), position)
        codes = np.array([known[name] for name in names], dtype=np.uint8)
        # Their value is the generation that has shown the item, which a file does not know: 0 is none.
        shown = np.isin(codes, [each.code for each in types if each.meaning == "shown"])
        return replace(columns, rating=np.where(shown, 0.0, columns.rating), type_code=codes)

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
    async def open(cls, url: str, key: str | None) -> "ApiSink":
        """Connect to the API at `url`. Raises CannotStartError where none answers."""
        session = aiohttp.ClientSession()
        client = ApiClient(session, url, key=key, timeout_s=API_TIMEOUT_S)
        try:
            status = await client.status()
        except ApiError as exc:
            await session.close()
            if exc.status == HTTPStatus.UNAUTHORIZED:
                why = (
                    f"the API at {client.url} asks for a key: give one with the role rate in FOLDIN_API_KEY, "
                )
                why += "or by --key-file"
            elif exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                why = f"the API at {client.url} is not ready (status {exc.status}): try again soon"
            elif isinstance(exc, ApiBusyError):
                reason = exc.__cause__ or exc  # the error itself names the address once more
                why = f"no API answers at {client.url} ({reason}): start one with `foldin up`, "
                why += "or give --url or --data"
            else:
                why = f"what answers at {client.url} is no Foldin API: give another --url"
            raise CannotStartError(why) from exc
        return cls(session, client, Scale(*status.scale))

    async def context_schema(self) -> ContextSchema:
        """As in Sink."""
        try:
            return await self._client.context_schema()
        except ApiError as exc:
            raise CannotStartError(str(exc)) from exc

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            whole = list(map(_whole, rows))
            if any(kind for *_, kind, _ in whole):
                await self._client.send_events([_event(row) for row in whole])
            else:
                await self._client.rate([_rating(row) for row in whole])
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


def _whole(row: Row) -> _Whole:
    padded: Any = (*row, None, None)[:6]
    whole: _Whole = padded
    return whole


def _rating(row: _Whole) -> Rating:
    user, item, rating, time, _, context = row
    return Rating(user.decode(), item.decode(), rating, time, context)


def _event(row: _Whole) -> Event:
    user, item, rating, time, kind, context = row
    # As it is without a value: of a type that means `shown` the service knows better.
    value = None if rating == 1.0 and kind != RATING.encode() else rating
    return Event(user.decode(), item.decode(), (kind or b"").decode(), value, time, context)


async def open_sink(options: ImportOptions, settings: FrontDoorSettings) -> Sink:
    """Connect to `--url`, else the stack on `--data` (or ./data), else the store of the environment, else the
    API on this machine. Raises CannotStartError.
    """
    key = secret_of(options.key, options.key_file)
    if options.url is not None:
        return await ApiSink.open(options.url, key)
    data = options.data or DEFAULT_DATA
    stack = running_stack(data)
    if stack is not None:
        return await StoreSink.open({**settings.inherited, **stack}, f"the stack on {data.resolve()}")
    if options.data is not None:
        raise CannotStartError(
            f"no stack runs on {data}: start one with `foldin up --data {data}`, or give --url"
        )
    if settings.redis_url is not None:
        return await StoreSink.open(settings.inherited, "the store in FOLDIN_REDIS_URL")
    return await ApiSink.open(DEFAULT_API, key)


def running_stack(data: Path) -> dict[str, str] | None:
    """Return the store settings of the stack that runs on a data directory, None where none does."""
    try:
        content = _stack_file(data)
        return {str(name): str(value) for name, value in content["store"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def running_stack_url(data: Path) -> str | None:
    """Return the address of the API of the stack that runs on a data directory, None where none does."""
    try:
        return str(_stack_file(data)["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stack_file(data: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((data / "stack.json").read_text("utf-8"))
    # Signal 0 is not sent: it fails where the process is gone, as after a kill.
    os.kill(int(content["pid"]), 0)
    return content
