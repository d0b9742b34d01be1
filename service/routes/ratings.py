"""POST and DELETE of ratings.

Invariant: a call is valid as a whole or refused, and acknowledged when all of it is stored.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
from aiohttp import web

from factors import Float64s, Scale
from featurestore.errors import HistoryFull, StoreUnavailable
from featurestore.ratings.batches import Columns
from service.context import CONTEXT
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

# So many ratings take the store about 75 ms (7.5 us each), in small steps.
MAX_RATINGS = 10_000
# So few ratings are written together with the question for their users: histories of up to 60 KB come back.
_ASKED_ALONG = 16
# The users of so few are likely to be asked for next.
_RATERS = 256
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
        live, errors, asked, ratings = context.follower.live, None, None, columns.ratings()
        # Before they are stored: the error on what the model has not learned is the honest one.
        if live is not None and len(ratings):
            if len(ratings) <= _ASKED_ALONG:
                asked = context.rating_errors.ask(live, ratings)
            else:
                errors = await context.rating_errors.of_many(live, ratings)
        await ratings_log.append_columns(columns, most_entries=most_entries)
        if asked is not None:
            context.rating_errors.stored(asked)
        if len(columns) <= _RATERS:
            users.raters.add(columns.user_id)
    except HistoryFull as exc:
        row = columns.user_id.index(exc.user_id)
        raise Problem("too_many_ratings", str(exc), field="user_id", row=row) from exc
    counts.rated(len(ratings))
    if errors is not None:
        counts.predicted(errors)
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
