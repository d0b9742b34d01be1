"""Events: what users did beside rating, and the types that there are of them.

Invariant: an event is written as a rating is, in one log: valid as a whole call or refused, acknowledged when
all of it is stored, and known to every read after that. What a type means never changes, for stored events
keep it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from factors import Meaning, Scale
from featurestore.errors import StoreDamaged, StoreRefused
from featurestore.ratings.batches import Columns
from featurestore.ratings.event_types import (
    RATING,
    EventType,
    NewType,
    codes_taken,
    unknown_type,
    with_new,
    with_retired,
)
from service.context import CONTEXT
from service.feedback import Token, parse_token
from service.http.parsing import (
    TEXT_ID_SCHEMA,
    Body,
    DescribedId,
    Query,
    Rows,
    Timestamp,
    body_ids,
    checked_times,
    parsed,
    path_id,
)
from service.http.problems import Problem
from service.http.rating_contexts import CONTEXT_PROBLEMS, Context, Given, given_contexts
from service.http.response import json_answer
from service.openapi import (
    BODY,
    STORE,
    WRITES,
    Route,
    list_of,
    parameter,
    request_body,
)
from service.routes.generations import MAX_NUMBER
from service.routes.items import item_names
from service.routes.ratings import (
    MAX_RATINGS,
    Accepted,
    Deleted,
    check_scale,
    store_columns,
    take_back,
)
from service.routes.users import HISTORY_PAGE, MAX_OFFSET, MAX_PAGE

_PROBLEMS = ("too_many_ratings", "stream_full", "data_damaged", *WRITES)
_PATH_TYPE = parameter("type", "path", TEXT_ID_SCHEMA, "A type of GET /event-types", required=True)
# An event counts as much as ten ratings at most: beyond, one click would be all that a list rests on.
MAX_WEIGHT = 10.0
# Thirty types take 4 KB.
_MOST_TYPES_BYTES = 10_000


class EventIn(msgspec.Struct, forbid_unknown_fields=True):
    """One event as it is sent. `value`: any number, 1 without it; of type `rating` the rating; of a type that
    means `shown` the generation that has shown it, 0 for none, and the live one without it. `timestamp`:
    seconds since 1970; without it, the moment of arrival. `recommendation_id`: of the answer that showed the
    item. `context`: of a rating.
    """

    user_id: DescribedId
    item_id: DescribedId
    type: str
    value: float | None = None
    timestamp: Timestamp | None = None
    recommendation_id: str | None = None
    context: Context | None = None


class EventOut(msgspec.Struct):
    """One event of a user. `timestamp` is null where it is not known."""

    item_id: str
    type: str
    value: float
    timestamp: float | None


class EventsPage(msgspec.Struct):
    """Some of a user's events that are no ratings, the latest first. `total`: how many there are."""

    user_id: str
    total: int
    n: int
    offset: int
    events: list[EventOut]


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


_ROWS: Rows[EventIn] = Rows(EventIn, MAX_RATINGS, guesses_lines=True)
_TYPES: Body[TypesIn] = Body(TypesIn)
_TYPES_EXAMPLE = {
    "types": [
        {"name": "view", "meaning": "positive"},
        {"name": "purchase", "meaning": "positive", "weight": 1, "consumed": True},
    ]
}


class Known(NamedTuple):
    """What the events of a call are held to. `types`: those that take events, by name; `generation`: the live
    one; `decided`: whether the scale is.
    """

    types: Mapping[str, EventType]
    generation: int
    scale: Scale
    decided: bool
    now: float


class Events(NamedTuple):
    """The events of a call, with what their `recommendation_id` says, None where there is none, and the
    contexts of its ratings.
    """

    columns: Columns
    tokens: list[Token | None]
    contexts: Given | None


def parse_events(body: bytes | bytearray, known: Known, *, lines: bool) -> Events:
    """Return the events in `body`: one object, an array, or an object a line.

    Raises a `Problem` that names a field, and the first bad row where there are rows.
    """
    codes = codes_taken(known.types.values())
    rows, is_object = _ROWS.decode(body, lines=lines)
    try:
        user_ids = body_ids([row.user_id for row in rows], "user_id")
        item_ids = body_ids([row.item_id for row in rows], "item_id")
        types = np.array([_code(row.type, codes, k) for k, row in enumerate(rows)], dtype=np.uint8)
        tokens = [_token(row.recommendation_id, k) for k, row in enumerate(rows)]
        values = np.array([_value(row, k, tokens[k], known) for k, row in enumerate(rows)], dtype=np.float64)
        # Those that are no ratings pass with any value.
        check_scale(
            np.where(types == 0, values, known.scale.low), known.scale, "value", decided=known.decided
        )
        times = checked_times([row.timestamp for row in rows], known.now, "timestamp")
        _check_contexts(rows)
    except Problem as problem:
        if is_object:
            problem.row = None
        raise
    columns = Columns(user_ids, item_ids, values, np.array(times, dtype=np.float64), types)
    return Events(columns, tokens, given_contexts([row.context for row in rows], numbered=not is_object))


def _check_contexts(rows: Sequence[EventIn]) -> None:
    for number, row in enumerate(rows):
        # Refused rather than let go: it would be nowhere.
        if row.context and row.type != RATING:
            detail = f"context: a rating may have one, and {row.type} is none"
            raise Problem("invalid_context", detail, field="context", row=number)


def _code(name: str, codes: Mapping[str, int], row: int) -> int:
    code = codes.get(name)
    if code is None:
        raise Problem("invalid_type", unknown_type(name, codes), field="type", row=row)
    return code


def _token(text: str | None, row: int) -> Token | None:
    token = None if text is None else parse_token(text)
    if text is not None and token is None:
        detail = "recommendation_id is none that an answer has"
        raise Problem("invalid_body", detail, field="recommendation_id", row=row)
    return token


def _value(row: EventIn, number: int, token: Token | None, known: Known) -> float:
    kind = known.types.get(row.type)
    if kind is not None and kind.meaning == "shown":
        # What comes of it counts for the generation that has shown it.
        if token is None and row.value is not None:
            if not 0.0 <= row.value <= MAX_NUMBER or row.value != int(row.value):
                detail = f"value must be the generation that has shown the item, or 0, not {row.value:g}"
                raise Problem("invalid_body", detail, field="value", row=number)
            return row.value
        return float(known.generation if token is None else token.generation)
    if row.value is None and row.type == RATING:
        raise Problem("invalid_body", "value is missing: it is the rating", field="value", row=number)
    return 1.0 if row.value is None else row.value


@Route(
    *("POST", "/events", "Events", Accepted),
    (*BODY, "invalid_type", "too_many_rows", "too_many_items", *CONTEXT_PROBLEMS, *_PROBLEMS),
    needs="rate",
    operation_id="postEvents",
    body=request_body(
        {"anyOf": [EventIn, list_of(EventIn, MAX_RATINGS)]},
        [{"user_id": "ann", "item_id": "dune", "type": "view"}],
        lines=True,
    ),
)
async def post_events(request: web.Request) -> web.StreamResponse:
    """Learn events of any types: one, an array, or one a line. One bad row refuses all."""
    context = request.app[CONTEXT]
    context.require_room()
    async with context.bodies.read(request, context.imports, takes_lines=True) as (raw, lines):
        types, live = await context.store.event_types.current(), context.follower.live
        # One moment for the whole call: its events keep their order.
        taken = {each.name: each for each in types if not each.retired}
        scale = await context.scale_now()
        known = Known(taken, live.generation if live else 0, scale.value, scale.decided, time.time())
        events = await parsed(parse_events, raw, known, lines=lines)
        # Before histories are read: a call that is refused costs the store nothing.
        context.take_ratings(request, len(events.columns))
        noted = await context.feedback.note(events.columns, types, events.tokens)
        accepted = await store_columns(request, events.columns, events.contexts)
        if noted is not None:
            context.feedback.count(noted)
        return json_answer(accepted)


@Route(
    *("GET", "/users/{user_id}/events", "Events", EventsPage),
    ("invalid_parameter", "not_found", "data_damaged", *STORE, "unknown_user"),
    needs="read",
    operation_id="getUserEvents",
    parameters=HISTORY_PAGE,
)
async def get_user_events(request: web.Request) -> web.StreamResponse:
    """The events of a user that are no ratings, the latest first."""
    context = request.app[CONTEXT]
    query = Query(request.raw_path)
    n, offset = query.integer("n", 100, 1, MAX_PAGE), query.integer("offset", 0, 0, MAX_OFFSET)
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    store, epoch = context.store, await context.epoch()
    types = {each.code: each.name for each in await store.event_types.current()}
    made, history = await context.store.users.history(epoch, user_id)
    if made == 0:
        raise Problem("unknown_user", "nothing of this user is known")
    feedback, page = history.feedback, slice(offset, offset + n)
    names = await item_names(store.items(epoch), feedback.item_row[::-1][page])
    columns = (feedback.type_code, feedback.value, feedback.time)
    rows = zip(names, *(column[::-1][page].tolist() for column in columns), strict=True)
    events = [
        # A type that was put since this worker asked has no name here yet.
        EventOut(name, types.get(code, str(code)), value, None if math.isnan(moment) else moment)
        for name, code, value, moment in rows
        if name is not None
    ]
    return json_answer(EventsPage(user_id.decode(), len(feedback), n, offset, events))


@Route(
    *("DELETE", "/events/{user_id}/{item_id}/{type}", "Events", Deleted),
    ("invalid_parameter", "unknown_event", "not_found", *_PROBLEMS),
    needs="rate",
    operation_id="deleteEvent",
    parameters=(_PATH_TYPE,),
)
async def delete_event(request: web.Request) -> web.StreamResponse:
    """Take one event back."""
    context = request.app[CONTEXT]
    request.app[CONTEXT].take_ratings(request, 1)
    path = request.rel_url.raw_path
    user_id, item_id = path_id(path, 1, "user_id"), path_id(path, 2, "item_id")
    name = path_id(path, 3, "type").decode()
    live = context.follower.live
    # A retired type takes none, and gives back what it took.
    codes = {each.name: each.code for each in await context.store.event_types.current()}
    if (code := codes.get(name)) is None or not await take_back(request, user_id, item_id, code):
        raise Problem("unknown_event", f"this user has no event of the type {name[:50]!r} of this item")
    return json_answer(Deleted(1, live.generation if live else None))


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
    body=request_body(TypesIn, _TYPES_EXAMPLE),
)
async def put_event_types(request: web.Request) -> web.StreamResponse:
    """Have these types take events, as they are put here.

    Those that are left out stay as they are.
    """
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_TYPES_BYTES) as received:
        body = _TYPES.decode(received.raw)
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
