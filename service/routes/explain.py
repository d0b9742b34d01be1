"""Why an item has its rating and its place in a list. Invariant: the parts add up to what is served, in all
digits that are shown.
"""

import math
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
from aiohttp import web

from factors import BASIS, Float64s, Scale, explain
from featurestore.codecs import pack_feedback, pack_histories
from featurestore.users.fold_in import columns_of
from service.context import CONTEXT
from service.http.parsing import Query, path_id
from service.http.rating_contexts import CONTEXT_PROBLEMS, context_rows, query_context
from service.http.response import json_answer
from service.openapi import MODEL, Route, query_parameter, whole
from service.prediction_json import rounded, shown
from service.routes.items import item_names
from service.routes.recommend import computed, relevance_bases
from service.rules.request import MAX_N


class Part(msgspec.Struct):
    """By how much one rating of the user moved the score."""

    item_id: str
    rating: float
    contribution: float


class RelevancePart(msgspec.Struct):
    """By how much having chosen one item, by a rating of whatever value or by another event, moved the
    relevance.
    """

    item_id: str
    contribution: float


P = TypeVar("P", Part, RelevancePart)


class Relevance(msgspec.Struct, omit_defaults=True):
    """`base` plus all contributions, and the `rest` of those that `n` left out, is `value`, the relevance of
    GET /recommend; `basis` its `relevance_basis`.
    """

    value: float
    base: float
    parts: list[RelevancePart]
    basis: str
    rest: float | None = None


class Explained(msgspec.Struct, omit_defaults=True):
    """`base` plus all contributions, and the `rest` of those that `n` left out, is `rating`, which is what
    GET /predict answers. `score`: what GET /recommend ranks the item by, of the rating and `relevance`, where
    the generation has a ranking head.
    """

    user_id: str
    item_id: str
    rating: float
    std: float
    basis: str
    base: float
    parts: list[Part]
    generation: int
    degraded: bool = False
    rest: float | None = None
    score: float | None = None
    relevance: Relevance | None = None


@Route(
    *("GET", "/explain/{user_id}/{item_id}", "Recommend", Explained),
    ("invalid_parameter", "not_found", *CONTEXT_PROBLEMS, "data_damaged", *MODEL),
    needs="read",
    operation_id="explain",
    undescribed=("context",),
    parameters=(query_parameter("n", whole(1, MAX_N), "The strongest alone; `rest` is what the others add"),),
)
async def get_explain(request: web.Request) -> web.StreamResponse:
    """Which of the user's own ratings moved a score, and by how much."""
    context = request.app[CONTEXT]
    path = request.rel_url.raw_path
    user_id, item_id = path_id(path, 1, "user_id"), path_id(path, 2, "item_id")
    query = Query(request.raw_path)
    n = query.integer("n", 0, 1, MAX_N) or None
    given = await context_rows(context.store.contexts, query_context(query))
    live = context.live()
    registry = context.store.items(live.epoch)
    profile, degraded = await context.scorer.profile(live, user_id)
    history = profile.history
    row = registry.row(item_id) if degraded else (await registry.rows([item_id]))[0]
    # An unknown item has a score too, by GET /predict, and so it has an explanation.
    row = -1 if row is None else row
    current = profile.vector[None]
    packed = pack_histories([history])
    why_rated = partial(
        explain,
        *(live.posterior, live.items, packed, row),
        current=current,
        attributes=columns_of(live, [profile.attributes]),
        context=given,
    )
    found = await computed(live, history, why_rated)
    scale = live.model.scale
    exact = live.scorer.score(current, np.zeros(1, dtype=np.int64), np.array([row]), context=given)
    score = rounded(exact, scale)
    rating, std = float(score.rating[0]), float(score.std[0])
    values = dict(zip(history.item_row.tolist(), history.rating.tolist(), strict=True))
    base, shares = _shares(rating, found.contributions, scale)
    pairs = zip(await item_names(registry, found.item_rows), found.item_rows.tolist(), shares, strict=True)
    parts = [Part(name or "", values.get(rated, 0.0), contribution) for name, rated, contribution in pairs]
    parts, rest = _strongest(parts, n, scale)
    answer = Explained(
        *(user_id.decode(), item_id.decode(), rating, std, BASIS[score.basis[0]], base, parts),
        live.generation,
        degraded,
        rest,
    )
    if live.ranking is not None:
        whole = pack_feedback([history])
        rank = partial(live.ranking.explain, whole, row, float(exact.rating[0]))
        why = await computed(live, history, rank)
        answer.score, value = shown(np.array([why.score, why.relevance]), scale)
        base, shares = _shares(value, why.contributions, scale)
        named = zip(await item_names(registry, why.item_rows), shares, strict=True)
        moved = [RelevancePart(name or "", contribution) for name, contribution in named]
        moved, rest = _strongest(moved, n, scale)
        basis = relevance_bases(live, history, np.array([row]))[0]
        answer.relevance = Relevance(value, base, moved, basis, rest)
    return json_answer(answer)


def _strongest(parts: list[P], n: int | None, scale: Scale) -> tuple[list[P], float | None]:
    """Return the `n` parts that moved most, the strongest first, and what the others add; all without `n`."""
    parts = sorted(parts, key=lambda part: -abs(part.contribution))
    if n is None:
        return parts, None
    (rest,) = shown(np.array([math.fsum(part.contribution for part in parts[n:])]), scale)
    return parts[:n], rest


def _shares(total: float, contributions: Float64s, scale: Scale) -> tuple[float, list[float]]:
    """Return the base that `contributions` leave of a `total`, and these, all as they are shown."""
    shares = shown(contributions, scale)
    # Of numbers as they are shown, so that their sum is the total in all digits.
    (base,) = shown(np.array([total - math.fsum(shares)]), scale)
    return base, shares
