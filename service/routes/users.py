"""What is known of a user, who is like that user, and forgetting it.

Invariant: after a 200 for DELETE no read finds anything of that user.
"""

import math
import re
import time
from functools import partial

import msgspec
import numpy as np
from aiohttp import web

from featurestore.errors import StoreDamaged, StoreUnavailable
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Query, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.neighbours import Seeker
from service.openapi import MODEL, STORE, WRITES, Route, query_parameter, whole
from service.prediction_json import Prediction, shown
from service.routes.deletions import Receipt
from service.routes.items import expected, item_names

# A page for people; a long history is read page by page.
MAX_PAGE = 1000
# A list for people.
MAX_NEAR, MAX_NEAR_OFFSET = 100, 900
NO_ONE = (
    "the last fit knew no other user, or was made by an older version; the next one will say who there is"
)
# No history is longer.
MAX_OFFSET = 2**31
# Which part of what a user has done, the latest first.
HISTORY_PAGE = (
    query_parameter("n", whole(1, MAX_PAGE, 100), "How many"),
    query_parameter("offset", whole(0, MAX_OFFSET, 0), "How many of the latest to leave out"),
)
# Where a search of users goes on: 64 bits of the store, as a page says.
_CURSOR = re.compile("^[0-9a-f]{1,16}$")


class UserOut(msgspec.Struct, omit_defaults=True):
    """What is known of a user. `expected`: of an unknown item. `events`: all that were made or taken
    back, ratings and others.
    """

    user_id: str
    ratings: int
    mean: float | None
    events: int
    expected: Prediction
    generation: int
    degraded: bool = False


class UsersPage(msgspec.Struct):
    """Some of the users, in no order. `next`: where to go on; null at the end."""

    users: list[str]
    next: str | None


class RatingOut(msgspec.Struct):
    """One rating of a user. `timestamp` is null where it is not known. `context`: as it was given, numbers
    with the digits of a float32; not there where none was.
    """

    item_id: str
    rating: float
    timestamp: float | None
    context: dict[str, float | str] | msgspec.UnsetType = msgspec.UNSET


class RatingsPage(msgspec.Struct):
    """Some of a user's ratings, the latest first. `total`: how many there are."""

    user_id: str
    total: int
    n: int
    offset: int
    ratings: list[RatingOut]


class NearUserOut(msgspec.Struct, omit_defaults=True):
    """A user, how like the taste is (1: the same, 0: none in common), and how many ratings say so; where the
    generation has learned none, how many `events`.
    """

    user_id: str
    similarity: float
    ratings: int
    events: int | None = None


class NeighboursOut(msgspec.Struct, omit_defaults=True):
    """The users nearest to one, the nearest first. `among`: of how many they are the nearest. `reason`: why
    there are none.
    """

    user_id: str
    generation: int
    neighbours: list[NearUserOut]
    among: int
    reason: str | None = None
    degraded: bool = False


@Route(
    *("GET", "/users/{user_id}", "Users and items", UserOut),
    ("invalid_parameter", "not_found", *STORE, "unknown_user", "no_generation"),
    needs="read",
    operation_id="getUser",
)
async def get_user(request: web.Request) -> web.StreamResponse:
    """What is known of a user."""
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    live = context.live()
    profile, degraded = await context.scorer.profile(live, user_id)
    if profile.n == 0:
        raise Problem("unknown_user", "no rating of this user is known")
    history = profile.history
    if not profile.whole:
        _, history = await context.store.users.history(live.epoch, user_id)
    ratings = history.rating
    mean = float(ratings.mean()) if len(ratings) else None
    score = expected(live, profile.vector[None], 0, -1)
    return json_answer(
        UserOut(user_id.decode(), len(ratings), mean, profile.n, score, live.generation, degraded)
    )


@Route(
    *("GET", "/users", "Users and items", UsersPage, ("invalid_parameter", *STORE)),
    needs="read",
    operation_id="findUsers",
    parameters=(
        query_parameter("prefix", {"type": "string", "default": ""}, "How ids begin"),
        query_parameter("n", whole(1, MAX_PAGE, 20), "About how many"),
        query_parameter(
            "cursor", {"type": "string", "pattern": _CURSOR.pattern}, "`next` of the page before"
        ),
    ),
)
async def get_users(request: web.Request) -> web.StreamResponse:
    """Users whose ids begin with a text. A call looks through a part of the store, so a page may be short."""
    context, query = request.app[CONTEXT], Query(request.raw_path)
    n, cursor = query.integer("n", 20, 1, MAX_PAGE), query.text("cursor")
    if cursor is not None and _CURSOR.fullmatch(cursor) is None:
        raise Problem("invalid_parameter", "cursor must be `next` of a page", field="cursor")
    prefix = (query.text("prefix") or "").encode()
    start = int(cursor or "0", 16)
    ids, after = await context.store.user_search.find(await context.epoch(), prefix, n, start)
    return json_answer(UsersPage([each.decode() for each in ids], f"{after:x}" if after else None))


@Route(
    *("GET", "/users/{user_id}/ratings", "Users and items", RatingsPage),
    ("invalid_parameter", "not_found", *STORE, "unknown_user"),
    needs="read",
    operation_id="getUserRatings",
    parameters=HISTORY_PAGE,
)
async def get_user_ratings(request: web.Request) -> web.StreamResponse:
    """The ratings of a user, the latest first."""
    context = request.app[CONTEXT]
    query = Query(request.raw_path)
    n, offset = query.integer("n", 100, 1, MAX_PAGE), query.integer("offset", 0, 0, MAX_OFFSET)
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    store, epoch = context.store, await context.epoch()
    made, history = await context.store.users.history(epoch, user_id)
    if made == 0:
        raise Problem("unknown_user", "no rating of this user is known")
    # A history has the order in which ratings came.
    page = slice(offset, offset + n)
    names = await item_names(store.items(epoch), history.item_row[::-1][page])
    times = history.time[::-1][page].tolist()
    ratings = [
        RatingOut(name or "", rating, None if math.isnan(moment) else moment)
        for name, rating, moment in zip(names, history.rating[::-1][page].tolist(), times, strict=True)
    ]
    if history.context is not None:
        try:
            # As it is now: the latest ratings may have a field of a moment ago.
            schema = await store.contexts.fresh()
        except StoreDamaged:
            # Ratings are worth more than what was told with them.
            schema = await store.contexts.known()
        for rating, row in zip(ratings, history.context[::-1][page], strict=True):
            rating.context = schema.named(row) or msgspec.UNSET
    ratings = [rating for rating, name in zip(ratings, names, strict=True) if name is not None]
    return json_answer(RatingsPage(user_id.decode(), len(history), n, offset, ratings))


@Route(
    *("GET", "/neighbours/{user_id}", "Recommend", NeighboursOut),
    ("invalid_parameter", "not_found", "unknown_user", "data_damaged", *MODEL),
    needs="read",
    operation_id="neighbours",
    parameters=(
        query_parameter("n", whole(1, MAX_NEAR, 10), "How many"),
        query_parameter("offset", whole(0, MAX_NEAR_OFFSET, 0), "How many of the nearest to leave out"),
        query_parameter(
            "least", {"type": "number", "minimum": 0, "maximum": 1}, "Of at least this similarity"
        ),
    ),
)
async def get_neighbours(request: web.Request) -> web.StreamResponse:
    """The users whose taste is nearest to a user's, among the most active ones."""
    context, query = request.app[CONTEXT], Query(request.raw_path)
    n, least = query.integer("n", 10, 1, MAX_NEAR), query.number("least") or 0.0
    offset = query.integer("offset", 0, 0, MAX_NEAR_OFFSET)
    if not 0.0 <= least <= 1.0:
        raise Problem("invalid_parameter", "least must be from 0 to 1", field="least")
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    live = context.live()
    # Without ratings the taste is that of the history, which the vector does not rest on.
    if live.by_events:
        profile, degraded = await context.scorer.profile(live, user_id)
        made, seeker = profile.n, Seeker(user_id, profile.vector, profile.history)
    else:
        made, vector, degraded = await context.scorer.vector(live, user_id)
        seeker = Seeker(user_id, vector)
    if made == 0:
        raise Problem("unknown_user", "no rating of this user is known")
    asked = partial(context.nearest.near, live, seeker, n=offset + n, least=least)
    held = partial(context.nearest.held, live, seeker, n=offset + n, least=least)
    try:
        near, among = (await held() if degraded else None) or await asked()
    except StoreUnavailable:
        # It went away since the user was read, or nothing is held.
        if (found_last := await held()) is None:
            raise
        # A user that was read from a copy has been counted.
        context.counts.degraded += not degraded
        (near, among), degraded = found_last, True
    near = near[offset:]
    values = shown(np.array([each.likeness for each in near]), live.model.scale)
    found = [
        NearUserOut(each.user_id.decode(), value, *((0, each.count) if live.by_events else (each.count,)))
        for each, value in zip(near, values, strict=True)
    ]
    reason = None if among else NO_ONE
    answer = NeighboursOut(user_id.decode(), live.generation, found, among, reason, degraded)
    return json_answer(answer)


@Route(
    *("DELETE", "/users/{user_id}", "Users and items", Receipt),
    ("invalid_parameter", "not_found", *WRITES),
    needs="operate",
    operation_id="forgetUser",
)
async def delete_user(request: web.Request) -> web.StreamResponse:
    """Forget a user everywhere.

    An unknown one too: an archive may know more than the store.
    """
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    store = context.store
    if store.users.copies is not None:
        store.users.copies.forget(time.monotonic())
    # From here on no read finds the user; the archive is the trainer's, which may be away.
    forgotten = await store.ratings.forget(user_id)
    context.feedback.forget(user_id)
    context.counts.users_forgotten += 1
    epoch = (await store.generations.live()).epoch
    receipt = await store.commands.ask_to_erase(user_id, epoch=epoch, at_ms=forgotten.at_ms)
    # Not the user: a log would know what is to be forgotten.
    request[WHAT] = f"receipt={receipt}"
    # Of many at a time most are answered at once: looking for hundreds would keep the sockets busy.
    outcome = None
    if not context.erasures.locked():
        async with context.erasures:
            outcome = await store.commands.wait(receipt, context.settings.erase_wait_s)
    archive = "erased" if outcome is not None and outcome.state == "done" else "pending"
    return json_answer(Receipt(receipt, archive, user_id.decode(), forgotten.ratings))
