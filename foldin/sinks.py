"""Where an import writes: straight to the store, or through the API as any client would.

Invariant: a target takes a call whole or raises, and the same call may be made again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Protocol

import msgspec
import numpy as np

from factors import Scale
from featurestore.errors import StoreError, StoreFull, StoreRefused, StoreUnavailable, StreamFull
from featurestore.generations.served import wait_for_scale
from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import ContextField, ContextKind, ContextRefused, ContextSchema
from featurestore.ratings.event_types import RATING, codes_taken, unknown_type
from featurestore.settings import DEFAULT_SCALE, StoreSettings, format_scale
from featurestore.store import Store
from foldin.address import api_client, find_api, stack_on
from foldin.errors import StoppedError
from foldin.settings import CONTEXT_PREFIX, FrontDoorSettings, ImportOptions
from foldin_client import AsyncClient, BusyError, FoldinError, NoAnswerError, ProblemError, problems
from foldin_client.models import ContextFieldBody, EventIn, RatingIn, Status
from processes.errors import CannotStartError
from processes.settings import api_key_of, load

# Where an API that is busy does not say when to come again.
AGAIN_S = 1.0
# Here a late answer does no harm, and a store that is busy with large batches answers late.
STORE_TIMEOUT_S = 15.0
SERVED_WITHIN_S = 10.0  # a prior is published and loaded within one
Context = Mapping[str, float | str] | None
Row = tuple[bytes, bytes, float, float, bytes | None, Context]
"""User id, item id, rating, seconds since 1970; in a file with types the type, whose rating is its value; the
context by field.
"""


class SinkBusyError(Exception):
    """The target takes nothing now: the same call may be made after `retry_after_s`.

    `full`: ratings arrive faster than they are archived, or there is no room; otherwise it does not answer.
    """

    def __init__(self, reason: str, retry_after_s: float, *, full: bool) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.full = full


class RowRefusedError(Exception):
    """The target refuses one row of a call, `position` from 0, and so took none. `field`: what it refuses of
    it, as `context.hour`; empty where it does not say.
    """

    def __init__(self, reason: str, position: int, field: str = "") -> None:
        super().__init__(reason)
        self.position = position
        self.field = field


class Sink(Protocol):
    """One target. `epoch`: of the history that it takes, 0 where that is unknown; `scale`: None where none is
    decided yet.
    """

    name: str
    batch_rows: int
    scale: Scale | None
    epoch: int

    async def context_schema(self) -> ContextSchema:
        """Return the fields of contexts that are known. Raises CannotStartError."""

    async def name_fields(self, fields: Sequence[ContextField]) -> None:
        """Name fields of contexts. Raises CannotStartError."""

    async def decide(self, scale: Scale) -> Scale:
        """Decide on the scale; return the one that holds. Raises CannotStartError."""

    async def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of one call. Raises SinkBusyError, RowRefusedError, StoppedError."""

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
        self.scale = store.scale.value if store.scale.decided else None

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

    async def name_fields(self, fields: Sequence[ContextField]) -> None:
        """As in Sink."""
        try:
            await self._store.contexts.tell([ContextField(each.name, each.kind) for each in fields])
        except (StoreError, ContextRefused) as exc:
            raise CannotStartError(f"{self.name} does not take the fields of the contexts: {exc}") from exc

    async def decide(self, scale: Scale) -> Scale:
        """As in Sink."""
        try:
            await self._store.scale.decide(scale)
            # Until then what answers knows no ratings on this scale.
            await wait_for_scale(self._store.generations, self._store.scale, SERVED_WITHIN_S)
        except StoreError as exc:
            raise CannotStartError(f"{self.name} does not take a scale ({exc})") from exc
        return self._store.scale.value

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            # As a service does: past it the disk would fill up all the same.
            if (reason := await self._store.room.lacking()) is not None:
                raise StoreFull(f"{reason} has no room", reason)
            # Before the ratings are there, so that no first fit begins between the two.
            await self._store.leases.keep_import()
            users, items, values, times, types, contexts = zip(*rows, strict=True)
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
            position = -1 if exc.row is None else exc.row
            raise RowRefusedError(f"context: {exc}", position, f"{CONTEXT_PREFIX}{exc.name}") from exc
        except StreamFull as exc:
            raise SinkBusyError("the trainer archives what it has", exc.retry_after_s, full=True) from exc
        except StoreFull as exc:
            raise SinkBusyError(f"ratings are refused ({exc})", exc.retry_after_s, full=True) from exc
        except StoreUnavailable as exc:
            raise SinkBusyError(f"the store does not answer ({exc})", exc.retry_after_s, full=False) from exc
        except StoreError as exc:
            raise StoppedError(f"the store refuses the ratings: {exc}") from exc

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
        # The mark of a running import expires by itself if the store does not answer.
        with suppress(StoreError):
            await self._store.leases.end_import()
        await self._store.close()


class ApiSink:
    """`POST /ratings`, a call at a time in each lane, so that the order of the file is kept."""

    batch_rows = 5_000  # of the 10,000 that a call may have: half a megabyte of JSON
    epoch = 0

    def __init__(self, client: AsyncClient, scale: Scale | None) -> None:
        self._client = client
        self.name = f"the API at {client.url}"
        self.scale = scale

    @classmethod
    async def open(cls, url: str, key: str | None) -> "ApiSink":
        """Connect to the API at `url`. Raises CannotStartError where none answers."""
        client = api_client(url, key)
        try:
            status = await client.status()
        except FoldinError as exc:
            await client.aclose()
            code = exc.status if isinstance(exc, ProblemError) else 0
            if code == HTTPStatus.UNAUTHORIZED:
                why = (
                    f"the API at {client.url} asks for a key: give one with the role rate in FOLDIN_API_KEY, "
                )
                why += "or by --key-file"
            elif code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                why = f"the API at {client.url} is not ready (status {code}): try again soon"
            elif isinstance(exc, NoAnswerError):
                reason = exc.__cause__ or exc  # the error itself names the address once more
                why = f"no API answers at {client.url} ({reason}): start one with `foldin up`, "
                why += "or give --url or --data"
            else:
                why = f"what answers at {client.url} is no Foldin API: give another --url"
            raise CannotStartError(why) from exc
        return cls(client, _scale_of(status) if status.scale_decided else None)

    async def context_schema(self) -> ContextSchema:
        """As in Sink."""
        try:
            told = (await self._client.get_schema()).context
            kinds = msgspec.convert({name: each.kind for name, each in told.items()}, dict[str, ContextKind])
        except (FoldinError, msgspec.ValidationError) as exc:
            raise CannotStartError(str(exc)) from exc
        # Their places and codes are the store's.
        return ContextSchema(
            tuple(ContextField(name, kinds[name], tuple(each.categories)) for name, each in told.items())
        )

    async def name_fields(self, fields: Sequence[ContextField]) -> None:
        """As in Sink."""
        try:
            await self._client.put_schema(
                context={each.name: ContextFieldBody(kind=each.kind) for each in fields}
            )
        except problems.ForbiddenError as exc:
            names = ", ".join(each.name for each in fields)
            raise CannotStartError(
                f"{self.name} has no field of contexts {names}: name them by PUT /schema, or import with a "
                "key with the role operate this once"
            ) from exc
        except FoldinError as exc:
            raise CannotStartError(str(exc)) from exc

    async def decide(self, scale: Scale) -> Scale:
        """As in Sink."""
        try:
            await self._client.decide_scale(low=scale.low, high=scale.high, step=scale.step)
        except problems.ScaleDecidedError:
            return _scale_of(await self._client.status())
        except problems.ForbiddenError as exc:
            if scale != DEFAULT_SCALE:
                raise CannotStartError(
                    f"the scale of {self.name} is not decided, and {format_scale(scale)} is not the default: "
                    "import with a key with the role operate this once"
                ) from exc
        except FoldinError as exc:
            raise CannotStartError(str(exc)) from exc
        return scale

    async def write(self, rows: Sequence[Row]) -> None:
        """As in Sink."""
        try:
            if any(kind for *_, kind, _ in rows):
                await self._client.post_events(map(_event, rows))
            else:
                await self._client.rate(map(_rating, rows))
        except NoAnswerError as exc:
            raise SinkBusyError(str(exc), AGAIN_S, full=False) from exc
        except BusyError as exc:
            full = exc.status == HTTPStatus.TOO_MANY_REQUESTS
            wait_s = AGAIN_S if exc.retry_after_s is None else exc.retry_after_s
            raise SinkBusyError(exc.detail or str(exc), wait_s, full=full) from exc
        except FoldinError as exc:
            if isinstance(exc, ProblemError) and exc.row is not None:
                raise RowRefusedError(exc.detail, exc.row, exc.field or "") from exc
            raise StoppedError(str(exc)) from exc

    async def close(self) -> None:
        """As in Sink."""
        await self._client.aclose()


def same_context(rows: Sequence[Row], position: int, field: str) -> list[int]:
    """Return the positions of the rows that give in a field of their contexts what the row at `position`
    does: the same category, or any number; that row alone where it gives nothing there.
    """
    given = [(context or {}).get(field) for *_, context in rows]
    refused = given[position]
    if refused is None:
        return [position]
    return [
        k
        for k, value in enumerate(given)
        if (value == refused if isinstance(refused, str) else isinstance(value, float | int))
    ]


def _scale_of(status: Status) -> Scale:
    low, high, step = status.scale
    if low is None or high is None:
        raise CannotStartError("the API tells no scale")
    return Scale(low, high, step)


def _rating(row: Row) -> RatingIn:
    user, item, rating, time, _, context = row
    told: dict[str, float | str | bool | None] | None = None if context is None else {**context}
    return RatingIn(user_id=user.decode(), item_id=item.decode(), rating=rating, timestamp=time, context=told)


def _event(row: Row) -> EventIn:
    user, item, rating, time, kind, context = row
    return EventIn(
        user_id=user.decode(),
        item_id=item.decode(),
        type=(kind or b"").decode(),
        # As it is without a value: of a type that means `shown` the service knows better.
        value=None if rating == 1.0 and kind != RATING.encode() else rating,
        timestamp=time,
        context=None if context is None else dict(context),
    )


async def open_sink(options: ImportOptions, settings: FrontDoorSettings) -> Sink:
    """Connect to `--url`, else the stack on `--data` (or ./data), else the store of the environment, else the
    API on this machine. Raises CannotStartError.
    """
    if options.url is not None:
        return await ApiSink.open(options.url, api_key_of(options.key, options.key_file))
    data, stack = stack_on(options.data, settings, ", or give --url")
    if stack is not None:
        return await StoreSink.open({**settings.inherited, **stack}, f"the stack on {data.resolve()}")
    if settings.redis_url is not None:
        return await StoreSink.open(settings.inherited, "the store in FOLDIN_REDIS_URL")
    return await ApiSink.open(find_api(None, None, settings), api_key_of(options.key, options.key_file))
