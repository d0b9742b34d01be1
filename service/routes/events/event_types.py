"""The types of events. Invariant: what a type means never changes, for stored events keep it."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from factors import Meaning
from featurestore.errors import StoreDamaged, StoreRefused
from featurestore.ratings.event_types import RATING, EventType, NewType, with_new, with_retired
from service.context import CONTEXT
from service.http.parsing import Body, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, STORE, WRITES, Route, request_body

# An event counts as much as ten ratings at most: beyond, one click would be all that a list rests on.
MAX_WEIGHT = 10.0
# Thirty types take 4 KB.
_MOST_BYTES = 10_000


class TypeIn(msgspec.Struct, forbid_unknown_fields=True):
    """A type as it is put. `weight`: how much an event counts where a rating counts 1; null: a fit
    chooses.
    """

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,31}$")]
    meaning: Meaning
    weight: Annotated[float, Meta(ge=0, le=MAX_WEIGHT)] | None = None
    consumed: bool = False


class TypesIn(msgspec.Struct, forbid_unknown_fields=True):
    """Types that are to take events, beside those that do."""

    types: list[TypeIn]


class TypesOut(msgspec.Struct):
    """All types by code, those that were retired too."""

    types: list[EventType]


_BODY: Body[TypesIn] = Body(TypesIn)
_EXAMPLE = {
    "types": [
        {"name": "view", "meaning": "positive"},
        {"name": "purchase", "meaning": "positive", "weight": 1, "consumed": True},
    ]
}


@Route(
    *("GET", "/event-types", "Events", TypesOut, ("data_damaged", *STORE)),
    needs="read",
    operation_id="getEventTypes",
)
async def get_event_types(request: web.Request) -> web.StreamResponse:
    """The types of events."""
    return json_answer(TypesOut(list(await request.app[CONTEXT].store.event_types.current())))


@Route(
    *("PUT", "/event-types", "Events", TypesOut),
    (*BODY, "invalid_type", "data_damaged", *WRITES),
    needs="operate",
    operation_id="putEventTypes",
    body=request_body(TypesIn, _EXAMPLE),
)
async def put_event_types(request: web.Request) -> web.StreamResponse:
    """Have these types take events, as they are put here.

    Those that are left out stay as they are.
    """
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_BYTES) as received:
        body = _BODY.decode(received.raw)
    seen = {RATING}
    for row, each in enumerate(body.types):
        if each.name in seen:
            twice = "is a type of its own" if each.name == RATING else "stands twice"
            raise Problem("invalid_type", f"types: {each.name} {twice}", field="types.name", row=row)
        # The pattern's `$` lets it through.
        if each.name.endswith("\n"):
            raise Problem(
                "invalid_type", "types: a name may not end with a line break", field="types.name", row=row
            )
        seen.add(each.name)
    wanted = [NewType(each.name, each.meaning, each.weight, each.consumed) for each in body.types]
    try:
        types = await context.store.event_types.change(lambda before: with_new(before, wanted))
    except StoreDamaged:
        raise
    except StoreRefused as exc:
        raise Problem("invalid_type", str(exc), field="types") from exc
    return json_answer(TypesOut(list(types)))


@Route(
    *("DELETE", "/event-types/{type}", "Events", TypesOut),
    ("invalid_parameter", "not_found", "data_damaged", *WRITES),
    needs="operate",
    operation_id="retireEventType",
)
async def delete_event_type(request: web.Request) -> web.StreamResponse:
    """Retire a type: it takes no events any more, and those that there are stay, and count on."""
    name = path_id(request.rel_url.raw_path, 1, "type").decode()
    try:
        types = await request.app[CONTEXT].store.event_types.change(lambda before: with_retired(before, name))
    except KeyError:
        raise Problem("not_found", f"there is no event type {name[:50]!r}") from None
    return json_answer(TypesOut(list(types)))
