"""POST /train, and how far it has come. Invariant: a history is checked as a whole before anything is
replaced; a training that goes on is no error, however long it takes.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from factors import Float32s, Scale
from featurestore.commands import OUTCOME_S, Outcome
from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import (
    LARGEST_NUMBER,
    MOST_FIELDS,
    ContextField,
    ContextRefused,
    ContextSchema,
)
from featurestore.ratings.stored_document import StoredContextSchema
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Body, Id, Query, body_ids, check_rows, path_id, whole_number
from service.http.problems import Problem
from service.http.response import Answer, json_answer
from service.openapi import BODY, STORE, WRITES, Route, query_parameter, request_body, whole
from service.routes.ratings import check_scale
from service.training import Trained, UnderWay

# A million events are about 20 MB of body; `train_body_bytes` bounds those with long ids.
MAX_EVENTS = 1_000_000
# Each row of the catalogue is registered, and an item table has a row for each.
MAX_ENTITIES = 1_000_000

# A caller that waits longer asks again: proxies and clients give up before.
MAX_WAIT_S = 3600
# The id of the command, and the time of the call in seconds.
_RECEIPT = re.compile(r"([0-9a-f]{32})-([0-9a-f]{1,12})")

_EVENTS = {"maxItems": MAX_EVENTS}
Entities = Annotated[int, Meta(extra_json_schema=whole(1, MAX_ENTITIES))]


class TrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """A history: three parallel lists, one event a position, in time order. Rows count from 0; ids may be
    text too.
    """

    nb_users: Entities
    nb_items: Entities
    user_history: Annotated[list[Id], Meta(extra_json_schema=_EVENTS)]
    item_history: Annotated[list[Id], Meta(extra_json_schema=_EVENTS)]
    rating_history: Annotated[list[float], Meta(extra_json_schema={**_EVENTS, "minItems": 1})]
    # Numbers beside each event, as many in each row: the fields `v1`, `v2`, ... of its context.
    variables_history: Annotated[list[list[float]] | None, Meta(extra_json_schema=_EVENTS)] = None
    replace: bool = False
    # The pair that the environment asks about first: its answer may be sent on as it is.
    next_user: Id | None = None
    next_item: Id | None = None


class TrainedOut(msgspec.Struct):
    """What is live now. `served`: whether every worker answers from it already."""

    generation: int
    epoch: int
    ratings: int
    metrics: dict[str, float]
    served: bool


class TrainingOut(msgspec.Struct, omit_defaults=True):
    """How far a training has come. `receipt`: for GET /train/{receipt}; `since`: when it was asked for, in
    seconds since 1970. `waiting`: for a trainer; while it is `running`, `phase` is that of the fit that the
    trainer makes, `sweep` how many sweeps of it have ended. `generation`: what went live when it was `done`;
    `cause` and `detail`: why it `failed`.
    """

    receipt: str
    state: Literal["waiting", "running", "done", "failed"]
    since: float
    phase: str | None = None
    sweep: int | None = None
    generation: int | None = None
    cause: str | None = None
    detail: str | None = None


_BODY: Body[TrainBody] = Body(TrainBody)


@Route(
    *("POST", "/train", "Training", TrainedOut),
    (
        *BODY,
        *("train_in_progress", "training_refused", "training_failed", "training_timeout", *WRITES),
        *("ratings_would_be_lost", "too_many_rows", "too_many_items", "stream_full"),
        *("invalid_context", "data_damaged", "invalid_parameter"),
    ),
    needs="operate",
    operation_id="train",
    accepts=TrainingOut,
    parameters=[
        query_parameter(
            "wait", whole(0, MAX_WAIT_S), "Seconds until the answer is 202; 50 where it is left out"
        )
    ],
    body=request_body(
        TrainBody,
        {
            "nb_users": 2,
            "nb_items": 3,
            "user_history": [0, 0, 1],
            "item_history": [0, 2, 1],
            "rating_history": [5, 1, 4],
        },
        required=False,
    ),
)
async def post_train(request: web.Request) -> web.StreamResponse:
    """Begin a new history with these ratings; without a body, fit again on all that is known.

    Answers when the result is live; after `wait` seconds with 202 and a receipt, and the training goes on.
    """
    context = request.app[CONTEXT]
    training = context.training
    waits = Query(request.raw_path).text("wait")
    wait_s = None if waits is None else float(whole_number(waits, "wait", 0, MAX_WAIT_S))
    limit_bytes = context.settings.train_body_bytes
    request[WHAT] = "refit"
    async with context.bodies.read(request, None, limit_bytes=limit_bytes) as (raw, _):
        if not raw.strip():
            return _answer(await training.refit(wait_s))
        context.require_room()
        body = await _BODY.decode_off_loop(raw)
    request[WHAT] = f"replace={str(body.replace).lower()} ratings={len(body.rating_history)}"
    # The bytes of the body are let go of before the wait for the trainer.
    # Checking a million ratings takes some 0.5 s: in a thread the event loop goes on every 5 ms.
    scale = await context.scale_now()
    item_ids, ratings = await asyncio.to_thread(checked_history, body, scale.value, decided=scale.decided)
    contexts = None
    if body.variables_history is not None:
        variables = await asyncio.to_thread(checked_variables, body.variables_history, len(ratings))
        contexts = partial(_as_contexts, context.store.contexts, variables)
    trained = await training.begin_history(
        ratings, item_ids, replace=body.replace, contexts=contexts, wait_s=wait_s
    )
    context.counts.ratings += len(ratings)
    return _answer(trained)


@Route(
    *("GET", "/train/{receipt}", "Training", TrainingOut),
    ("invalid_parameter", "not_found", *STORE, "unknown_receipt"),
    needs="read",
    operation_id="getTraining",
)
async def get_train(request: web.Request) -> web.StreamResponse:
    """How far a training has come."""
    receipt = path_id(request.rel_url.raw_path, 1, "receipt").decode()
    match = _RECEIPT.fullmatch(receipt)
    outcome = await request.app[CONTEXT].store.commands.outcome(match[1]) if match else None
    since_s = int(match[2], 16) if match else 0
    # Before a trainer takes it there is no outcome. Clocks of replicas differ.
    if match is None or (outcome is None and abs(time.time() - since_s) >= OUTCOME_S):
        raise Problem("unknown_receipt", "receipts are kept for an hour after the end of their work")
    return json_answer(_progress(receipt, since_s, outcome))


def _progress(receipt: str, since_s: float, outcome: Outcome | None) -> TrainingOut:
    if outcome is None:
        return TrainingOut(receipt, "waiting", since_s)
    told = TrainingOut(receipt, outcome.state, since_s, outcome.phase, outcome.sweep, outcome.generation)
    told.cause, told.detail = outcome.code, outcome.detail
    return told


def _answer(trained: Trained | UnderWay) -> Answer:
    if isinstance(trained, UnderWay):
        since_s = int(time.time())
        receipt = f"{trained.command}-{since_s:x}"
        return json_answer(_progress(receipt, since_s, trained.outcome), HTTPStatus.ACCEPTED)
    summary = trained.summary
    ratings, metrics = (summary.n_ratings, summary.metrics) if summary else (0, {})
    return json_answer(TrainedOut(trained.generation, trained.epoch, ratings, metrics, trained.served))


def checked_history(body: TrainBody, scale: Scale, *, decided: bool = True) -> tuple[list[bytes], Columns]:
    """Return the catalogue and the ratings of `body`. Raises a `Problem` that names field and row."""
    count = len(body.rating_history)
    check_rows(count, MAX_EVENTS, "rating_history")
    if count == 0:
        raise Problem("invalid_body", "rating_history is empty", field="rating_history")
    for name in ("nb_users", "nb_items"):
        if not 1 <= getattr(body, name) <= MAX_ENTITIES:
            raise Problem("invalid_body", f"{name} must be from 1 to {MAX_ENTITIES}", field=name)
    for name in ("user_history", "item_history"):
        length = len(getattr(body, name))
        if length != count:
            detail = f"{name} has {length} entries, rating_history {count}: they are parallel lists"
            raise Problem("invalid_body", detail, field=name)
    # After the lengths: a row that is named is then the same row in all three lists.
    values = np.array(body.rating_history, dtype=np.float64)
    check_scale(values, scale, "rating_history", decided=decided)
    users = _ids(body.user_history, body.nb_users, "user_history", "nb_users")
    items = _ids(body.item_history, body.nb_items, "item_history", "nb_items")
    # The times are not known; histories keep the order.
    ratings = Columns(users, items, values, np.full(count, np.nan))
    return [b"%d" % row for row in range(body.nb_items)], ratings


def checked_variables(rows: Sequence[Sequence[float]], count: int) -> Float32s:
    """Return numbers beside `count` events (count, k). Raises a `Problem` that names field and row."""
    field = "variables_history"
    if len(rows) != count:
        detail = f"{field} has {len(rows)} entries, rating_history {count}: they are parallel lists"
        raise Problem("invalid_body", detail, field=field)
    width = len(rows[0])
    uneven = next((row for row, numbers in enumerate(rows) if len(numbers) != width), None)
    if uneven is not None:
        detail = f"{field} has {width} numbers in its first row, and {len(rows[uneven])} in row {uneven}"
        raise Problem("invalid_body", detail, field=field, row=uneven)
    if width > MOST_FIELDS:
        detail = f"{field} may have {MOST_FIELDS} numbers a row, not {width}"
        raise Problem("invalid_context", detail, field=field)
    values = np.array(rows, dtype=np.float64).reshape(count, width)
    too_large = np.flatnonzero(np.abs(values).max(axis=1, initial=0.0) > LARGEST_NUMBER)
    if len(too_large):
        row = int(too_large[0])
        raise Problem("invalid_context", f"{field} of row {row} is too large", field=field, row=row)
    return values.astype(np.float32)


async def _as_contexts(schema: StoredContextSchema, variables: Float32s) -> Float32s:
    told = ContextSchema(tuple(ContextField(f"v{k + 1}", "number") for k in range(variables.shape[1])))
    try:
        held = await schema.tell(told.fields)
    except ContextRefused as exc:
        raise Problem("invalid_context", str(exc), field=f"variables_history.{exc.name}") from exc
    return held.recoded(variables, told)


def _ids(values: Sequence[Id], entities: int, field: str, limit: str) -> list[bytes]:
    """Return ids as bytes. Numbers are rows, from 0 to under `entities`; text is taken as it is."""
    numbers = ((row, value) for row, value in enumerate(values) if isinstance(value, int))
    bad = next((row for row, value in numbers if not 0 <= value < entities), None)
    if bad is not None:
        detail = f"{field} must be from 0 to under {limit} ({entities}), not {values[bad]}"
        raise Problem("invalid_body", detail, field=field, row=bad)
    return body_ids(values, field)
