"""GET and POST /predict. Invariant: answers stand in the order in which the pairs were asked."""

import math
from typing import NamedTuple

import msgspec
import numpy as np
from aiohttp import web

from factors import Float32s, Float64s
from featurestore.id_columns import Ids
from service.context import CONTEXT, ServiceContext
from service.http.fast_pairs import plain_pairs
from service.http.parsing import (
    ID_SCHEMA,
    MOMENT_SCHEMA,
    TEXT_ID_SCHEMA,
    Body,
    Id,
    Query,
    Timestamp,
    body_id,
    body_ids,
    check_names,
    check_rows,
    moments,
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
from service.http.response import Answer, json_answer
from service.openapi import (
    BODY,
    MODEL,
    Route,
    Schema,
    content,
    list_of,
    parameter,
    query_parameter,
    request_body,
)
from service.prediction_json import OnePrediction, Prediction

# So many pairs take about 10 ms of the core; more would make the other calls of a worker wait.
MAX_PAIRS = 10_000


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """One pair, one user with several items, or pairs: exactly one of the three."""

    # Unset rather than None: a null is no id, and is refused.
    user_id: Id | msgspec.UnsetType = msgspec.UNSET
    item_id: Id | msgspec.UnsetType = msgspec.UNSET
    item_ids: list[Id] | msgspec.UnsetType = msgspec.UNSET
    pairs: list[tuple[Id, Id]] | msgspec.UnsetType = msgspec.UNSET
    # Both take one value for all pairs, or one of each.
    context: Context | list[Context | None] | None = None
    timestamp: Timestamp | list[Timestamp | None] | None = None


class Pair(NamedTuple):
    """One pair of a body that was checked."""

    user_id: bytes
    item_id: bytes


class Pairs(NamedTuple):
    """Pairs of a body that was checked: as many users as items, or one user with all items."""

    user_ids: Ids
    item_ids: Ids


class Predictions(msgspec.Struct, omit_defaults=True):
    """Predictions in the order in which they were asked."""

    generation: int
    predictions: list[Prediction]
    degraded: bool = False


class PairQuery(NamedTuple):
    """The query of GET /predict. `time`: that of the prediction, in seconds since 1970, if known."""

    user_id: bytes
    item_id: bytes
    time: float | None
    distribution: bool
    context: Given | None = None

    @property
    def plain(self) -> bool:
        """Whether it asks for no more than the pair."""
        return self.time is None and self.context is None and not self.distribution


_MOMENT: Schema = {"anyOf": [*MOMENT_SCHEMA["anyOf"], {"type": "null"}]}
_MOMENTS: Schema = {"anyOf": [*_MOMENT["anyOf"], list_of(_MOMENT, MAX_PAIRS)]}


def _object(**properties: Schema) -> Schema:
    # Contexts, too, which no schema describes.
    return {
        "type": "object",
        "properties": {**properties, "timestamp": _MOMENTS},
        "required": list(properties),
    }


_PAIR: Schema = {
    "type": "array",
    "prefixItems": [ID_SCHEMA, ID_SCHEMA],
    "items": False,
    "minItems": 2,
    "maxItems": 2,
}
_BODY: Body[PredictBody] = Body(PredictBody)


# Synonyms; and no schema of a text says which fields the contexts of a store have.
_UNDESCRIBED = ("user", "item", "context")
_NAMES = frozenset(("user_id", "item_id", "timestamp", "distribution", *_UNDESCRIBED))


def parse_pair_query(raw_path: str) -> PairQuery:
    """Return the query of `raw_path`; raises `Problem`."""
    check_names(raw_path, _NAMES)
    query = Query(raw_path)
    # A problem names the first of two synonyms, which is the one that is described.
    return PairQuery(
        query.id("user_id", "user"),
        query.id("item_id", "item"),
        query.time("timestamp"),
        query.flag("distribution", default=False),
        query_context(query),
    )


@Route(
    *("GET", "/predict", "Predict", OnePrediction),
    ("missing_parameter", "invalid_parameter", *CONTEXT_PROBLEMS, "data_damaged", *MODEL),
    needs="read",
    operation_id="predict",
    undescribed=_UNDESCRIBED,
    parameters=(
        parameter("user_id", "query", TEXT_ID_SCHEMA, "Who", required=True),
        parameter("item_id", "query", TEXT_ID_SCHEMA, "What", required=True),
        query_parameter(
            "timestamp",
            MOMENT_SCHEMA,
            "When, in seconds since 1970 or as ISO 8601",
        ),
        query_parameter(
            "distribution",
            {"type": "boolean", "default": False},
            "The probability of each step of the scale too",
        ),
    ),
)
async def get_predict(request: web.Request) -> web.StreamResponse:
    """The expected rating of one pair. `user` and `item` are synonyms of the parameters."""
    context = request.app[CONTEXT]
    query = parse_pair_query(request.raw_path)
    # The rest is asked rarely: a time may need the history, a distribution the steps of the scale.
    if query.plain:
        return json_answer(await context.batcher.submit(query.user_id, query.item_id))
    given = await context_rows(context.store.contexts, query.context)
    return json_answer(await _one(context, query, given))


async def _one(context: ServiceContext, query: PairQuery, given: Float32s | None) -> OnePrediction:
    return await context.scorer.predict_one(
        *(context.live(), query.user_id, query.item_id),
        time=query.time,
        distribution=query.distribution,
        given=given,
    )


@Route(
    *("POST", "/predict", "Predict", content({"anyOf": [OnePrediction, Predictions]})),
    (*BODY, "too_many_rows", *CONTEXT_PROBLEMS, "data_damaged", *MODEL),
    needs="read",
    operation_id="predictMany",
    repeatable=True,
    body=request_body(
        {
            "oneOf": [
                _object(user_id=ID_SCHEMA, item_id=ID_SCHEMA),
                _object(user_id=ID_SCHEMA, item_ids=list_of(ID_SCHEMA, MAX_PAIRS)),
                _object(pairs=list_of(_PAIR, MAX_PAIRS)),
            ]
        },
        {"pairs": [["ann", "dune"], ["bob", "dune"]]},
    ),
)
async def post_predict(request: web.Request) -> web.StreamResponse:
    """The expected ratings of one pair, or of up to 10,000."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.predictions) as received:
        # 10,000 pairs in the usual form are read in 0.3 ms; to decode and check an object for each takes 2.4.
        plain = plain_pairs(received.raw)
        if plain is None:
            body = await _BODY.decode_off_loop(received.raw)
            pairs = checked_pairs(body)
            n_pairs = 1 if isinstance(pairs, Pair) else len(pairs.item_ids)
            sent, times = checked_contexts(body, n_pairs), checked_moments(body, n_pairs)
        else:
            pairs, sent, times = Pairs(*plain), None, None
            check_rows(len(pairs.item_ids), MAX_PAIRS, "pairs")
        given = await context_rows(context.store.contexts, sent)
        if isinstance(pairs, Pair):
            # In the batch of what arrived with it, like GET /predict.
            if given is None and times is None:
                return json_answer(await context.batcher.submit(*pairs))
            time = None if times is None or math.isnan(times[0]) else float(times[0])
            return json_answer(await _one(context, PairQuery(*pairs, time, distribution=False), given))
        # Once the body is there, which may have taken its sender seconds: of the newest generation.
        return Answer(await context.scorer.predict_batch(context.live(), *pairs, given, times))


def checked_contexts(body: PredictBody, n_pairs: int) -> Given | None:
    """Return the contexts of so many pairs, one for all of them where it is one."""
    if not isinstance(body.context, list):
        return one_context(body.context)
    if len(body.context) != n_pairs:
        detail = f"context has {len(body.context)} entries, and there are {n_pairs} pairs"
        raise Problem("invalid_body", detail, field="context")
    return given_contexts(body.context)


def checked_moments(body: PredictBody, n_pairs: int) -> Float64s | None:
    """Return the moments (n,) of so many pairs in seconds since 1970, NaN where one has none; None where none
    has any.
    """
    sent = body.timestamp
    if sent is None:
        return None
    if isinstance(sent, list) and len(sent) != n_pairs:
        detail = f"timestamp has {len(sent)} entries, and there are {n_pairs} pairs"
        raise Problem("invalid_body", detail, field="timestamp")
    return np.resize(moments(sent if isinstance(sent, list) else [sent], "timestamp"), n_pairs)


def checked_pairs(body: PredictBody) -> Pair | Pairs:
    """Return the pairs that a body asks for. Raises a `Problem` that names the field and the row."""
    sent = [name for name in ("item_id", "item_ids", "pairs") if getattr(body, name) is not msgspec.UNSET]
    if len(sent) != 1:
        detail = "send user_id with item_id, user_id with item_ids, or pairs"
        raise Problem("invalid_body", detail, field=sent[1] if sent else "item_id")
    if isinstance(body.pairs, list):
        if body.user_id is not msgspec.UNSET:
            raise Problem("invalid_body", "user_id does not go with pairs", field="user_id")
        check_rows(len(body.pairs), MAX_PAIRS, "pairs")
        user_ids = body_ids([pair[0] for pair in body.pairs], "pairs")
        # Two columns in place of pairs: the lookup asks for each user once, the registry for items.
        return Pairs(Ids.of(user_ids), Ids.of(body_ids([pair[1] for pair in body.pairs], "pairs")))
    if isinstance(body.user_id, msgspec.UnsetType):
        raise Problem("invalid_body", "user_id is missing", field="user_id")
    user_id = body_id(body.user_id, "user_id")
    if isinstance(body.item_ids, list):
        check_rows(len(body.item_ids), MAX_PAIRS, "item_ids")
        return Pairs(Ids.of([user_id]), Ids.of(body_ids(body.item_ids, "item_ids")))
    if isinstance(body.item_id, msgspec.UnsetType):
        raise Problem("invalid_body", "item_id is missing", field="item_id")
    return Pair(user_id, body_id(body.item_id, "item_id"))
