"""The description of the API, made from the types that decode and encode it.

Invariant: it cannot say other than the code.

Schemas of bodies come from the structs of the handlers; a test holds the addresses against the routes, and
another asks a running service everything that the description allows.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

from service import prediction_json as predictions
from service.context import CONTEXT
from service.exposition import CONTENT_TYPE as METRICS_TYPE
from service.http.parsing import MAX_ID_BYTES
from service.http.problems import CONTENT_TYPE as PROBLEM_TYPE
from service.http.problems import KINDS
from service.http.response import Answer
from service.routes import generations, operations, predict, ratings, recommend, train, users
from service.routes import items as catalogue

Schema = dict[str, Any]


class ProblemOut(msgspec.Struct, omit_defaults=True):
    """What went wrong, by RFC 9457. `code` is stable; `field` and `row` (from 0) tell where the input is
    wrong.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None
    row: int | None = None


class Predictions(msgspec.Struct):
    """Predictions in the order in which they were asked."""

    generation: int
    predictions: list[predictions.Prediction]


class Deleted(msgspec.Struct):
    """How many ratings were taken back."""

    deleted: int
    generation: int | None


_STRUCTS = (
    *(ProblemOut, Predictions, Deleted, predictions.OnePrediction, predictions.Prediction),
    *(
        predict.PredictBody,
        ratings.RatingIn,
        ratings.Accepted,
        users.UserOut,
        users.RatingsPage,
        users.Receipt,
    ),
    *(catalogue.ItemOut, catalogue.Similar, catalogue.Popular, recommend.Recommendations),
    *(recommend.RecommendBody, recommend.Explained, train.TrainBody, train.TrainedOut),
    *(
        generations.GenerationsOut,
        generations.Activated,
        operations.Alive,
        operations.Ready,
        operations.Status,
    ),
)
_TEXT_ID: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}
_ID: Schema = {"anyOf": [_TEXT_ID, {"type": "integer"}]}
_IN_BODIES = "An id: text of 1 to 256 bytes of UTF-8, or a whole number, which counts as its decimal text."


def _ref(kind: type) -> Schema:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _content(schema: Schema, media_type: str = "application/json") -> Schema:
    return {media_type: {"schema": schema}}


def _parameter(name: str, place: str, schema: Schema, text: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": place, "required": required, "schema": schema, "description": text}


def _path_id(name: str) -> Schema:
    return _parameter(name, "path", _TEXT_ID, "1 to 256 bytes of UTF-8, percent-encoded", required=True)


def _query(name: str, schema: Schema, text: str) -> Schema:
    return _parameter(name, "query", schema, text)


def _whole(low: int, high: int, default: int | None = None) -> Schema:
    schema: Schema = {"type": "integer", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


def _answers(kind: type | None, codes: Sequence[str], content: Schema | None = None) -> Schema:
    content = content if kind is None else _content(_ref(kind))
    found: Schema = {"200": {"description": "Done", **({"content": content} if content else {})}}
    by_status: dict[int, list[str]] = {}
    for code in (*codes, *_ANYWHERE):
        by_status.setdefault(KINDS[code].status, []).append(code)
    for status, named in sorted(by_status.items()):
        answer: Schema = {
            "description": ", ".join(f"`{code}`" for code in named),
            "content": _content(_ref(ProblemOut), PROBLEM_TYPE),
        }
        if status in (429, 503):
            answer["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait"}
            }
        found[str(status)] = answer
    return found


# What any call may be answered with.
_ANYWHERE = ("malformed_request", "method_not_allowed", "internal_error", "overloaded")
_STORE = ("store_unavailable", "no_generation")
_BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "invalid_body", "request_timeout")
_N = _query("n", _whole(1, catalogue.MAX_N, 10), "How many")
_EXPLORE = {"type": "string", "enum": list(recommend.EXPLORE), "default": "none"}
_TOP = (
    _N,
    _query("offset", _whole(0, recommend.MAX_OFFSET, 0), "How many of the best to leave out"),
    _query("exclude_seen", {"type": "boolean", "default": True}, "Leave out what the user has rated"),
    _query("explore", _EXPLORE, "`thompson` ranks by a draw from the posterior"),
    _query("seed", _whole(0, 2**53), "Makes a draw repeatable"),
)


def _call(summary: str, tag: str, responses: Schema, **more: Any) -> Schema:
    return {"summary": summary, "tags": [tag], "responses": responses, **more}


def _body(schema: Schema, example: Any, *, required: bool = True, lines: bool = False) -> Schema:
    content: Schema = {"application/json": {"schema": schema, "example": example}}
    if lines:
        content["application/x-ndjson"] = {"schema": {"type": "string"}}
    return {"required": required, "content": content}


def _predict_paths(*, has_steps: bool) -> Schema:
    user, item = ("user_id", "Who"), ("item_id", "What")
    named = [_parameter(name, "query", _TEXT_ID, text, required=True) for name, text in (user, item)]
    timestamp = _query("timestamp", {"type": "number", "minimum": -1e15, "maximum": 1e15}, "When, in seconds")
    distribution = _query(
        "distribution", {"type": "boolean", "default": False}, "The probability of each step of the scale too"
    )
    one_of: Schema = {
        "oneOf": [
            _object({"user_id": _ID, "item_id": _ID}),
            _object({"user_id": _ID, "item_ids": _list(_ID, predict.MAX_PAIRS)}),
            _object({"pairs": _list(_pair(), predict.MAX_PAIRS)}),
        ]
    }
    either: Schema = {"anyOf": [_ref(predictions.OnePrediction), _ref(Predictions)]}
    return {
        "/predict": {
            "get": _call(
                "The expected rating of one pair. `user` and `item` are synonyms of the parameters.",
                "Predict",
                _answers(predictions.OnePrediction, ("missing_parameter", "invalid_parameter", *_STORE)),
                operationId="predict",
                parameters=[*named, timestamp, *([distribution] if has_steps else [])],
            ),
            "post": _call(
                "The expected ratings of one pair, or of up to 10,000.",
                "Predict",
                _answers(None, (*_BODY, "too_many_rows", *_STORE), _content(either)),
                operationId="predictMany",
                requestBody=_body(one_of, {"pairs": [["ann", "dune"], ["bob", "dune"]]}),
            ),
        }
    }


def _object(properties: Mapping[str, Schema], required: Sequence[str] | None = None) -> Schema:
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": names}


def _list(of: Schema, at_most: int) -> Schema:
    return {"type": "array", "items": of, "maxItems": at_most}


def _pair() -> Schema:
    return {"type": "array", "prefixItems": [_ID, _ID], "items": False, "minItems": 2, "maxItems": 2}


def _ratings_paths() -> Schema:
    rating = _ref(ratings.RatingIn)
    several: Schema = {"anyOf": [rating, _list(rating, ratings.MAX_RATINGS)]}
    stored = (*_BODY, "too_many_rows", "too_many_items", "stream_full", "store_unavailable")
    example = [{"user_id": "ann", "item_id": "dune", "rating": 5}]
    return {
        "/ratings": {
            "post": _call(
                "Learn ratings: one, an array, or one a line. All or nothing; every later read knows them.",
                "Ratings",
                _answers(ratings.Accepted, stored),
                operationId="rate",
                requestBody=_body(several, example, lines=True),
            )
        },
        "/ratings/{user_id}/{item_id}": {
            "delete": _call(
                "Take one rating back.",
                "Ratings",
                _answers(
                    Deleted,
                    ("invalid_parameter", "unknown_rating", "not_found", "stream_full", "store_unavailable"),
                ),
                operationId="unrate",
                parameters=[_path_id("user_id"), _path_id("item_id")],
            )
        },
    }


def _recommend_paths() -> Schema:
    wrong = ("invalid_parameter", "not_found", *_STORE)
    example = {"ratings": [{"item_id": "dune", "rating": 5}], "n": 5}
    return {
        "/recommend/{user_id}": {
            "get": _call(
                "The best items for a user.",
                "Recommend",
                _answers(recommend.Recommendations, wrong),
                operationId="recommend",
                parameters=[_path_id("user_id"), *_TOP],
            )
        },
        "/recommend": {
            "post": _call(
                "The best items for someone who is not stored.",
                "Recommend",
                _answers(recommend.Recommendations, (*_BODY, "too_many_rows", *_STORE)),
                operationId="recommendAnonymous",
                requestBody=_body(_ref(recommend.RecommendBody), example),
            )
        },
        "/similar/{item_id}": {
            "get": _call(
                "The items most like one.",
                "Recommend",
                _answers(catalogue.Similar, ("unknown_item", *wrong)),
                operationId="similar",
                parameters=[_path_id("item_id"), _N],
            )
        },
        "/popular": {
            "get": _call(
                "The most loved items.",
                "Recommend",
                _answers(catalogue.Popular, ("invalid_parameter", *_STORE)),
                operationId="popular",
                parameters=[_N],
            )
        },
        "/explain/{user_id}/{item_id}": {
            "get": _call(
                "Which of the user's own ratings moved a score, and by how much.",
                "Recommend",
                _answers(recommend.Explained, wrong),
                operationId="explain",
                parameters=[_path_id("user_id"), _path_id("item_id")],
            )
        },
    }


def _known_paths() -> Schema:
    wrong = ("invalid_parameter", "not_found", "store_unavailable")
    page = [
        _query("limit", _whole(1, users.MAX_PAGE, 100), "How many"),
        _query("offset", _whole(0, 2**31, 0), "How many of the latest to leave out"),
    ]
    return {
        "/users/{user_id}": {
            "get": _call(
                "What is known of a user.",
                "Users and items",
                _answers(users.UserOut, (*wrong, "unknown_user", "no_generation")),
                operationId="getUser",
                parameters=[_path_id("user_id")],
            ),
            "delete": _call(
                "Forget a user everywhere.",
                "Users and items",
                _answers(users.Receipt, wrong),
                operationId="forgetUser",
                parameters=[_path_id("user_id")],
            ),
        },
        "/users/{user_id}/ratings": {
            "get": _call(
                "The ratings of a user, the latest first.",
                "Users and items",
                _answers(users.RatingsPage, (*wrong, "unknown_user")),
                operationId="getUserRatings",
                parameters=[_path_id("user_id"), *page],
            )
        },
        "/receipts/{receipt}": {
            "get": _call(
                "Whether the archive has forgotten a user too.",
                "Users and items",
                _answers(users.Receipt, (*wrong, "unknown_receipt")),
                operationId="getReceipt",
                parameters=[_path_id("receipt")],
            )
        },
        "/items/{item_id}": {
            "get": _call(
                "What is known of an item.",
                "Users and items",
                _answers(catalogue.ItemOut, (*wrong, "unknown_item", "no_generation")),
                operationId="getItem",
                parameters=[_path_id("item_id")],
            )
        },
    }


def _training_paths() -> Schema:
    failures = (
        "train_in_progress",
        "training_refused",
        "training_failed",
        "training_timeout",
        "store_unavailable",
    )
    begins = ("ratings_would_be_lost", "too_many_rows", "too_many_items", "stream_full")
    example = {
        "nb_users": 2,
        "nb_items": 3,
        "user_history": [0, 0, 1],
        "item_history": [0, 2, 1],
        "rating_history": [5, 1, 4],
    }
    number = _parameter("generation", "path", _whole(1, 2**53), "Its number", required=True)
    return {
        "/train": {
            "post": _call(
                "Begin a new history with these ratings; without a body, fit again on all that is known.",
                "Training",
                _answers(train.TrainedOut, (*_BODY, *failures, *begins)),
                operationId="train",
                requestBody=_body(_ref(train.TrainBody), example, required=False),
            )
        },
        "/generations": {
            "get": _call(
                "The generations that are kept.",
                "Training",
                _answers(generations.GenerationsOut, ("store_unavailable",)),
                operationId="getGenerations",
            )
        },
        "/generations/{generation}/activate": {
            "post": _call(
                "Make a generation that is kept the live one.",
                "Training",
                _answers(
                    generations.Activated,
                    ("invalid_parameter", "not_found", "unknown_generation", "store_unavailable"),
                ),
                operationId="activate",
                parameters=[number],
            )
        },
    }


def _operations_paths() -> Schema:
    text: Schema = {"type": "string"}
    pages = {
        "/docs": ("This description, shown.", "text/html; charset=utf-8"),
        "/": ("What is live, shown.", "text/html; charset=utf-8"),
    }
    name = _parameter("name", "path", {"type": "string", "enum": _static_names()}, "The file", required=True)
    found: Schema = {
        "/livez": {"get": _call("Whether the process runs.", "Operations", _answers(operations.Alive, ()))},
        "/readyz": {
            "get": _call("Whether to send requests here.", "Operations", _answers(operations.Ready, _STORE))
        },
        "/status": {"get": _call("What is live, in numbers.", "Operations", _answers(operations.Status, ()))},
        "/metrics": {
            "get": _call("For Prometheus.", "Operations", _answers(None, (), _content(text, METRICS_TYPE)))
        },
        "/openapi.json": {
            "get": _call("This description.", "Operations", _answers(None, (), _content({"type": "object"})))
        },
        "/static/{name}": {
            "get": _call(
                "A file of the pages.",
                "Operations",
                _answers(
                    None,
                    ("not_found",),
                    {kind: {"schema": text} for kind in sorted({kind for _, kind in page_files().values()})},
                ),
                parameters=[name],
            )
        },
    }
    for path, (summary, kind) in pages.items():
        found[path] = {"get": _call(summary, "Operations", _answers(None, (), _content(text, kind)))}
    return found


def page_files() -> Mapping[str, tuple[bytes, str]]:
    """The files of the pages by name, each with its media type."""
    from service.routes.page import FILES

    return FILES


def _static_names() -> list[str]:
    return sorted(page_files())


def _schemas() -> dict[str, Schema]:
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    ids = {"user_id", "item_id"}
    for name in ("RatingIn", "AnonymousRating"):
        for field in ids & set(schemas[name]["properties"]):
            schemas[name]["properties"][field] = {**_ID, "description": _IN_BODIES}
    moment = {"type": ["number", "null"], "minimum": -1e15, "maximum": 1e15, "default": None}
    for name in ("RatingIn", "AnonymousRating"):
        schemas[name]["properties"]["timestamp"] = moment
    lists = schemas["TrainBody"]["properties"]
    for field in ("user_history", "item_history"):
        lists[field] = _list(_ID, train.MAX_EVENTS)
    lists["rating_history"] = {**_list({"type": "number"}, train.MAX_EVENTS), "minItems": 1}
    for field in ("nb_users", "nb_items"):
        lists[field] = _whole(1, train.MAX_ENTITIES)
    wanted = schemas["RecommendBody"]["properties"]
    wanted["ratings"]["maxItems"] = ratings.MAX_RATINGS
    wanted["n"] = _whole(1, catalogue.MAX_N, 10)
    wanted["offset"] = _whole(0, recommend.MAX_OFFSET, 0)
    wanted["explore"] = _EXPLORE
    wanted["seed"] = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53, "default": None}
    schemas.pop("PredictBody", None)
    return schemas


@cache
def document(low: float, high: float, *, has_steps: bool = True) -> bytes:
    """The description, for a service whose ratings are from `low` to `high`, in steps or not."""
    schemas = _schemas()
    rating = {"type": "number", "minimum": low, "maximum": high}
    schemas["RatingIn"]["properties"]["rating"] = rating
    schemas["AnonymousRating"]["properties"]["rating"] = rating
    schemas["TrainBody"]["properties"]["rating_history"]["items"] = rating
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Foldin",
                "version": "1",
                "license": {"name": "MIT", "identifier": "MIT"},
                "description": "Predicts ratings and learns from every rating the moment it arrives. "
                "Errors are `application/problem+json` with a stable `code`.",
            },
            "paths": {
                **_predict_paths(has_steps=has_steps),
                **_ratings_paths(),
                **_recommend_paths(),
                **_known_paths(),
                **_training_paths(),
                **_operations_paths(),
            },
            "components": {"schemas": schemas},
            # An extension of this service, for the page that lists the codes.
            "x-problems": {
                code: {"status": kind.status, "title": kind.title} for code, kind in KINDS.items()
            },
        }
    )


async def get_openapi(request: web.Request) -> web.StreamResponse:
    """The description of this API."""
    context = request.app[CONTEXT]
    scale, live = context.store.config.scale, context.follower.live
    # A fit finds the step that the ratings keep where the scale names none.
    step = scale.step if live is None else live.model.scale.step
    return Answer(document(scale.low, scale.high, has_steps=step is not None))
