"""Attributes of users. Invariant: they go when the user is forgotten."""

from typing import Any

import msgspec
from aiohttp import web

from featurestore.catalogue.attributes import Values
from featurestore.errors import StoreUnavailable
from service.catalogue.held_types import ATTEMPTS, held_types, hold
from service.catalogue.parsing import Sent, check_size, patched_values, shown_values, values_of
from service.context import CONTEXT, ServiceContext
from service.http.parsing import Body, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, STORE, WRITES, Route, request_body

_BODY: Body[dict[str, Any]] = Body(dict[str, Any])
_CHANGED = (*BODY, "invalid_parameter", "not_found", *WRITES)


class AttributesOut(msgspec.Struct):
    """The attributes of a user. Times are ISO 8601, in UTC."""

    user_id: str
    attributes: Sent


class DeletedAttributes(msgspec.Struct):
    """Of how many users attributes were deleted."""

    deleted: int


@Route(
    *("GET", "/users/{user_id}/attributes", "Users and items", AttributesOut),
    ("invalid_parameter", "not_found", *STORE, "unknown_user"),
    needs="read",
    operation_id="getAttributes",
)
async def get_attributes(request: web.Request) -> web.StreamResponse:
    """What is known of a user besides ratings."""
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    found = await context.store.attributes.get(user_id)
    if found is None:
        raise Problem("unknown_user", "no attribute of this user is known")
    return json_answer(AttributesOut(user_id.decode(), shown_values(found)))


@Route(
    *("PUT", "/users/{user_id}/attributes", "Users and items", AttributesOut),
    _CHANGED,
    needs="operate",
    operation_id="putAttributes",
    body=request_body({"type": "object"}, {"age": 30, "occupation": "writer"}),
)
async def put_attributes(request: web.Request) -> web.StreamResponse:
    """Say what is known of a user besides ratings; what was said before is replaced."""
    return await _changed(request, patches=False)


@Route(
    *("PATCH", "/users/{user_id}/attributes", "Users and items", AttributesOut),
    _CHANGED,
    needs="operate",
    operation_id="patchAttributes",
    body=request_body({"type": "object"}, {"age": 31, "occupation": None}),
)
async def patch_attributes(request: web.Request) -> web.StreamResponse:
    """Change some attributes of a user.

    What is left out stays; what is null is taken away.
    """
    return await _changed(request, patches=True)


@Route(
    *("DELETE", "/users/{user_id}/attributes", "Users and items", DeletedAttributes),
    ("invalid_parameter", "not_found", "unknown_user", *WRITES),
    needs="operate",
    operation_id="deleteAttributes",
)
async def delete_attributes(request: web.Request) -> web.StreamResponse:
    """Delete the attributes of a user; the ratings stay."""
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")

    def change(before: Values | None) -> None:
        if before is None:
            raise Problem("unknown_user", "no attribute of this user is known")

    await context.store.attributes.change(user_id, change)
    return json_answer(DeletedAttributes(1))


async def _changed(request: web.Request, *, patches: bool) -> web.StreamResponse:
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    context.require_room()
    async with context.bodies.read(request, context.imports) as received:
        sent = _BODY.decode(received.raw)
    found = await _stored(context, user_id, sent, patches=patches)
    return json_answer(AttributesOut(user_id.decode(), shown_values(found)))


async def _stored(context: ServiceContext, user_id: bytes, sent: dict[str, Any], *, patches: bool) -> Values:
    for _ in range(ATTEMPTS):
        types = await held_types(context.store, "users")
        new = dict(types)

        def change(before: Values | None, new: Any = new) -> Values:
            if patches:
                found = patched_values(before or {}, sent, new, prefix="")
            else:
                found = values_of(sent, new, prefix="")
            check_size(msgspec.json.encode(found), "the attributes of a user")
            return found

        # The types must be held before a value of them is stored.
        change(None)
        if await hold(context.store, "users", types, new):
            return await context.store.attributes.change(user_id, change) or {}
    raise StoreUnavailable("others are changing the schema", 0.1)
