"""POST and DELETE of ratings.

Invariant: a call is valid as a whole or refused, and acknowledged when all of it is stored.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from aiohttp import web

from factors import Float32s, Float64s, Int64s, Scale
from featurestore.errors import HistoryFull, StoreError, StoreUnavailable
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.batches import Columns
from service.context import CONTEXT, ServiceContext
from service.http.parsing import (
    DescribedId,
    Rows,
    Timestamp,
    body_ids,
    checked_times,
    parsed,
    path_id,
)
from service.http.problems import Problem
from service.http.rating_contexts import CONTEXT_PROBLEMS, Context, Given, context_rows, given_contexts
from service.http.response import json_answer
from service.openapi import BODY, WRITES, Route, list_of, request_body
from service.scoring import PairScorer

log = logging.getLogger("foldin.service")

# So many ratings take the store about 75 ms (7.5 us each), in small steps.
MAX_RATINGS = 10_000
# So many ratings of a call are predicted before they are learned, of a larger call an even sample:
# enough for the error of a minute, at a small part of what storing 10,000 takes.
_PREDICTED = 256
# So few ratings are written together with the question for their users: histories of up to 60 KB come back.
_ASKED_ALONG = 16
# Contexts are stored by a schema, which may be damaged.
_CONTEXT = (*CONTEXT_PROBLEMS, "data_damaged")
# As often another history takes the place of the one that was read: once in a great while.
_ATTEMPTS = 4


class RatingIn(msgspec.Struct, forbid_unknown_fields=True):
    """One rating as it is sent. `timestamp`: seconds since 1970, or ISO 8601; without it, the moment of
    arrival. `context`: under which circumstances it was given.
    """

    user_id: DescribedId
    item_id: DescribedId
    rating: float
    timestamp: Timestamp | None = None
    context: Context | None = None


class Accepted(msgspec.Struct):
    """How many ratings or events were stored, and the generation that was live then (null before the
    first).
    """

    accepted: int
    generation: int | None


class Deleted(msgspec.Struct):
    """How many ratings were taken back."""

    deleted: int
    generation: int | None


_ROWS: Rows[RatingIn] = Rows(RatingIn, MAX_RATINGS, guesses_lines=True)


class Rated(NamedTuple):
    """The ratings of a call, and their contexts."""

    columns: Columns
    contexts: Given | None


def parse_ratings(
    body: bytes | bytearray, scale: Scale, now: float, *, lines: bool, decided: bool = True
) -> Rated:
    """Return the ratings in `body`: one object, an array, or an object a line.

    Raises a `Problem` that names a field, and the first bad row where there are rows.
    """
    rows, is_object = _ROWS.decode(body, lines=lines)
    try:
        user_ids = body_ids([row.user_id for row in rows], "user_id")
        item_ids = body_ids([row.item_id for row in rows], "item_id")
        ratings = np.array([row.rating for row in rows], dtype=np.float64)
        check_scale(ratings, scale, "rating", decided=decided)
        times = checked_times([row.timestamp for row in rows], now, "timestamp")
    except Problem as problem:
        if is_object:
            problem.row = None
        raise
    columns = Columns(user_ids, item_ids, ratings, np.array(times, dtype=np.float64))
    return Rated(columns, given_contexts([row.context for row in rows], numbered=not is_object))


def check_scale(
    values: Sequence[float] | Float64s, scale: Scale, field: str, *, decided: bool = True
) -> None:
    """Raise `invalid_body` for the first of `values` off the scale. Those between its steps are taken.
    `decided`: whether it can no longer be another one.
    """
    array = np.asarray(values, dtype=np.float64)
    outside = np.flatnonzero(~((array >= scale.low) & (array <= scale.high)))
    if len(outside):
        row = int(outside[0])
        detail = f"{field} must be from {scale.low:g} to {scale.high:g}, not {array[row]:g}"
        if not decided:
            detail += "; the scale is not decided yet: PUT /scale before the first rating"
        raise Problem("invalid_body", detail, field=field, row=row)


async def squared_errors(scorer: PairScorer, live: LiveGeneration, columns: Columns) -> Float64s:
    """Return the squared errors (m, 2) of a generation on ratings that it has not learned yet, and of what an
    unknown user would be told; of a large call, on a sample.
    """
    if len(columns) > _PREDICTED:
        # Every n-th would be of the same few items where a file is sorted.
        chosen = np.random.default_rng(len(columns)).choice(len(columns), _PREDICTED, replace=False)
        columns = columns.taken(np.sort(chosen).tolist())
    positions: dict[bytes, int] = {}
    index = [positions.setdefault(user_id, len(positions)) for user_id in columns.user_id]
    vectors, item_rows, _ = await scorer.look_up(live, list(positions), columns.item_id)
    return _errors(live, columns, vectors, np.array(index, dtype=np.int64), item_rows)


async def errors_as_asked(
    context: ServiceContext, live: LiveGeneration, columns: Columns, asked: "asyncio.Future[list[Any]]"
) -> Float64s:
    """Return the squared errors (m, 2) on ratings that were written since their users were `asked` for; none
    on those of users of whom that is not known.
    """
    users, registry = list(dict.fromkeys(columns.user_id)), context.store.items(live.epoch)
    try:
        current, known = await context.store.users.answered(live, users, asked)
    except StoreError as exc:
        # The ratings are stored.
        log.warning("ratings were not predicted reason=%s", exc)
        return np.zeros((0, 2))
    rows = [registry.row(item_id) for item_id in columns.item_id]
    item_rows = np.array([-1 if row is None else row for row in rows], dtype=np.int64)
    index = np.array([users.index(user_id) for user_id in columns.user_id], dtype=np.int64)
    return _errors(live, columns, current.vectors, index, item_rows)[known[index]]


def _errors(
    live: LiveGeneration, columns: Columns, vectors: Float32s, index: Int64s, item_rows: Int64s
) -> Float64s:
    """Return the squared errors (m, 2) of users by their `vectors`, and of what an unknown user is told."""
    # Both in one call: for a few pairs the number of calls into numpy is all that counts.
    users, rows = np.concatenate((index, np.full(len(index), -1))), np.tile(item_rows, 2)
    contexts = None if columns.context is None else np.tile(columns.context, (2, 1))
    predicted = live.scorer.score(vectors, users, rows, context=contexts).rating
    return np.square(columns.rating - predicted.reshape(2, -1)).T


@Route(
    *("POST", "/ratings", "Ratings", Accepted),
    (*BODY, "too_many_rows", "too_many_items", "too_many_ratings", "stream_full", *_CONTEXT, *WRITES),
    needs="rate",
    operation_id="rate",
    repeatable=True,
    body=request_body(
        {"anyOf": [RatingIn, list_of(RatingIn, MAX_RATINGS)]},
        [{"user_id": "ann", "item_id": "dune", "rating": 5}],
        lines=True,
    ),
)
async def post_ratings(request: web.Request) -> web.StreamResponse:
    """Learn ratings: one, an array, or one a line. One bad row refuses all; reads after a 2xx know them."""
    context = request.app[CONTEXT]
    context.require_room()
    async with context.bodies.read(request, context.imports, takes_lines=True) as (raw, lines):
        # One moment for the whole call: its ratings keep their order.
        now, scale = time.time(), await context.scale_now()
        rated = await parsed(parse_ratings, raw, scale.value, now, lines=lines, decided=scale.decided)
        context.take_ratings(request, len(rated.columns))
        return json_answer(await store_columns(request, *rated))


async def store_columns(request: web.Request, columns: Columns, contexts: Given | None) -> Accepted:
    """Store the ratings, or events of any types, of a call that was charged, with their contexts, and count
    them. Raises what refuses them.
    """
    context = request.app[CONTEXT]
    ratings_log, users, counts = context.store.ratings, context.store.users, context.counts
    most_entries = context.settings.history_entries
    try:
        admit = partial(ratings_log.admit, columns, most_entries=most_entries)
        if (rows := await context_rows(context.store.contexts, contexts, extend=admit)) is not None:
            columns = replace(columns, context=rows)
        live, errors, asked, ratings = context.follower.live, np.zeros((0, 2)), None, columns.ratings()
        # Before they are stored: the error on what the model has not learned is the honest one.
        if live is not None and len(ratings):
            if len(ratings) <= _ASKED_ALONG:
                asked = users.ask(live, list(dict.fromkeys(ratings.user_id)))
            else:
                errors = await squared_errors(context.scorer, live, ratings)
        await ratings_log.append_columns(columns, most_entries=most_entries)
        if asked is not None and live is not None:
            errors = await errors_as_asked(context, live, ratings, asked)
        if len(columns) <= _PREDICTED:
            users.raters.add(columns.user_id)
    except HistoryFull as exc:
        row = columns.user_id.index(exc.user_id)
        raise Problem("too_many_ratings", str(exc), field="user_id", row=row) from exc
    counts.rated(errors, len(ratings))
    counts.events += len(columns) - len(ratings)
    return Accepted(len(columns), live.generation if live else None)


async def take_back(request: web.Request, user_id: bytes, item_id: bytes, code: int) -> bool:
    """Take back what a user has done with an item, by the code of the type of event, 0 for the rating; return
    whether there was any. One who is forgotten meanwhile stays so.

    Raises `StoreUnavailable` where the history is replaced again and again.
    """
    context = request.app[CONTEXT]
    for _ in range(_ATTEMPTS):
        epoch = await context.epoch()
        (row,) = await context.store.items(epoch).rows([item_id])
        n, history = await context.store.users.history(epoch, user_id)
        feedback = history.feedback
        rows = history.item_row if code == 0 else feedback.item_row[feedback.type_code == code]
        if row is None or row not in rows:
            return False
        # The last entry of a pair counts, and NaN means none.
        one = np.array([math.nan]), np.array([time.time()])
        kind = None if code == 0 else np.array([code], dtype=np.uint8)
        if not await context.store.ratings.append_columns(
            Columns([user_id], [item_id], *one, kind, {user_id: n})
        ):
            return True
        # Forgotten since it was read, or of another history: it is read again.
    raise StoreUnavailable("the history is being replaced just now", 0.1)


@Route(
    *("DELETE", "/ratings/{user_id}/{item_id}", "Ratings", Deleted),
    ("invalid_parameter", "unknown_rating", "not_found", "stream_full", *WRITES),
    needs="rate",
    operation_id="unrate",
)
async def delete_rating(request: web.Request) -> web.StreamResponse:
    """Take one rating back."""
    context = request.app[CONTEXT]
    context.take_ratings(request, 1)
    path = request.rel_url.raw_path
    user_id, item_id = path_id(path, 1, "user_id"), path_id(path, 2, "item_id")
    live = context.follower.live
    if not await take_back(request, user_id, item_id, 0):
        raise Problem("unknown_rating", "this user has not rated this item")
    context.counts.ratings_deleted += 1
    return json_answer(Deleted(1, live.generation if live else None))
