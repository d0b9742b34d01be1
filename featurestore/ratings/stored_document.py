"""The JSON documents of the store that all processes follow, and change by compare-and-set: the types of
events, and the schema of contexts, whose categories are extended by the ratings that come in.

Invariant: a change is made from what is stored at that moment, or not at all. A rating that is refused leaves
no category behind, as far as that is known before it is written.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from factors import Float32s
from featurestore.client import Client, digest_of_value
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.keys import Keys, shown_key
from featurestore.ratings.context_schema import (
    ContextField,
    ContextRefused,
    ContextSchema,
    UnknownContextField,
    Values,
    schema_from_bytes,
    schema_to_bytes,
)
from featurestore.ratings.event_types import EventType

# A process that has read the document asks again after so long: each knows of a change within this time.
FOLLOWED_S = 1.0
# Parsed in about 0.1 ms; more is parsed in a thread.
_AT_ONCE_BYTES = 8_192
# As often another call may change the document in between.
_ATTEMPTS = 8
# Values of contexts of a call that are read in about 1 ms; more are read in a thread.
_AT_ONCE = 2_000

T = TypeVar("T")
V = TypeVar("V")
Check = Callable[[], Awaitable[None]]


class StoredDocument(Generic[T]):
    """Reads and changes one document. Every method may raise `StoreUnavailable`, and may then be repeated;
    `StoreDamaged` where what is stored cannot be read.

    `default`: what holds while nothing is stored; `to_bytes`, `from_bytes`: its format, the latter raises
    `ValueError` for anything else.
    """

    def __init__(
        self,
        client: Client,
        confirmation: Confirmation,
        *,
        key: bytes,
        default: T,
        to_bytes: Callable[[T], bytes],
        from_bytes: Callable[[bytes], T],
    ) -> None:
        self._key = key
        self._client = client
        self._confirmation = confirmation
        self._default = default
        self._to_bytes = to_bytes
        self._from_bytes = from_bytes
        self._kept = default
        # What was parsed last: of the same bytes it is the same document, and another one only of others.
        self._parsed: tuple[bytes | None, T] = (None, default)
        self._read_at = float("-inf")

    async def current(self) -> T:
        """Return the document as it was at most `FOLLOWED_S` ago."""
        if time.monotonic() - self._read_at > FOLLOWED_S:
            return await self.fresh()
        return self._kept

    async def fresh(self) -> T:
        """Return the document as it is now."""
        asked_at = time.monotonic()
        return self._keep(await self._read(await self._stored()), asked_at)

    async def known(self) -> T:
        """Return the same as `current`; while the store is away, or what it has cannot be read, the document
        as this process read it last. Raises nothing.
        """
        try:
            return await self.current()
        except (StoreUnavailable, StoreDamaged):
            return self._kept

    async def change(self, change: Callable[[T], T]) -> T:
        """Change the document in one step; return what it is then. Raises what `change` raises."""
        since = self._confirmation.begin(self._key)
        for _ in range(_ATTEMPTS):
            data = await self._stored()
            after = change(await self._read(data))
            args = [digest_of_value(data), self._to_bytes(after)]
            asked_at = time.monotonic()
            (reply,) = await self._client.call("put_text", ([self._key], args))
            if reply[0] == b"OK":
                await self._confirmation.wait(since)
                return self._keep(after, asked_at)
        raise StoreUnavailable(f"others are changing {shown_key(self._key)}", 0.1)

    async def _stored(self) -> bytes | None:
        data: Any = await self._client.get(self._key)
        return None if data is None else bytes(data)

    async def _read(self, data: bytes | None) -> T:
        if data is None:
            return self._default
        bytes_before, document = self._parsed
        if data == bytes_before:
            return document
        try:
            parse = self._from_bytes
            document = await asyncio.to_thread(parse, data) if len(data) > _AT_ONCE_BYTES else parse(data)
        except ValueError as exc:
            raise StoreDamaged(shown_key(self._key), str(exc)) from exc
        self._parsed = data, document
        return document

    def _keep(self, document: T, asked_at: float) -> T:
        # What is parsed in a thread may be there after what was asked for later.
        if asked_at >= self._read_at:
            self._kept, self._read_at = document, asked_at
        return document


EventTypes = StoredDocument[tuple[EventType, ...]]
"""The types by code."""


class StoredContextSchema(StoredDocument[ContextSchema]):
    """Reads and changes the schema of a store."""

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation) -> None:
        super().__init__(
            *(client, confirmation),
            key=keys.contexts,
            default=ContextSchema(),
            to_bytes=schema_to_bytes,
            from_bytes=schema_from_bytes,
        )

    async def rows(self, given: Sequence[Values | None], *, extend: Check | None = None) -> Float32s | None:
        """Return contexts as `ContextSchema.rows` does. `extend`: those of ratings, whose new categories are
        stored when it has raised nothing that refuses the ratings; without it those of questions, which are
        answered while the store is away.

        Raises what `ContextSchema.rows`, `ContextSchema.lacking` and `ContextSchema.extended` raise.
        """
        values = sum(len(each) for each in given if each)
        if not values:
            return None
        run = asyncio.to_thread if values > _AT_ONCE else _now
        schema = await (self.known() if extend is None else self.current())
        if extend is not None and await run(_lacks, (schema, given)):
            # By the newest one: what this process lacks others may have stored, and then it is no change.
            schema = await self.fresh()
            if lacking := await run(schema.lacking, given):
                await run(schema.extended, lacking)
                await extend()
                schema = await self.change(lambda before: before.extended(lacking))
        try:
            return await run(schema.rows, given)
        except UnknownContextField:
            # Another process may have stored it since this one asked.
            return await run((await self.fresh()).rows, given)

    async def check(self, fields: Sequence[ContextField]) -> None:
        """Raise what `tell` would raise of these fields."""
        (await self.fresh()).merged(ContextSchema(tuple(fields)))

    async def tell(self, fields: Sequence[ContextField]) -> ContextSchema:
        """Have these fields and categories; return what there is then. Raises what `ContextSchema.merged`
        raises.
        """
        told = ContextSchema(tuple(fields))
        schema = await self.fresh()
        if schema.merged(told) is schema:
            return schema
        return await self.change(lambda before: before.merged(told))

    async def delete(self, name: str) -> None:
        """Delete a field: no process takes it after this. Raises what `ContextSchema.without` raises."""
        await self.change(lambda before: before.without(name))
        # Each process goes by what it has read at most so long ago.
        await asyncio.sleep(FOLLOWED_S)


async def _now(compute: Callable[[V], T], given: V) -> T:
    return compute(given)


def _lacks(both: tuple[ContextSchema, Sequence[Values | None]]) -> bool:
    """Whether a schema, which may be of a moment ago, does not do for what is given."""
    schema, given = both
    try:
        return bool(schema.lacking(given))
    except ContextRefused:
        return True
