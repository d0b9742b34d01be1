"""Attributes of users. Invariant: they go when the user is forgotten."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from featurestore.catalogue.attributes import UserAttributes, Values
from service.catalogue.held_types import with_types
from service.catalogue.parsing import (
    MAX_ROWS,
    Sent,
    Types,
    UserRowIn,
    check_size,
    new_users,
    parse_users,
    patched_values,
    shown_values,
    values_of,
)
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Body, Query, cursor_of, parsed, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import (
    BODY,
    STORE,
    WRITES,
    Route,
    lines_of,
    list_of,
    query_parameter,
    request_body,
    whole,
)
from service.routes.exporting import write_lines

MAX_PAGE = 1_000  # a page of that many is some 300 KB
_EXPORTED_AT_ONCE = 500  # 150 KB are in memory for a client that reads slowly
_BODY: Body[dict[str, Any]] = Body(dict[str, Any])
_CHANGED = (*BODY, "invalid_parameter", "not_found", "attribute_in_use", *WRITES)


class AttributesOut(msgspec.Struct):
    """The attributes of a user. Times are ISO 8601, in UTC."""

    user_id: str
    attributes: Sent


class UserRow(msgspec.Struct):
    """A user and the attributes."""

    user_id: str
    attributes: Sent

    @staticmethod
    def of(user_id: bytes, values: Values) -> "UserRow":
        """Return attributes as the API shows them."""
        return UserRow(user_id.decode(), shown_values(values))


class AttributesPage(msgspec.Struct):
    """Users with attributes, in an order that stays. `next` is the cursor of the page behind, null at the
    end.
    """

    users: list[UserRow]
    next: str | None


class StoredUsers(msgspec.Struct):
    """Of how many users attributes were stored."""

    accepted: int


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
    *("GET", "/attributes", "Users and items", AttributesPage),
    ("invalid_parameter", "data_damaged", *STORE),
    needs="read",
    operation_id="listAttributes",
    parameters=(
        query_parameter("n", whole(1, MAX_PAGE, 100), "How many users"),
        query_parameter("cursor", {"type": "string", "format": "byte"}, "`next` of the page before"),
    ),
)
async def list_attributes(request: web.Request) -> web.StreamResponse:
    """List the users with attributes."""
    attributes, query = request.app[CONTEXT].store.attributes, Query(request.raw_path)
    found, behind = await attributes.page(query.integer("n", 100, 1, MAX_PAGE), query.bytes64("cursor"))
    users = [UserRow.of(user_id, values) for user_id, values in found.items()]
    return json_answer(AttributesPage(users, cursor_of(behind)))


@Route(
    *("GET", "/export/users", "Users and items", lines_of(UserRow)),
    ("data_damaged", *STORE),
    needs="read",
    operation_id="exportUsers",
)
async def get_export(request: web.Request) -> web.StreamResponse:
    """Return the attributes of all users, one user a line, as POST /users takes them."""
    return await write_lines(request, _exported(request.app[CONTEXT].store.attributes))


async def _exported(attributes: UserAttributes) -> AsyncIterator[list[UserRow]]:
    after: bytes | None = b""
    while after is not None:
        found, after = await attributes.page(_EXPORTED_AT_ONCE, after)
        yield [UserRow.of(user_id, values) for user_id, values in found.items()]


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
    repeatable=True,
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


@Route(
    *("POST", "/users", "Users and items", StoredUsers),
    (*BODY, "too_many_rows", "attribute_in_use", *WRITES),
    needs="operate",
    operation_id="putUsers",
    repeatable=True,
    body=request_body(
        {"anyOf": [UserRowIn, list_of(UserRowIn, MAX_ROWS)]},
        [{"user_id": "ann", "attributes": {"age": 30, "occupation": "writer"}}],
        lines=True,
    ),
)
async def post_users(request: web.Request) -> web.StreamResponse:
    """Say what is known of users besides ratings: one, an array, or one a line. One bad row refuses all."""
    context = request.app[CONTEXT]
    store = context.store
    context.require_room()
    async with context.bodies.read(request, context.imports, takes_lines=True) as (raw, lines):
        rows, ids = await parsed(parse_users, raw, lines=lines)
        values = await with_types(store, "users", partial(new_users, rows), off_loop=True)
        # Of a user who stands twice the last counts.
        changes = {user_id: partial(_becomes, each) for user_id, each in zip(ids, values, strict=True)}
        await store.attributes.change_all(changes)
        request[WHAT] = f"users={len(changes)}"
        return json_answer(StoredUsers(len(rows)))


def _becomes(values: Values, before: Values | None) -> Values:
    return values


async def _changed(request: web.Request, *, patches: bool) -> web.StreamResponse:
    context = request.app[CONTEXT]
    user_id = path_id(request.rel_url.raw_path, 1, "user_id")
    context.require_room()
    async with context.bodies.read(request, context.imports) as received:
        sent = _BODY.decode(received.raw)

    def changing(types: Types) -> Callable[[Values | None], Values]:
        def change(before: Values | None) -> Values:
            if patches:
                found = patched_values(before or {}, sent, types, prefix="")
            else:
                found = values_of(sent, types, prefix="")
            check_size(msgspec.json.encode(found), "the attributes of a user")
            return found

        # The types must be held before a value of them is stored.
        change(None)
        return change

    change = await with_types(context.store, "users", changing)
    found = await context.store.attributes.change(user_id, change) or {}
    return json_answer(AttributesOut(user_id.decode(), shown_values(found)))
