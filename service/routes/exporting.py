"""Takes everything out again. Invariant: what is exported is what the calls that store it take; an export
that breaks off is cut off, so that no client takes a part for all.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import msgspec
from aiohttp import ClientConnectionResetError, web

from featurestore.codecs import History
from featurestore.errors import EpochGone, StoreChanged, StoreUnavailable
from featurestore.ratings.context_schema import ContextSchema
from service.context import CONTEXT, ServiceContext
from service.http.problems import Problem
from service.http.response import READ_WITHIN_S
from service.openapi import STORE, Route, lines_of
from service.routes.items import item_names

_LINES = "application/x-ndjson"
# Histories that are read together: mostly some 25 KB, of the longest by default 16 MB.
_USERS_AT_ONCE = 8
# Lines that are made and written together, in a thread: some 200 KB wait for a client that reads slowly.
_LINES_AT_ONCE = 2_000
# By then a worker serves the history that took the place of another.
_AGAIN_S = 1.0
_ENCODER = msgspec.json.Encoder()


class RatingLine(msgspec.Struct, omit_defaults=True):
    """A rating as POST /ratings takes it."""

    user_id: str
    item_id: str
    rating: float
    timestamp: float | None = None
    context: dict[str, float | str] | None = None


async def write_lines(
    request: web.Request, pages: AsyncIterator[Sequence[msgspec.Struct]]
) -> web.StreamResponse:
    """Answer with one object a line. What fails before the first page is told by the status.

    Raises `overloaded` where as many exports run as a worker takes on.
    """
    context = request.app[CONTEXT]
    if context.exports.locked():
        context.counts.overloads += 1
        raise Problem("overloaded", "as many exports run as a worker takes on", retry_after_s=1)
    async with context.exports:
        identity = context.store.identity
        first: Sequence[msgspec.Struct] = await anext(pages, [])
        answer = web.StreamResponse(headers={"Content-Type": _LINES})
        try:
            await answer.prepare(request)
            if request.method != "HEAD":
                await _write(answer, first)
                async for page in pages:
                    await _write(answer, page)
                # Of a store that was emptied, or is another one, there would be no further page.
                await context.store.require_same()
                if context.store.identity != identity:
                    raise StoreChanged("another store has taken its place")
            await answer.write_eof()
        except BaseException as exc:
            if request.transport is not None:
                request.transport.abort()
            # A client may go away.
            if not isinstance(exc, ConnectionError):
                raise
    return answer


async def _write(answer: web.StreamResponse, page: Sequence[msgspec.Struct]) -> None:
    lines = await asyncio.to_thread(_encoded, page)
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            await answer.write(lines)
    except TimeoutError:
        raise ClientConnectionResetError("the client does not read") from None


def _encoded(page: Sequence[msgspec.Struct]) -> bytes:
    return _ENCODER.encode_lines(list(page))


class _Part(NamedTuple):
    """Ratings of a user from `start` on, as many as there are `names` of their items."""

    user_id: str
    history: History
    start: int
    names: list[str | None]


async def _ratings(context: ServiceContext) -> AsyncIterator[list[RatingLine]]:
    """Yield all ratings of the history that is live, some at a time.

    Raises `StoreUnavailable` where another has taken its place: what was left of it is removed.
    """
    store, epoch = context.store, await context.epoch()
    schema, registry = await store.contexts.known(), store.items(epoch)
    page, n_lines = list[_Part](), 0
    async for user_ids in store.user_search.all(epoch):
        for start in range(0, len(user_ids), _USERS_AT_ONCE):
            some = user_ids[start : start + _USERS_AT_ONCE]
            found = await asyncio.gather(*(store.users.history(epoch, user_id) for user_id in some))
            for user_id, (_, history) in zip(some, found, strict=True):
                for at in range(0, len(history), _LINES_AT_ONCE):
                    names = await item_names(registry, history.item_row[at : at + _LINES_AT_ONCE])
                    if n_lines + len(names) > _LINES_AT_ONCE:
                        yield await asyncio.to_thread(_lines_of, page, schema)
                        page, n_lines = [], 0
                    page.append(_Part(user_id.decode(), history, at, names))
                    n_lines += len(names)
    try:
        await store.epochs.require(epoch)
    except EpochGone as exc:
        raise StoreUnavailable("the history was replaced while it was read", _AGAIN_S) from exc
    yield await asyncio.to_thread(_lines_of, page, schema)


def _lines_of(page: Sequence[_Part], schema: ContextSchema) -> list[RatingLine]:
    lines: list[RatingLine] = []
    for user_id, history, start, names in page:
        part = slice(start, start + len(names))
        told = history.context
        rows = zip(names, history.rating[part].tolist(), history.time[part].tolist(), strict=True)
        for row, (name, rating, moment) in enumerate(rows, start):
            if name is not None:
                at = None if math.isnan(moment) else moment
                given = None if told is None else schema.named(told[row]) or None
                lines.append(RatingLine(user_id, name, rating, at, given))
    return lines


@Route(
    *("GET", "/export/ratings", "Ratings", lines_of(RatingLine), STORE),
    needs="read",
    operation_id="exportRatings",
)
async def get_ratings(request: web.Request) -> web.StreamResponse:
    """All ratings, one a line, as POST /ratings takes them.

    In no order of users; those of one user in the order in which they came. A worker takes two exports at a
    time, and answers others `overloaded`.
    """
    return await write_lines(request, _ratings(request.app[CONTEXT]))
