"""Top-N and explanations.

Invariant: what a user has rated is not recommended unless asked for, whoever stored it when.
"""

import asyncio
import secrets
import time
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from aiohttp import web
from msgspec import Meta

from factors import Float32s, explain
from featurestore.codecs import History, pack_histories
from featurestore.generations.live import LiveGeneration
from featurestore.item_registry import ItemRegistry
from service.context import CONTEXT, ServiceContext
from service.http.bodies import is_lines, parsed
from service.http.parsing import (
    MAX_TIMESTAMP,
    Body,
    DescribedId,
    Query,
    Timestamp,
    body_ids,
    check_rows,
    path_id,
)
from service.http.problems import Problem
from service.http.response import Answer
from service.openapi import BODY, MODEL, described, query, request_body, whole
from service.routes.items import MAX_N, QUERY_N, expected, item_names, item_row
from service.routes.ratings import MAX_RATINGS, check_scale

MAX_OFFSET = 10_000
EXPLORE = ("none", "thompson")
# What a JSON number holds exactly.
MAX_SEED = 2**53
_EXPLORE_SCHEMA = {"type": "string", "enum": list(EXPLORE), "default": "none"}
# Histories that are longer are folded in and explained in a thread: about 2 ms.
_LONG = 2000


class Recommended(msgspec.Struct):
    """An item and the rating that is expected of it."""

    item_id: str
    score: float


class Recommendations(msgspec.Struct, omit_defaults=True):
    """Items, best first. `ignored`: ratings of the call whose item nobody knows."""

    generation: int
    items: list[Recommended]
    user_id: str | None = None
    ignored: int | None = None
    seed: int | None = None


class AnonymousRating(msgspec.Struct):
    """A rating of someone who is not stored."""

    item_id: DescribedId
    rating: float
    timestamp: Timestamp | None = None


class RecommendBody(msgspec.Struct):
    """Someone's ratings, and what is wanted."""

    ratings: Annotated[list[AnonymousRating], Meta(extra_json_schema={"maxItems": MAX_RATINGS})]
    n: Annotated[int, Meta(extra_json_schema=whole(1, MAX_N))] = 10
    offset: Annotated[int, Meta(extra_json_schema=whole(0, MAX_OFFSET))] = 0
    exclude_seen: bool = True
    explore: Annotated[str, Meta(extra_json_schema=_EXPLORE_SCHEMA)] = "none"
    seed: Annotated[int, Meta(extra_json_schema=whole(0, MAX_SEED))] | None = None


class Part(msgspec.Struct):
    """By how much one rating of the user moved the score."""

    item_id: str
    rating: float
    contribution: float


class Explained(msgspec.Struct):
    """`base` plus all contributions is `rating`, which is what GET /predict answers."""

    user_id: str
    item_id: str
    rating: float
    std: float
    basis: str
    base: float
    parts: list[Part]
    generation: int


_BODY: Body[RecommendBody] = Body(RecommendBody)
_ENCODE = msgspec.json.Encoder().encode


async def _top(
    context: ServiceContext,
    live: LiveGeneration,
    registry: ItemRegistry,
    vector: Float32s,
    *,
    seen: npt.NDArray[np.integer],
    wanted: tuple[int, int],
    seed: int | None,
) -> list[Recommended]:
    """`wanted` = (n, offset) items; with `seed` a draw from the posterior ranks them."""
    n, offset = wanted
    table = live.ranker.n_items
    if table > len(registry):
        await registry.refresh()
    # Rows that nobody has been given yet have no name.
    exclude = np.concatenate([seen.astype(np.int64), np.arange(len(registry), table, dtype=np.int64)])
    rng = None if seed is None else np.random.default_rng(seed)
    found = await context.rankings.top(live, vector, n + offset, exclude, rng)
    rows, scores = found.item_rows[offset:], found.scores[offset:].tolist()
    names = await item_names(registry, rows)
    return [Recommended(name, score) for name, score in zip(names, scores, strict=True) if name is not None]


def _seed(explore: str, seed: int | None) -> int | None:
    if explore == "none":
        return None
    return secrets.randbits(48) if seed is None else seed


@described(
    *("GET", "/recommend/{user_id:[^/]*}", "Recommend", Recommendations),
    ("invalid_parameter", "not_found", *MODEL),
    operation_id="recommend",
    parameters=(
        QUERY_N,
        query("offset", whole(0, MAX_OFFSET, 0), "How many of the best to leave out"),
        query("exclude_seen", {"type": "boolean", "default": True}, "Leave out what the user has rated"),
        query("explore", _EXPLORE_SCHEMA, "`thompson` ranks by a draw from the posterior"),
        query("seed", whole(0, MAX_SEED), "Makes a draw repeatable"),
    ),
)
async def get_recommend(request: web.Request) -> web.StreamResponse:
    """The best items for a user.

    For an unknown one, what the prior says.
    """
    context = request.app[CONTEXT]
    asked = Query(request.raw_path)
    n, offset = asked.integer("n", 10, 1, MAX_N), asked.integer("offset", 0, 0, MAX_OFFSET)
    exclude_seen = asked.flag("exclude_seen", default=True)
    explore = asked.choice("explore", "none", EXPLORE)
    given = asked.integer("seed", -1, 0, MAX_SEED)
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    live = context.live()
    store = context.store
    profile = await store.users.profile(live, user_id)
    seen = profile.history.item_row if exclude_seen else np.zeros(0, dtype=np.int32)
    seed = _seed(explore, None if given < 0 else given)
    registry = store.items(live.epoch)
    items = await _top(context, live, registry, profile.vector, seen=seen, wanted=(n, offset), seed=seed)
    return Answer(_ENCODE(Recommendations(live.generation, items, user_id.decode(), seed=seed)))


@described(
    *("POST", "/recommend", "Recommend", Recommendations),
    (*BODY, "too_many_rows", *MODEL),
    operation_id="recommendAnonymous",
    body=request_body(RecommendBody, {"ratings": [{"item_id": "dune", "rating": 5}], "n": 5}),
)
async def post_recommend(request: web.Request) -> web.StreamResponse:
    """The best items for someone who is not stored."""
    context = request.app[CONTEXT]
    if is_lines(request):
        raise Problem("unsupported_media_type", "send application/json")
    async with context.bodies.read(request) as body, context.predictions.turn(len(body)):
        return await _recommend_for(context, await parsed(body, _BODY.decode))


async def _recommend_for(context: ServiceContext, asked: RecommendBody) -> Answer:
    store = context.store
    check_rows(len(asked.ratings), MAX_RATINGS, "ratings")
    for name, low, high in (("n", 1, MAX_N), ("offset", 0, MAX_OFFSET), ("seed", 0, MAX_SEED)):
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:
            raise Problem("invalid_body", f"{name} must be from {low} to {high}, not {value}", field=name)
    if asked.explore not in EXPLORE:
        raise Problem("invalid_body", f"explore must be one of {', '.join(EXPLORE)}", field="explore")
    item_ids = body_ids([rating.item_id for rating in asked.ratings], "ratings.item_id")
    values = [rating.rating for rating in asked.ratings]
    check_scale(values, store.config.scale, "ratings.rating")
    now = time.time()
    times = [now if rating.timestamp is None else rating.timestamp for rating in asked.ratings]
    for row, moment in enumerate(times):
        if not abs(moment) <= MAX_TIMESTAMP:
            detail = f"ratings.timestamp must be seconds since 1970, not {moment:g}"
            raise Problem("invalid_body", detail, field="ratings.timestamp", row=row)
    live = context.live()
    registry = store.items(live.epoch)
    rows = await registry.rows(item_ids)
    known = [place for place, row in enumerate(rows) if row is not None]
    history = History(
        np.array([rows[place] for place in known], dtype=np.int32),
        np.array([values[place] for place in known], dtype=np.float64),
        np.array([times[place] for place in known], dtype=np.float64),
    )
    vector = await _fold_in(live, history)
    seen = history.item_row if asked.exclude_seen else np.zeros(0, dtype=np.int32)
    seed = _seed(asked.explore, asked.seed)
    items = await _top(context, live, registry, vector, seen=seen, wanted=(asked.n, asked.offset), seed=seed)
    ignored = len(rows) - len(known)
    return Answer(_ENCODE(Recommendations(live.generation, items, ignored=ignored, seed=seed)))


async def _fold_in(live: LiveGeneration, history: History) -> Float32s:
    packed = pack_histories([history])
    if len(history) <= _LONG:
        rows = live.posterior.fold_in_users(live.items, packed)
    else:
        rows = await asyncio.to_thread(live.posterior.fold_in_users, live.items, packed)
    vector: Float32s = rows[0]
    return vector


@described(
    *("GET", "/explain/{user_id:[^/]*}/{item_id:[^/]*}", "Recommend", Explained),
    ("invalid_parameter", "not_found", *MODEL),
    operation_id="explain",
)
async def get_explain(request: web.Request) -> web.StreamResponse:
    """Which of the user's own ratings moved a score, and by how much."""
    context = request.app[CONTEXT]
    path = request.rel_url.raw_path
    user_id, item_id = path_id(path, 1, "user_id"), path_id(path, 2, "item_id")
    live = context.live()
    store = context.store
    registry = store.items(live.epoch)
    profile = await store.users.profile(live, user_id)
    try:
        row = await item_row(live, registry, item_id)
    except Problem:
        # An item that nobody knows has a score too, by GET /predict, and so it has an explanation.
        row = -1
    packed = pack_histories([profile.history])
    if len(profile.history) <= _LONG:
        found = explain(live.posterior, live.items, packed, row, current=profile.vector[None])
    else:
        found = await asyncio.to_thread(
            explain, live.posterior, live.items, packed, row, current=profile.vector[None]
        )
    score = expected(live, profile.vector[None], 0 if profile.n else -1, row)
    values = dict(zip(profile.history.item_row.tolist(), profile.history.rating.tolist(), strict=True))
    names = await item_names(registry, found.item_rows)
    # The base is what is left of the score that is served, so that the parts add up to that one exactly.
    base = score.rating - float(found.contributions.sum())
    parts = [
        Part(name or "", values.get(rated, 0.0), contribution)
        for name, rated, contribution in zip(
            names, found.item_rows.tolist(), found.contributions.tolist(), strict=True
        )
    ]
    parts.sort(key=lambda part: -abs(part.contribution))
    answer = Explained(
        *(user_id.decode(), item_id.decode(), score.rating, score.std, score.basis, base, parts),
        live.generation,
    )
    return Answer(_ENCODE(answer))
