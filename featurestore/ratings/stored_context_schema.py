"""The schema of contexts as a store has it: followed by all processes, its categories extended by the ratings
that come in.

Invariant: a rating that is refused leaves no category behind, as far as that is known before it is written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from factors import Float32s
from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.keys import Keys
from featurestore.ratings.context_schema import (
    ContextField,
    ContextRefused,
    ContextSchema,
    UnknownContextField,
    Values,
    schema_from_bytes,
    schema_to_bytes,
)
from featurestore.ratings.stored_document import FOLLOWED_S, StoredDocument

T = TypeVar("T")
V = TypeVar("V")
Check = Callable[[], Awaitable[None]]

# Values of a call that are read in about 1 ms; more are read in a thread.
_AT_ONCE = 2_000


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
