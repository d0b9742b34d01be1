"""Lists that are about no user: items like one, the most loved, the trending, the latest.

Invariant: a row that has no name yet is in no answer, and neither is what may not be shown.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
from aiohttp import web

from factors import Bools, Float64s, Int64s
from featurestore.generations.activity import Positives
from featurestore.generations.live import LiveGeneration
from service.call_rules import (
    QUERY_RULES,
    CallRules,
    Listed,
    ask,
    check_rearranging,
    directions,
    query_rules,
    ruled,
    rules_of,
)
from service.context import CONTEXT, ServiceContext
from service.http.parsing import Query, path_id
from service.http.response import json_answer
from service.openapi import MODEL, Route, query_parameter
from service.prediction_json import shown
from service.routes.included import Described, describe, no_reasons
from service.routes.items import QUERY_N, item_names, item_row, positive_counts, statistics_of
from service.rules.columns import Columns
from service.rules.likeness import best_rows, likeness
from service.rules.listing import Ranking, Scored
from service.rules.request import DEFAULT_N

T = TypeVar("T")
BY = ("behaviour", "content", "both")
POPULAR_BY = ("rating", "events")
# By both: so many times what is wanted, and some, of the best by either are compared.
_PER_ITEM, _SPARE = 4, 200
# Items whose texts are compared, or whose times are sorted, in 2 ms.
_QUICK_ROWS = 20_000
NO_ACTIVITY = "this generation does not say what is rated of late; the next fit will"
NO_POSITIVES = "this generation has learned no event that is no rating; the next fit may"
_PROBLEMS = ("invalid_parameter", "invalid_rule", "unknown_scenario", "data_damaged")


class Neighbour(Described):
    """An item and how near it is: 1 is the same taste or content, 0 none in common."""

    item_id: str
    score: float


class Similar(msgspec.Struct, omit_defaults=True):
    """The nearest items, best first. `reason`: why there are none."""

    item_id: str
    generation: int
    items: list[Neighbour]
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
    by: str = "rating"
    degraded: bool = False
    reason: str | None = None


class Rising(Described):
    """An item and its ratings, each counted half for each week since it was given."""

    item_id: str
    score: float


class Trending(msgspec.Struct, omit_defaults=True):
    """The items that are rated most of late, most first. `reason`: why there are none."""

    generation: int
    items: list[Rising]
    degraded: bool = False
    reason: str | None = None


class New(Described):
    """An item and since when it may be shown, in seconds since 1970; null where that was not said."""

    item_id: str
    available_from: float | None


class Latest(msgspec.Struct, omit_defaults=True):
    """The latest items, the last first. `reason`: why there are none."""

    generation: int
    items: list[New]
    degraded: bool = False
    reason: str | None = None


@Route(
    *("GET", "/similar/{item_id}", "Recommend", Similar),
    ("unknown_item", *_PROBLEMS, "not_found", *MODEL),
    needs="read",
    operation_id="similar",
    parameters=(
        QUERY_N,
        query_parameter(
            "by",
            {"type": "string", "enum": list(BY), "default": "behaviour"},
            "`behaviour`: whose ratings or events go together; `content`: that share texts in the catalogue",
        ),
        *QUERY_RULES,
    ),
)
async def get_similar(request: web.Request) -> web.StreamResponse:
    """The items most like one."""
    context, query = request.app[CONTEXT], Query(request.raw_path)
    by = query.choice("by", "behaviour", BY)
    item_id = path_id(request.rel_url.raw_path, 1, "item_id")
    live, call, n = await _asked(context, query)
    # An item of the catalogue has a row, whether it was rated or not.
    row = await item_row(context.store.items(live.epoch), item_id)
    # Wherever else it is pinned, it is not like itself.
    pinned = tuple(pin for pin in call.rules.pinned if pin[1] != item_id)
    call = call._replace(rules=replace(call.rules, pinned=pinned))

    async def behaviour(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        found = await context.rankings.similar(live, row, n, _without(allowed, exclude, live.ranker.n_items))
        return _scored(found.item_rows, found.scores)

    content = np.zeros(0)
    if by != "behaviour":
        n_items = live.ranker.n_items
        content = await _read(context, call, n_items, partial(likeness, call.view.columns, row, n_items))

    async def by_content(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        return await _read(context, call, len(content), partial(_best, content, n, exclude, allowed))

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

    top = {"behaviour": behaviour, "content": by_content, "both": by_both}[by]
    ranking = Ranking(top, partial(directions, context, live), 0.0)
    found, reason = await _listed(context, live, call, ranking, n, row)
    names = await item_names(context.store.items(live.epoch), found.rows)
    items = [
        Neighbour(name, score)
        for name, score in zip(names, shown(found.scores, live.model.scale), strict=True)
        if name is not None
    ]
    degraded = await _described(context, call, items)
    return json_answer(Similar(item_id.decode(), live.generation, items, degraded, reason))


@Route(
    *("GET", "/popular", "Recommend", Popular),
    (*_PROBLEMS, *MODEL),
    needs="read",
    operation_id="popular",
    parameters=(
        QUERY_N,
        query_parameter(
            "by",
            {"type": "string", "enum": list(POPULAR_BY)},
            "`rating`: what an average user would give; `events`: the weight of positive events. Without it "
            "by rating, and by events where the generation has learned no rating, or next to none",
        ),
        *QUERY_RULES,
    ),
)
async def get_popular(request: web.Request) -> web.StreamResponse:
    """The most loved items.

    That is, the items that the average user would rate highest, by lower confidence bound; or those with the
    most positive events, by their weights.
    """
    context, query = request.app[CONTEXT], Query(request.raw_path)
    by = query.choice("by", "", POPULAR_BY)
    live, call, n = await _asked(context, query)
    by = by or ("events" if live.by_events else "rating")
    positives = live.positives if by == "events" else None
    if by == "events" and positives is None:
        return json_answer(Popular(live.generation, [], by, call.degraded, NO_POSITIVES))

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
    ranking = Ranking(top, partial(directions, context, live), floor)
    found, reason = await _listed(context, live, call, ranking, n)
    names = await item_names(context.store.items(live.epoch), found.rows)
    scores, counts = shown(found.scores, live.model.scale), positive_counts(positives, found.rows)
    parts = zip(names, scores, statistics_of(live, found.rows), counts, strict=True)
    items = [Loved(name, score, *known, count) for name, score, known, count in parts if name is not None]
    degraded = await _described(context, call, items)
    return json_answer(Popular(live.generation, items, by, degraded, reason))


@Route(
    *("GET", "/trending", "Recommend", Trending),
    (*_PROBLEMS, *MODEL),
    needs="read",
    operation_id="trending",
    parameters=(QUERY_N, *QUERY_RULES),
)
async def get_trending(request: web.Request) -> web.StreamResponse:
    """The items that are rated most of late.

    A rating counts half as much with each week that goes by.
    """
    context, query = request.app[CONTEXT], Query(request.raw_path)
    live, call, n = await _asked(context, query)
    activity = live.activity
    if activity is None:
        return json_answer(Trending(live.generation, [], call.degraded, NO_ACTIVITY))
    scores = await _read(context, call, activity.n_items, partial(activity.at, time.time()))

    async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        return await _read(context, call, len(scores), partial(_best, scores, n, exclude, allowed))

    ranking = Ranking(top, partial(directions, context, live), 0.0)
    found, reason = await _listed(context, live, call, ranking, n)
    names = await item_names(context.store.items(live.epoch), found.rows)
    items = [
        Rising(name, score)
        for name, score in zip(names, shown(found.scores, live.model.scale), strict=True)
        if name is not None
    ]
    degraded = await _described(context, call, items)
    return json_answer(Trending(live.generation, items, degraded, reason))


@Route(
    *("GET", "/latest", "Recommend", Latest),
    (*_PROBLEMS, *MODEL),
    needs="read",
    operation_id="latest",
    parameters=(QUERY_N, *QUERY_RULES),
)
async def get_latest(request: web.Request) -> web.StreamResponse:
    """The latest items.

    By `available_from`; those without it behind them, the ones that came last first.
    """
    context, query = request.app[CONTEXT], Query(request.raw_path)
    live, call, n = await _asked(context, query)
    # A time is no score that could be multiplied, or weighed against differences.
    call = call._replace(rules=replace(call.rules, boosts=(), trade_off=None))

    async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
        mask = _without(allowed, exclude, live.ranker.n_items)
        return await _read(context, call, len(mask), partial(_latest, call.view.columns, mask, n))

    ranking = Ranking(top, partial(directions, context, live), 0.0)
    found, reason = await _listed(context, live, call, ranking, n)
    names = await item_names(context.store.items(live.epoch), found.rows)
    items = [
        New(name, None if math.isinf(since) else since)
        for name, since in zip(names, found.scores.tolist(), strict=True)
        if name is not None
    ]
    degraded = await _described(context, call, items)
    return json_answer(Latest(live.generation, items, degraded, reason))


async def _asked(context: ServiceContext, query: Query) -> tuple[LiveGeneration, CallRules, int]:
    """Return what is live, the rules, and how many items are wanted."""
    live = context.live()
    fields, category = query_rules(query)
    no_reasons(fields.include or ())
    asked = ask(context, query.text("scenario"))
    call = await rules_of(context, live, asked, fields, category=category)
    return live, call, call.rules.n or DEFAULT_N


async def _described(
    context: ServiceContext, call: CallRules, items: Sequence[Neighbour | Loved | Rising | New]
) -> bool:
    """Write what the call includes into `items`; return whether the answer is degraded."""
    said = await describe(context, call.rules.include, [(each.item_id, each) for each in items])
    return call.degraded or not said


async def _listed(
    context: ServiceContext, live: LiveGeneration, call: CallRules, ranking: Ranking, n: int, *less: int
) -> Listed:
    """Return the first `n` of a list, without the rows `less`."""
    check_rearranging(call.rules, n, explores=False)
    registry, n_items = context.store.items(live.epoch), live.ranker.n_items
    if n_items > len(registry):
        await registry.refresh()
    # Rows that are not given to an item yet have no name.
    exclude = np.array([*less, *range(len(registry), n_items)], dtype=np.int64)
    return await ruled(context, live, call, ranking, wanted=n, exclude=exclude)


async def _read(context: ServiceContext, call: CallRules, n_items: int, compute: Callable[[], T]) -> T:
    """Return what `compute` makes of the columns, in a thread where there are many rows."""
    await call.view.settle()
    in_thread, quick = context.rankings.in_thread, n_items <= _QUICK_ROWS
    return await call.view.columns.read(compute, in_thread, quick=quick)


def _latest(columns: Columns, allowed: Bools, n: int) -> Scored:
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
