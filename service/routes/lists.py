"""Lists that follow no taste: items like one, the most loved, the trending, the latest.

Invariant: a row that has no name yet is in no answer, and neither is what may not be shown.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from factors import Bools, Float64s, Int64s
from featurestore.generations.activity import NEVER, Positives
from featurestore.generations.live import LiveGeneration
from service.call_rules import QUERY_RULES, CallRules, ask, query_rules, ruled, rules_of
from service.context import CONTEXT, ServiceContext
from service.feedback import new_token
from service.http.parsing import TEXT_ID_SCHEMA, Body, DescribedId, Query, body_ids, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, MODEL, Route, query_parameter, request_body, whole
from service.prediction_json import shown, significant
from service.routes.included import Described, describe, no_reasons
from service.routes.items import QUERY_N, item_names, item_row, positive_counts, statistics_of
from service.routes.recommend import MAX_OFFSET, QUERY_OFFSET, QUERY_SEEN, query_seen, seen_rows
from service.rules.columns import Columns
from service.rules.filter_parsing import refused
from service.rules.listing import Scored, Top, best_rows
from service.rules.request import ItemRuleFields, RuleFields

T = TypeVar("T")
Making = Callable[[web.Request, "_Asked"], Awaitable[web.StreamResponse]]
BY = ("behaviour", "content", "both")
POPULAR_BY = ("rating", "events")
# By both: so many times what is wanted, and some, of the best by either are compared.
_PER_ITEM, _SPARE = 4, 200
# Weeks that the last rating of an item may lie before the latest of all: 19 years. Older ones are as old.
_LEAST_LEVEL = -1_000.0
# Items whose texts are compared, or whose times are sorted, in 2 ms.
_QUICK_ROWS = 20_000
NO_ACTIVITY = "this generation does not say what is rated of late; the next fit will"
NO_POSITIVES = "this generation has learned no event that is no rating; the next fit may"
_PROBLEMS = (
    *("invalid_parameter", "invalid_rule", "unknown_event_type", "unknown_scenario", "data_damaged"),
)


class Neighbour(Described):
    """An item and how near it is: 1 is the same taste or content, 0 none in common."""

    item_id: str
    score: float


class Similar(msgspec.Struct, omit_defaults=True):
    """The nearest items, best first. `reason`: why there are none."""

    item_id: str
    generation: int
    items: list[Neighbour]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class Loved(Described, omit_defaults=True):
    """An item and the lower 95 % bound of what an average user would give it; by events, the weight of its
    positive ones, and how many these are.
    """

    item_id: str
    score: float
    ratings: int
    mean: float | None
    positives: int | None = None


class Popular(msgspec.Struct, omit_defaults=True):
    """The most loved items, best first, and what they are listed `by`: events, or rating where nothing is
    said. `reason`: why there are none.
    """

    generation: int
    items: list[Loved]
    recommendation_id: str
    by: str = "rating"
    degraded: bool = False
    reason: str | None = None


class Rising(Described):
    """An item and how much it is rated of late, each rating counted half for each week since it was given:
    1 is as much as the first item of the list, .5 half as much.
    """

    item_id: str
    score: float


class Trending(msgspec.Struct, omit_defaults=True):
    """The items that are rated most of late, most first. `reason`: why there are none."""

    generation: int
    items: list[Rising]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class New(Described):
    """An item and since when it may be shown, in seconds since 1970; null where that was not said."""

    item_id: str
    available_from: float | None


D = TypeVar("D", Neighbour, Loved, Rising, New)


class Latest(msgspec.Struct, omit_defaults=True):
    """The latest items, the last first. `reason`: why there are none."""

    generation: int
    items: list[New]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class ItemListBody(ItemRuleFields, kw_only=True):
    """Which part of a list, under which rules. `user_id`: whose items that were seen are left out;
    `scenario`: rules that are stored.
    """

    offset: Annotated[int, Meta(extra_json_schema=whole(0, MAX_OFFSET))] = 0
    user_id: DescribedId | None = None
    scenario: str | None = None


class SimilarBody(ItemListBody, kw_only=True):
    """The same of a list of similar items."""

    by: Annotated[str, Meta(extra_json_schema={"enum": list(BY)})] | None = None


class PopularBody(ItemListBody, kw_only=True):
    """The same of a list of the most loved items."""

    by: Annotated[str, Meta(extra_json_schema={"enum": list(POPULAR_BY)})] | None = None


class _Asked(NamedTuple):
    """What a call says, in its query or its body of `n_bytes`."""

    fields: RuleFields
    by: str
    offset: int
    user_id: bytes | None
    scenario: str | None
    category: str | None = None
    n_bytes: int = 0


class _List(NamedTuple):
    """A list that is to be made: of what is live, under the rules of the `call`, the places behind `offset`,
    without the rows that were `seen`.
    """

    live: LiveGeneration
    call: CallRules
    offset: int
    seen: Int64s | None
    by: str


_BODIES: dict[str, Body[Any]] = {
    "similar": Body(SimilarBody),
    "popular": Body(PopularBody),
    "trending": Body(ItemListBody),
    "latest": Body(ItemListBody),
}
_BY: dict[str, Sequence[str]] = {"similar": BY, "popular": POPULAR_BY}
_QUERY = (
    *(QUERY_N, QUERY_OFFSET),
    query_parameter("user_id", TEXT_ID_SCHEMA, "Leave out what this user has seen"),
    *(QUERY_SEEN, *QUERY_RULES),
)
_SIMILAR_BY = query_parameter(
    "by",
    {"type": "string", "enum": list(BY), "default": "behaviour"},
    "`behaviour`: whose ratings or events go together; `content`: that share texts in the catalogue",
)
_POPULAR_BY = query_parameter(
    "by",
    {"type": "string", "enum": list(POPULAR_BY)},
    "`rating`: what an average user would give; `events`: the weight of positive events. Without it "
    "by rating, and by events where the generation has learned no rating, or next to none",
)
_EXAMPLE = {"n": 5, "user_id": "ann", "per_category": 2, "include": ["title"]}


async def _similar(request: web.Request, asked: _Asked) -> web.StreamResponse:
    context = request.app[CONTEXT]
    item_id = path_id(request.rel_url.raw_path, 1, "item_id")
    made = await _list_of(context, asked)
    live, call = made.live, made.call
    # An item of the catalogue has a row, whether it was rated or not.
    row = await item_row(context.store.items(live.epoch), item_id)
    # Wherever else it is pinned, it is not like itself.
    pinned = tuple(pin for pin in call.rules.pinned if pin[1] != item_id)
    call = call._replace(rules=replace(call.rules, pinned=pinned))
    made = made._replace(call=call)

    async def behaviour(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        found = await context.rankings.similar(live, row, n, _without(allowed, exclude, live.ranker.n_items))
        return _scored(found.item_rows, found.scores)

    content = np.zeros(0)
    if made.by not in ("", "behaviour"):
        n_items = live.ranker.n_items
        content = await _read(context, call, n_items, partial(call.view.columns.likeness, row, n_items))

    by_content = _by(context, call, content)

    async def by_both(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        depth = _PER_ITEM * n + _SPARE
        # What is among the best of neither is hardly among the best by their mean.
        near = [await each(depth, exclude, allowed) for each in (behaviour, by_content)]
        rows = np.unique(np.concatenate([part.rows for part in near]))
        rows = rows[rows < len(content)]
        mask = np.zeros(len(content), dtype=np.bool_)
        mask[rows] = True
        known = await behaviour(len(rows), exclude, mask)
        scores = content[rows] / 2
        # Tastes that are contrary are no likeness that content could make up for.
        scores[np.searchsorted(rows, known.rows)] += np.maximum(known.scores, 0.0) / 2
        best = best_rows(scores, n)
        return _scored(rows[best], scores[best])

    top = {"content": by_content, "both": by_both}.get(made.by, behaviour)
    found, reason = await ruled(context, live, call, top, offset=made.offset, less=[row], seen=made.seen)
    scores = zip(shown(found.scores, live.model.scale))
    items, degraded = await _named(context, made, found, Neighbour, scores)
    token = _token(made)
    return json_answer(Similar(item_id.decode(), live.generation, items, token, degraded, reason))


async def _popular(request: web.Request, asked: _Asked) -> web.StreamResponse:
    context = request.app[CONTEXT]
    made = await _list_of(context, asked)
    live, call = made.live, made.call
    by = made.by or ("events" if live.by_events else "rating")
    positives = live.positives if by == "events" else None
    if by == "events" and positives is None:
        return json_answer(Popular(live.generation, [], _token(made), by, call.degraded, NO_POSITIVES))

    async def most_loved(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        # Without a mask the whole table is read as it stands.
        if len(exclude):
            allowed = _without(allowed, exclude, live.ranker.n_items)
        found = await context.rankings.popular(live, n, allowed)
        return _scored(found.item_rows, found.scores)

    async def most_chosen(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        chosen = partial(_most_chosen, positives, n, exclude, allowed)
        return await _read(context, call, live.ranker.n_items, chosen)

    top, floor = (most_chosen, 0.0) if by == "events" else (most_loved, live.model.scale.low)
    found, reason = await ruled(context, live, call, top, floor=floor, offset=made.offset, seen=made.seen)
    scores, counts = shown(found.scores, live.model.scale), positive_counts(positives, found.rows)
    parts = zip(scores, statistics_of(live, found.rows), counts, strict=True)
    columns = ((score, *known, count) for score, known, count in parts)
    items, degraded = await _named(context, made, found, Loved, columns)
    return json_answer(Popular(live.generation, items, _token(made), by, degraded, reason))


async def _trending(request: web.Request, asked: _Asked) -> web.StreamResponse:
    context = request.app[CONTEXT]
    made = await _list_of(context, asked)
    live, call = made.live, made.call
    activity = live.activity
    if activity is None:
        return json_answer(Trending(live.generation, [], _token(made), call.degraded, NO_ACTIVITY))
    levels = activity.levels.astype(np.float64) - NEVER
    highest, by_level, most = levels.max(initial=0.0), _by(context, call, levels), 0.0

    async def rising(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        nonlocal most
        found = await by_level(n, exclude, allowed)
        # Relative to the highest, as the weight itself is no number that a float can hold.
        weights = np.exp2(np.maximum(found.scores - highest, _LEAST_LEVEL))
        most = max(most, float(weights.max(initial=0.0)))
        return replace(found, scores=weights)

    found, reason = await ruled(context, live, call, rising, offset=made.offset, seen=made.seen)
    columns = zip(significant(found.scores / (most or 1.0)))
    items, degraded = await _named(context, made, found, Rising, columns)
    return json_answer(Trending(live.generation, items, _token(made), degraded, reason))


async def _latest(request: web.Request, asked: _Asked) -> web.StreamResponse:
    context = request.app[CONTEXT]
    for name in ("boosts", "diversity"):
        if getattr(asked.fields, name) is not None:
            raise refused(f"/{name}", "the latest items stand in the order of their times")
    made = await _list_of(context, asked)
    live, call = made.live, made.call
    # A scenario may have what is for other lists: a time is no score that could be multiplied, or weighed
    # against differences.
    call = call._replace(rules=replace(call.rules, boosts=(), diversity=None))
    made = made._replace(call=call)

    async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        mask = _without(allowed, exclude, live.ranker.n_items)
        return await _read(context, call, len(mask), partial(_newest, call.view.columns, mask, n))

    found, reason = await ruled(context, live, call, top, offset=made.offset, seen=made.seen)
    columns = ((None if math.isinf(since) else since,) for since in found.scores.tolist())
    items, degraded = await _named(context, made, found, New, columns)
    return json_answer(Latest(live.generation, items, _token(made), degraded, reason))


async def _named(
    context: ServiceContext,
    made: _List,
    found: Scored,
    kind: Callable[..., D],
    columns: Iterable[Sequence[Any]],
) -> tuple[list[D], bool]:
    """Return the items `found` that have a name, each a `kind` of its name and its part of the `columns`,
    with what the call wants to see of them; and whether anything of the answer is old.
    """
    names = await item_names(context.store.items(made.live.epoch), found.rows)
    items = [kind(name, *each) for name, each in zip(names, columns, strict=True) if name is not None]
    said = await describe(context, made.call.rules.include, [(each.item_id, each) for each in items])
    return items, made.call.degraded or not said


def _by_query(request: web.Request, kind: str) -> _Asked:
    """Return what a query says of a list of this kind."""
    query = Query(request.raw_path)
    fields, category = query_rules(query)
    fields.exclude_seen = query_seen(query)
    by = query.choice("by", "", _BY[kind]) if kind in _BY else ""
    user_id = None if query.raw("user_id") is None else query.id("user_id")
    offset = query.integer("offset", 0, 0, MAX_OFFSET)
    return _Asked(fields, by, offset, user_id, query.text("scenario"), category)


@asynccontextmanager
async def _by_body(request: web.Request, kind: str) -> AsyncIterator[_Asked]:
    """Yield what a body says of a list of this kind. Raises `invalid_body`."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.predictions) as received:
        body: ItemListBody = await _BODIES[kind].decode_off_loop(received.raw)
        by = getattr(body, "by", None) or ""
        if by and by not in _BY[kind]:
            raise Problem("invalid_body", f"by must be one of {', '.join(_BY[kind])}", field="by")
        if not 0 <= body.offset <= MAX_OFFSET:
            raise Problem("invalid_body", f"offset must be from 0 to {MAX_OFFSET}", field="offset")
        fields = RuleFields(**{name: getattr(body, name) for name in ItemRuleFields.__struct_fields__})
        user_id = None if body.user_id is None else body_ids([body.user_id], "user_id")[0]
        yield _Asked(fields, by, body.offset, user_id, body.scenario, n_bytes=len(received.raw))


async def _list_of(context: ServiceContext, asked: _Asked) -> _List:
    """Return what a call asks for, with its rules and what its user has seen."""
    live = context.live()
    no_reasons(asked.fields.include or ())
    if asked.user_id is None and asked.fields.exclude_seen is not None:
        raise refused("/exclude_seen", "says what is left out for a user: name one by user_id")
    # In the write in which the user is looked up.
    questions = ask(context, asked.scenario)
    profile, degraded = None, False
    if asked.user_id is not None:
        profile, degraded = await context.scorer.profile(live, asked.user_id)
    call = await rules_of(
        context, live, questions, asked.fields, category=asked.category, n_bytes=asked.n_bytes
    )
    seen: Int64s | None = None
    if profile is not None and asked.user_id is not None and call.rules.exclude_seen:
        history = profile.history
        if not profile.whole:
            _, history = await context.store.users.history(live.epoch, asked.user_id)
        seen = (await seen_rows(context, history, call.rules.exclude_seen)).astype(np.int64)
    # A scenario may have what is for lists for someone.
    include = tuple(name for name in call.rules.include if name != "reasons")
    call = call._replace(degraded=call.degraded | degraded, rules=replace(call.rules, include=include))
    return _List(live, call, asked.offset, seen, asked.by)


def _token(made: _List) -> str:
    """Return what names the answer, to be sent back with events."""
    return new_token(made.live.generation, time.time(), made.call.scenario, None)


async def _read(context: ServiceContext, call: CallRules, n_items: int, compute: Callable[[], T]) -> T:
    """Return what `compute` makes of the columns, in a thread where there are many rows."""
    await call.view.settle()
    in_thread, quick = context.rankings.in_thread, n_items <= _QUICK_ROWS
    return await call.view.columns.read(compute, in_thread, quick=quick)


def _by(context: ServiceContext, call: CallRules, scores: Float64s) -> Top:
    """Return what ranks the items by `scores` (m,), of those above 0."""

    async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        return await _read(context, call, len(scores), partial(_best, scores, n, exclude, allowed))

    return top


def _newest(columns: Columns, allowed: Bools, n: int) -> Scored:
    """Return the latest `n` of the rows that are `allowed` (n_items,), by time, -inf where there is none."""
    times = np.where(allowed, columns.available_from.values(len(allowed)), np.nan)
    # Of equal times the row that was given last is the first: as if time went on from the last to the first.
    dated = len(times) - 1 - best_rows(np.nan_to_num(times[::-1], nan=-np.inf), n)
    others = np.flatnonzero(allowed & np.isnan(times))[::-1][: n - len(dated)]
    return _scored(np.concatenate([dated, others]), np.append(times[dated], np.full(len(others), -np.inf)))


def _without(allowed: Bools | None, exclude: Int64s, n: int) -> Bools:
    """Return which of `n` rows are allowed and not excluded (n,)."""
    mask: Bools = np.ones(n, dtype=np.bool_)
    if allowed is not None:
        mask[: len(allowed)] = allowed[:n]
        mask[len(allowed) :] = False
    mask[exclude[exclude < n]] = False
    return mask


def _best(scores: Float64s, n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
    """Return the `n` rows with the largest of `scores` (m,) above 0, of those that are allowed."""
    passing = _without(allowed, exclude, len(scores)) & (scores > 0)
    rows = best_rows(np.where(passing, scores, -np.inf), n)
    return _scored(rows, scores[rows])


def _most_chosen(positives: Positives | None, n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
    """Return the `n` rows whose positive events weigh most, of those that are allowed."""
    weights = np.zeros(0) if positives is None else positives.weights.astype(np.float64)
    return _best(weights, n, exclude, allowed)


def _scored(rows: Int64s, scores: Float64s) -> Scored:
    return Scored(rows, scores, np.full(len(rows), np.nan), scores)


def _routes(
    path: str,
    answer: type,
    kind: str,
    making: Making,
    said: str,
    *,
    problems: Sequence[str] = (),
    body: type = ItemListBody,
    by: Sequence[Any] = (),
) -> tuple[Route, Route]:
    """Return the routes of a list of a `kind`: by GET, and by POST under all rules. `said`: what it has;
    `problems`: codes besides those of every list; `by`: parameters besides.
    """

    async def get(request: web.Request) -> web.StreamResponse:
        return await making(request, _by_query(request, kind))

    async def post(request: web.Request) -> web.StreamResponse:
        async with _by_body(request, kind) as asked:
            return await making(request, asked)

    get.__doc__, post.__doc__ = f"{said}.", f"{said}, under rules."
    codes, parameters = (*_PROBLEMS, *problems, *MODEL), (*by, *_QUERY)
    query = Route(
        "GET", path, "Recommend", answer, codes, needs="read", operation_id=kind, parameters=parameters
    )
    rules = Route(
        *("POST", path, "Recommend", answer, (*BODY, *codes)),
        needs="read",
        operation_id=f"{kind}ByRules",
        repeatable=True,
        body=request_body(body, _EXAMPLE),
    )
    return query(get), rules(post)


ROUTES = (
    *_routes(
        *("/similar/{item_id}", Similar, "similar", _similar, "The items most like one"),
        problems=("unknown_item", "not_found"),
        body=SimilarBody,
        by=[_SIMILAR_BY],
    ),
    *_routes(
        "/popular", Popular, "popular", _popular, "The most loved items", body=PopularBody, by=[_POPULAR_BY]
    ),
    *_routes("/trending", Trending, "trending", _trending, "The items that are rated most of late"),
    *_routes("/latest", Latest, "latest", _latest, "The latest items"),
)
