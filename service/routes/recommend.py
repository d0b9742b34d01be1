"""Top-N.

Invariant: what a user has rated or consumed is not recommended unless that is asked for, however short ago
it was stored.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from factors import BASIS, Bools, Float32s, Int32s, Int64s, relevance_basis
from featurestore.codecs import ENTRY_BYTES, NO_FEEDBACK, Feedback, History, pack_histories
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.event_types import RATING, codes_taken, consumed_codes, unknown_type
from service.call_rules import QUERY_RULES, CallRules, ask_for_user, query_rules, ruled, rules_of
from service.context import CONTEXT, ServiceContext
from service.feedback import new_token
from service.http.access import LEVELS
from service.http.parsing import (
    Body,
    DescribedId,
    Query,
    Timestamp,
    body_ids,
    check_rows,
    checked_times,
    path_id,
)
from service.http.problems import Problem
from service.http.rating_contexts import (
    CONTEXT_PROBLEMS,
    Context,
    Given,
    context_rows,
    given_contexts,
    one_context,
    query_context,
)
from service.http.response import json_answer
from service.openapi import BODY, MODEL, Route, query_parameter, request_body, whole
from service.prediction_json import shown
from service.ranking_queue import RankingRequest
from service.routes.included import Described, Reason, describe, reasons_of
from service.routes.items import QUERY_N, item_names
from service.routes.ratings import MAX_RATINGS, check_scale
from service.rules.listing import Scored
from service.rules.request import EXPLORE, MAX_N, ORDERS, RECENCY_SCHEMA, Order, RuleFields

# A client that reads on further wants the whole catalogue, which is no ranking.
MAX_OFFSET = 10_000
# What a JSON number holds exactly.
MAX_SEED = 2**53
_EXPLORE_SCHEMA = {"type": "string", "enum": list(EXPLORE), "default": "none"}
_SEEN_SCHEMA = {"anyOf": [{"type": "boolean"}, {"type": "string"}], "default": True}
_ORDER_SCHEMA = {"type": "string", "enum": list(ORDERS), "default": "score"}
QUERY_OFFSET = query_parameter("offset", whole(0, MAX_OFFSET, 0), "How many of the best to leave out")
QUERY_SEEN = query_parameter(
    "exclude_seen",
    _SEEN_SCHEMA,
    "Leave out what the user has rated or consumed; or names of types, with commas between",
)
# Histories that are longer are folded in and explained in a thread: about 2 ms.
_LONG = 2000


class Recommended(Described, omit_defaults=True):
    """An item. `score`: what it is ranked by, made of `relevance`, how likely the user is to choose it, and
    the expected `rating`; ranked by rating alone, it is that, and there is no relevance. A boost is in the
    score alone. `basis`: what the rating rests on, as in GET /predict; `relevance_basis`: what the relevance
    does, in the same words, by events of the user and of the item in the place of ratings. `reasons`: what
    of the user's history did most for its place.
    """

    item_id: str
    score: float
    rating: float
    basis: str
    relevance: float | None = None
    relevance_basis: str | None = None
    reasons: list[Reason] | None = None


class Recommendations(msgspec.Struct, omit_defaults=True):
    """Items, best first. `order`: what ranked them; of a generation without a ranking head it is `rating`,
    also where `score` was asked for. `recommendation_id`: names this answer; to be sent back with events.
    `ignored`: ratings of the call whose item is not known. `reason`: why there is no item. `arms`: the
    user's arm by the name of the experiment that the list is of.
    """

    generation: int
    items: list[Recommended]
    order: str
    recommendation_id: str
    user_id: str | None = None
    ignored: int | None = None
    seed: int | None = None
    degraded: bool = False
    reason: str | None = None
    arms: dict[str, str] | None = None


class AnonymousRating(msgspec.Struct, forbid_unknown_fields=True):
    """A rating of someone who is not stored."""

    item_id: DescribedId
    rating: float
    timestamp: Timestamp | None = None
    context: Context | None = None


class AnonymousEvent(msgspec.Struct, forbid_unknown_fields=True):
    """An event, other than a rating, of someone who is not stored."""

    item_id: DescribedId
    type: str
    timestamp: Timestamp | None = None


class ListBody(RuleFields, kw_only=True):
    """What is wanted, and under which rules. `scenario`: rules that are stored, for those that the call does
    not have. `context`: that of the ratings that the list is made for.
    """

    offset: Annotated[int, Meta(extra_json_schema=whole(0, MAX_OFFSET))] = 0
    seed: Annotated[int, Meta(extra_json_schema=whole(0, MAX_SEED))] | None = None
    scenario: str | None = None
    context: Context | None = None


class RecommendBody(ListBody, kw_only=True):
    """Someone's ratings and other events, each in the order in which they were made, and what is wanted."""

    ratings: Annotated[list[AnonymousRating], Meta(extra_json_schema={"maxItems": MAX_RATINGS})] = (
        msgspec.field(default_factory=list)
    )
    events: Annotated[list[AnonymousEvent], Meta(extra_json_schema={"maxItems": MAX_RATINGS})] = (
        msgspec.field(default_factory=list)
    )


class Page(NamedTuple):
    """Which part of a list: what is behind the best `offset`; by a draw from the posterior with a `seed`."""

    offset: int
    seed: int | None


class _Person(NamedTuple):
    """Someone to recommend to: `vector` (user_width,), the `history` that it rests on, and the rows of all
    items that were `seen`.
    """

    vector: Float32s
    history: History
    seen: Int32s


T = TypeVar("T")
_BODY: Body[RecommendBody] = Body(RecommendBody)
_LIST_BODY: Body[ListBody] = Body(ListBody)
_RULE_PROBLEMS = (
    *("invalid_rule", "unknown_event_type", "unknown_scenario", "data_damaged"),
    *CONTEXT_PROBLEMS,
)
_EXAMPLE = {
    "n": 5,
    # Categories are known to every catalogue; an attribute is, once an item has it.
    "filter": {"must_not": [{"key": "categories", "match": {"value": "horror"}}]},
    "boosts": [{"filter": {"must": [{"key": "categories", "match": {"value": "drama"}}]}, "multiply": 1.5}],
    "per_category": 2,
}


@Route(
    *("GET", "/recommend/{user_id}", "Recommend", Recommendations),
    ("invalid_parameter", *_RULE_PROBLEMS, "not_found", *MODEL),
    needs="read",
    operation_id="recommend",
    undescribed=("context",),
    parameters=(
        QUERY_N,
        *(QUERY_OFFSET, QUERY_SEEN),
        query_parameter("impressions", {"type": "boolean"}, "Record the items as shown to the user"),
        query_parameter("explore", _EXPLORE_SCHEMA, "`thompson` ranks by a draw from the posterior"),
        query_parameter("recency", RECENCY_SCHEMA, "How many times more the latest events of the user count"),
        query_parameter("seed", whole(0, MAX_SEED), "Makes a draw repeatable"),
        query_parameter("order", _ORDER_SCHEMA, "`rating` ranks by the expected rating alone"),
        *QUERY_RULES,
    ),
)
async def get_recommend(request: web.Request) -> web.StreamResponse:
    """The best items for a user.

    For an unknown one, what the prior says.
    """
    query = Query(request.raw_path)
    offset, seed = query.integer("offset", 0, 0, MAX_OFFSET), query.integer("seed", -1, 0, MAX_SEED)
    page = Page(offset, None if seed < 0 else seed)
    fields, category = query_rules(query)
    fields.exclude_seen = query_seen(query)
    fields.explore = query.choice("explore", "", EXPLORE) or None
    fields.recency = query.number("recency")
    fields.order = query.choice("order", "", ORDERS) or None
    if query.text("impressions") is not None:
        fields.impressions = query.flag("impressions", default=False)
    given = query_context(query)
    return await _for_user(request, page, fields, query.text("scenario"), given, category=category)


@Route(
    *("POST", "/recommend/{user_id}", "Recommend", Recommendations),
    (*BODY, "invalid_parameter", *_RULE_PROBLEMS, "not_found", *MODEL),
    needs="read",
    operation_id="recommendByRules",
    repeatable=True,
    body=request_body(ListBody, _EXAMPLE),
    # As of GET, for those who add a body to its address; the body's counts where both have one.
    undescribed=("n",),
)
async def post_recommend_user(request: web.Request) -> web.StreamResponse:
    """The best items for a user, under rules.

    For an unknown one, what the prior says.
    """
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.predictions) as received:
        body = await _LIST_BODY.decode_off_loop(received.raw)
        page = _page(body)
        given = one_context(body.context)
        n = Query(request.raw_path).integer("n", 0, 1, MAX_N)
        body.n = n or None if body.n is None else body.n
        return await _for_user(request, page, body, body.scenario, given, n_bytes=len(received.raw))


async def _for_user(
    request: web.Request,
    page: Page,
    fields: RuleFields,
    scenario: str | None,
    given: Given | None,
    *,
    category: str | None = None,
    n_bytes: int = 0,
) -> web.StreamResponse:
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    circumstances = await context_rows(context.store.contexts, given)
    live = context.live()
    if fields.impressions:
        # What a scenario records, an operator has said.
        context.access.admit(request.headers, LEVELS["rate"])
    # In the write in which the user is looked up.
    asked = ask_for_user(context, scenario, user_id)
    profile, degraded = await context.scorer.profile(live, user_id)
    call = await rules_of(context, live, asked, fields, category=category, n_bytes=n_bytes)
    seen = profile.history
    if call.rules.exclude_seen and not profile.whole:
        _, seen = await context.store.users.history(live.epoch, user_id)
    vector = _in_context(live, profile.vector, circumstances)
    person = _Person(vector, profile.history, await seen_rows(context, seen, call.rules.exclude_seen))
    answer = await _answer(context, live, person, page, call)
    answer.user_id, answer.degraded = user_id.decode(), answer.degraded | degraded
    if request.method == "HEAD":
        # No list is shown.
        return json_answer(answer)
    context.feedback.listed(live.generation, call.member)
    if call.rules.impressions and not answer.degraded:
        registry = context.store.items(live.epoch)
        shown = [
            (item_id, registry.row(item_id)) for item_id in (each.item_id.encode() for each in answer.items)
        ]
        known = [(item_id, row) for item_id, row in shown if row is not None]
        try:
            context.take_ratings(request, len(known))
        except Problem:
            context.counts.impressions_lost += len(known)
        else:
            context.feedback.show(live.generation, user_id, known, call.member, n=profile.n)
    return json_answer(answer)


async def _answer(
    context: ServiceContext, live: LiveGeneration, person: _Person, page: Page, call: CallRules
) -> Recommendations:
    """Return the answer to a call, its items described."""
    if call.rules.explore == "none":
        page = page._replace(seed=None)
    elif page.seed is None:
        # Sent back with the answer, so it must fit into `MAX_SEED`.
        page = page._replace(seed=secrets.randbits(48))
    items, reason = await _best_items(context, live, person, page, call)
    arm = None if call.member is None else (call.member.experiment.name, call.member.name)
    token = new_token(live.generation, time.time(), call.scenario, arm)
    named: list[tuple[str, Described]] = [(each.item_id, each) for each in items]
    named += [(each.item_id, each) for item in items for each in item.reasons or ()]
    said = await describe(context, call.rules.include, named)
    return Recommendations(
        *(live.generation, items, _ranked_by(live, call), token),
        seed=page.seed,
        degraded=call.degraded or not said,
        reason=reason,
        arms=None if arm is None else dict([arm]),
    )


def _in_context(live: LiveGeneration, vector: Float32s, circumstances: Float32s | None) -> Float32s:
    """Return the vector of someone as in the context (1, k): it moves the ratings of a list alone, for what
    is chosen has no context.
    """
    if circumstances is None:
        return vector
    shifted: Float32s = live.posterior.shift_users(vector[None], circumstances)[0]
    return shifted


async def seen_rows(context: ServiceContext, history: History, names: bool | tuple[str, ...]) -> Int32s:
    """Return the rows of the items that count as seen; `names`: of types that do. Raises
    `unknown_event_type`.
    """
    if names is False or (names is True and not len(history.feedback)):
        return history.item_row
    types = await context.store.event_types.known()
    if names is True:
        return history.seen(consumed_codes(types))
    codes = {RATING: 0} | {each.name: each.code for each in types}
    unknown = next((name for name in names if name not in codes), None)
    if unknown is not None:
        raise Problem("unknown_event_type", unknown_type(unknown, codes), field="exclude_seen")
    rows = history.seen([codes[name] for name in names])
    return rows if RATING in names else rows[len(history) :]


@Route(
    *("POST", "/recommend", "Recommend", Recommendations),
    (*BODY, "too_many_rows", *_RULE_PROBLEMS, *MODEL),
    needs="read",
    operation_id="recommendAnonymous",
    repeatable=True,
    body=request_body(RecommendBody, {"ratings": [{"item_id": "dune", "rating": 5}], "n": 5}),
)
async def post_recommend(request: web.Request) -> web.StreamResponse:
    """The best items for someone who is not stored."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.predictions) as received:
        body = await _BODY.decode_off_loop(received.raw)
        check_rows(len(body.ratings), MAX_RATINGS, "ratings")
        check_rows(len(body.events), MAX_RATINGS, "events")
        page = _page(body)
        item_ids = body_ids([rating.item_id for rating in body.ratings], "ratings.item_id")
        item_ids += body_ids([event.item_id for event in body.events], "events.item_id")
        codes = await _codes(context, [event.type for event in body.events])
        event_times = checked_times(
            [event.timestamp for event in body.events], time.time(), "events.timestamp"
        )
        values = [rating.rating for rating in body.ratings]
        check_scale(values, context.store.scale.value, "ratings.rating")
        timestamps = [rating.timestamp for rating in body.ratings]
        times = checked_times(timestamps, time.time(), "ratings.timestamp")
        contexts = given_contexts([rating.context for rating in body.ratings], field="ratings.context")
        rated_in = await context_rows(context.store.contexts, contexts)
        circumstances = await context_rows(context.store.contexts, one_context(body.context))
        live = context.live()
        asked = ask_for_user(context, body.scenario, None)
        rows = await context.store.items(live.epoch).rows(item_ids)
        call = await rules_of(context, live, asked, body, n_bytes=len(received.raw))
        n_rated, known = len(values), [k for k, row in enumerate(rows[: len(values)]) if row is not None]
        events = list(zip(rows[n_rated:], codes, event_times, strict=True))
        history = History(
            np.array([rows[k] for k in known], dtype=np.int32),
            np.array([values[k] for k in known], dtype=np.float64),
            np.array([times[k] for k in known], dtype=np.float64),
            _feedback(events, len(known)),
            context=None if rated_in is None else rated_in[known],
        )
        packed = pack_histories([history])
        vectors = await computed(live, history, partial(live.posterior.fold_in_users, live.items, packed))
        seen = await seen_rows(context, history, call.rules.exclude_seen)
        person = _Person(_in_context(live, vectors[0], circumstances), history, seen)
        answer = await _answer(context, live, person, page, call)
    answer.ignored = rows.count(None)
    return json_answer(answer)


async def _codes(context: ServiceContext, names: Sequence[str]) -> list[int]:
    """Return the codes of types of events. Raises `unknown_event_type`, which names the row."""
    if not names:
        return []
    codes = codes_taken(await context.store.event_types.known())
    for row, name in enumerate(names):
        if not codes.get(name):
            detail = unknown_type(name, {each: code for each, code in codes.items() if code})
            raise Problem("unknown_event_type", detail, field="events.type", row=row)
    return [codes[name] for name in names]


def _feedback(events: Sequence[tuple[int | None, int, float]], n_rated: int) -> Feedback:
    """Return events (row, code, time) as they follow so many ratings; of each item and type the last."""
    last: dict[tuple[int, int], tuple[float, ...]] = {}
    for row, code, at in events:
        if row is not None:
            # It stands where it came last.
            last.pop((row, code), None)
            last[row, code] = (row, code, 1.0, at, n_rated)
    if not last:
        return NO_FEEDBACK
    rows, types, value, times, place = (np.array(column) for column in zip(*last.values(), strict=True))
    return Feedback(rows.astype(np.int32), types.astype(np.uint8), value, times, place.astype(np.int64))


def _page(body: ListBody) -> Page:
    """Return which part of a list a body asks for. Raises a `Problem` that names the field."""
    for name, low, high in (("n", 1, MAX_N), ("offset", 0, MAX_OFFSET), ("seed", 0, MAX_SEED)):
        value = getattr(body, name)
        if value is not None and not low <= value <= high:
            raise Problem("invalid_body", f"{name} must be from {low} to {high}, not {value}", field=name)
    if body.explore is not None and body.explore not in EXPLORE:
        raise Problem("invalid_body", f"explore must be one of {', '.join(EXPLORE)}", field="explore")
    return Page(body.offset, body.seed)


def query_seen(query: Query) -> bool | list[str] | None:
    """Return what a query says of what was seen: whether it is left out, or which types count as that."""
    text = query.text("exclude_seen")
    if text is None:
        return None
    if text.lower() in ("true", "false", "1", "0"):
        return query.flag("exclude_seen", default=True)
    return text.split(",")


def _ranked_by(live: LiveGeneration, call: CallRules) -> Order:
    # A generation without a head has expected ratings alone.
    return "rating" if live.ranking is None else call.rules.order or "score"


async def _best_items(
    context: ServiceContext, live: LiveGeneration, person: _Person, page: Page, call: CallRules
) -> tuple[list[Recommended], str | None]:
    """Return the items that are wanted for someone, and why there are none."""
    seen = person.seen.astype(np.int64) if call.rules.exclude_seen else None
    rng = None if page.seed is None else np.random.default_rng(page.seed)
    history = person.history if _ranked_by(live, call) == "score" else None

    async def top(n: int, without: Int64s, allowed: Bools | None) -> Scored:
        request = RankingRequest(
            *(live, person.vector, n, without, history), rng=rng, allowed=allowed, recency=call.rules.recency
        )
        best = await context.rankings.top(request)
        return Scored(best.item_rows, best.scores, best.relevance, best.rating)

    # A boost multiplies a score, or what is above the lowest rating: a scale may begin below 0.
    floor = live.model.scale.low if history is None else 0.0
    found, reason = await ruled(
        context, live, call, top, floor=floor, offset=page.offset, explores=rng is not None, seen=seen
    )
    names, scale = await item_names(context.store.items(live.epoch), found.rows), live.model.scale
    # The expected rating alone has no relevance beside it.
    relevance: Sequence[float | None] = [None] * len(names)
    chosen: Sequence[str | None] = [None] * len(names)
    if history is not None:
        relevance, chosen = shown(found.relevance, scale), relevance_bases(live, history, found.rows)
    everyone = np.zeros(len(names), dtype=np.int64)
    basis = [BASIS[code] for code in live.scorer.basis(person.vector[None], everyone, found.rows)]
    scores, rating = shown(found.scores, scale), shown(found.rating, scale)
    parts = zip(names, scores, rating, basis, relevance, chosen, strict=True)
    listed = [None if each[0] is None else Recommended(each[0], *each[1:]) for each in parts]
    if "reasons" in call.rules.include:
        by_score = history is not None
        may_show = call.view.allowed(time.time(), live.ranker.n_items)
        why = await reasons_of(context, live, person.history, found.rows, may_show, by_score=by_score)
        for item, reasons in zip(listed, why, strict=True):
            if item is not None:
                item.reasons = reasons
    return [each for each in listed if each is not None], reason


def relevance_bases(live: LiveGeneration, history: History, rows: Int64s) -> list[str]:
    """Return what the relevance of items `rows` (m,) to the user with this `history` rests on; of a
    generation with a ranking head.
    """
    if live.ranking is None:
        return []
    head = live.ranking.head
    counted = [each.code for each in head.parameters.types if each.weight]
    has_events = len(history) > 0 or bool(np.isin(history.feedback.type_code, counted).any())
    # How often an item is chosen says nothing of the user.
    has_events = has_events and not live.by_popularity
    codes = relevance_basis(live.items, head.items, rows, has_events=has_events)
    return [BASIS[code] for code in codes]


async def computed(live: LiveGeneration, history: History, compute: Callable[[], T]) -> T:
    """Return what `compute` makes of `history`, in a thread where that, or what was told with it, is long."""
    told = 0 if history.context is None else history.context.nbytes // ENTRY_BYTES
    return compute() if history.entries + told <= _LONG else await live.in_thread(compute)
