"""The catalogue: items are put, changed, listed, exported and deleted; the types of attributes.

Invariant: what was answered with a 2xx is in the next answer of every worker.
"""

import asyncio
import base64
import binascii
import contextlib
from typing import Literal

import msgspec
from aiohttp import web

from featurestore.catalogue.catalogue import Change, title_key
from featurestore.catalogue.item import AttributeType, CatalogueItem
from featurestore.catalogue.schema import MOST_NAME_BYTES
from featurestore.errors import EpochGone, ItemsSpent, StoreUnavailable
from featurestore.ratings.context_schema import (
    ContextField,
    ContextKind,
    ContextRefused,
    ContextSchema,
    UnknownContextField,
)
from service.catalogue.held_types import ATTEMPTS, held_types, hold
from service.catalogue.parsing import (
    MAX_ROWS,
    ItemIn,
    ItemPatch,
    ItemRowIn,
    ItemShown,
    Types,
    new_item,
    new_items,
    parse_items,
    patched_item,
)
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import (
    INLINE_BYTES,
    NOT_DECODED,
    Body,
    Query,
    path_id,
)
from service.http.problems import Problem
from service.http.quotas import CALLED_BY
from service.http.response import READ_WITHIN_S, json_answer
from service.openapi import BODY, STORE, WRITES, Route, content, list_of, query_parameter, request_body, whole

MAX_PAGE = 1_000  # a page of that many is some 300 KB
_EXPORTED_AT_ONCE = 500  # 150 KB are in memory for a client that reads slowly
_ORDERS = ("id", "title")
_LINES = "application/x-ndjson"


class Stored(msgspec.Struct):
    """How many items were stored."""

    accepted: int


class ItemPage(msgspec.Struct):
    """Items in the order of their ids, or of their titles. `next` is the cursor of the page behind, null at
    the end; `total` counts all items of the catalogue.
    """

    total: int
    items: list[ItemShown]
    next: str | None


class ContextFieldBody(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A field of the contexts of ratings. `categories`: those that it has, where it is one of categories."""

    kind: ContextKind
    categories: list[str] = msgspec.field(default_factory=list)


class SchemaBody(msgspec.Struct, forbid_unknown_fields=True):
    """The types of attributes of items and of users, and the fields of the contexts of ratings."""

    items: dict[str, AttributeType] = msgspec.field(default_factory=dict)
    users: dict[str, AttributeType] = msgspec.field(default_factory=dict)
    context: dict[str, ContextFieldBody] = msgspec.field(default_factory=dict)


_ITEM: Body[ItemIn] = Body(ItemIn)
_PATCH: Body[ItemPatch] = Body(ItemPatch)
_SCHEMA: Body[SchemaBody] = Body(SchemaBody)
# As far as names can be told: what stands under each is decoded by itself.
_NAMED = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]])
_ENCODER = msgspec.json.Encoder()
_EXAMPLE = {"title": "Dune", "categories": ["sf", "classic"], "attributes": {"year": 1965}}
_RETIRED = ("invalid_parameter", "not_found", "data_damaged", *WRITES)
_CHANGED = (*BODY, "invalid_parameter", "not_found", "too_many_items", *WRITES)


@Route(
    *("PUT", "/items/{item_id}", "Catalogue", ItemShown),
    _CHANGED,
    needs="operate",
    operation_id="putItem",
    body=request_body(ItemIn, _EXAMPLE),
)
async def put_item(request: web.Request) -> web.StreamResponse:
    """Say what is known of an item; what was said before is replaced."""
    context = request.app[CONTEXT]
    store, item_id = context.store, path_id(request.rel_url.raw_path, 1, "item_id")
    context.require_room()
    async with context.bodies.read(request, context.imports) as received:
        sent = _ITEM.decode(received.raw)
        for _ in range(ATTEMPTS):
            types = await held_types(store, "items")
            item = new_item(item_id, sent, new := dict(types))
            # Types first: a call that they refuse leaves no row, which is never taken back.
            if await hold(store, "items", types, new):
                await _register(request, [item_id])
                await store.catalogue.change({item_id: _becomes(item)})
                return json_answer(ItemShown.of(item))
    raise StoreUnavailable("others are changing the schema", 0.1)


@Route(
    *("PATCH", "/items/{item_id}", "Catalogue", ItemShown),
    (*_CHANGED, "unknown_item"),
    needs="operate",
    operation_id="patchItem",
    body=request_body(ItemPatch, {"hidden": True}),
)
async def patch_item(request: web.Request) -> web.StreamResponse:
    """Change some of what is known of an item.

    What is left out stays; an attribute that is null is taken away.
    """
    context = request.app[CONTEXT]
    store, item_id = context.store, path_id(request.rel_url.raw_path, 1, "item_id")
    context.require_room()
    async with context.bodies.read(request, context.imports) as received:
        sent = _PATCH.decode(received.raw)
        (state,) = await store.catalogue.states([item_id])
        rows = await store.items(await context.epoch()).rows([item_id])
        # One that has ratings alone can be hidden as well.
        if state.deleted or (state.data is None and rows[0] is None):
            raise Problem("unknown_item", "neither the catalogue nor a rating names this item")
        found: list[CatalogueItem] = []
        for _ in range(ATTEMPTS):
            types = await held_types(store, "items")
            new = dict(types)

            def change(before: CatalogueItem | None, new: Types = new) -> CatalogueItem:
                found[:] = [patched_item(item_id, before, sent, new)]
                return found[0]

            # First without a change: the types must be held before a value of them is stored.
            change(None if state.data is None else store.catalogue.read(state.data))
            if await hold(store, "items", types, new):
                await store.catalogue.change({item_id: change})
                return json_answer(ItemShown.of(found[0]))
    raise StoreUnavailable("others are changing the schema", 0.1)


@Route(
    *("POST", "/items", "Catalogue", Stored),
    (*BODY, "too_many_rows", "too_many_items", *WRITES),
    needs="operate",
    operation_id="putItems",
    body=request_body(
        {"anyOf": [ItemRowIn, list_of(ItemRowIn, MAX_ROWS)]}, [{"item_id": "dune", **_EXAMPLE}], lines=True
    ),
)
async def post_items(request: web.Request) -> web.StreamResponse:
    """Say what is known of items: one, an array, or one a line. One bad row refuses all."""
    context = request.app[CONTEXT]
    store = context.store
    context.require_room()
    async with context.bodies.read(request, context.imports, takes_lines=True) as (raw, lines):
        if len(raw) <= INLINE_BYTES:
            rows, ids = parse_items(raw, lines=lines)
        else:
            rows, ids = await asyncio.to_thread(parse_items, raw, lines=lines)
        for _ in range(ATTEMPTS):
            types = await held_types(store, "items")
            items = await asyncio.to_thread(new_items, ids, rows, new := dict(types))
            if await hold(store, "items", types, new):
                await _register(request, ids)
                # Of an item that stands twice the last counts.
                changes = {item_id: _becomes(item) for item_id, item in zip(ids, items, strict=True)}
                await store.catalogue.change(changes)
                request[WHAT] = f"items={len(changes)}"
                return json_answer(Stored(len(rows)))
    raise StoreUnavailable("others are changing the schema", 0.1)


@Route(
    *("GET", "/items", "Catalogue", ItemPage),
    ("invalid_parameter", *STORE),
    needs="read",
    operation_id="listItems",
    parameters=(
        query_parameter("n", whole(1, MAX_PAGE, 100), "How many"),
        query_parameter("cursor", {"type": "string", "format": "byte"}, "`next` of the page before"),
        query_parameter("prefix", {"type": "string"}, "What the ids, or titles, begin with"),
        query_parameter("by", {"type": "string", "enum": list(_ORDERS), "default": "id"}, "In which order"),
    ),
)
async def get_items(request: web.Request) -> web.StreamResponse:
    """List the items of the catalogue, hidden ones too.

    Titles are compared without regard to case.
    """
    catalogue, query = request.app[CONTEXT].store.catalogue, Query(request.raw_path)
    n, prefix = query.integer("n", 100, 1, MAX_PAGE), query.text("prefix") or ""
    by_title = query.choice("by", "id", _ORDERS) == "title"
    begins = title_key(prefix) if by_title else prefix.encode()
    page = await catalogue.page(n, prefix=begins, after=_cursor(query), by_title=by_title)
    behind = None if page.after is None else base64.urlsafe_b64encode(page.after).decode()
    return json_answer(ItemPage(page.total, list(map(ItemShown.of, page.items)), behind))


def _cursor(query: Query) -> bytes:
    try:
        return base64.urlsafe_b64decode(query.raw("cursor") or b"")
    except binascii.Error:
        raise Problem("invalid_parameter", "cursor must be `next` of a page", field="cursor") from None


@Route(
    *("GET", "/export/items", "Catalogue", content({"type": "string"}, _LINES)),
    STORE,
    needs="read",
    operation_id="exportItems",
)
async def get_export(request: web.Request) -> web.StreamResponse:
    """Return all items of the catalogue, one a line, as POST /items takes them."""
    catalogue = request.app[CONTEXT].store.catalogue
    # What cannot be read at all is told by its status.
    page = await catalogue.page(_EXPORTED_AT_ONCE)
    answer = web.StreamResponse(headers={"Content-Type": _LINES})
    await answer.prepare(request)
    try:
        while page.items and request.method != "HEAD":
            async with asyncio.timeout(READ_WITHIN_S):
                await answer.write(_ENCODER.encode_lines(list(map(ItemShown.of, page.items))))
            if page.after is None:
                break
            page = await catalogue.page(_EXPORTED_AT_ONCE, after=page.after)
        await answer.write_eof()
    except BaseException:
        # Cut off, so that the client does not take what it has for all.
        if request.transport is not None:
            request.transport.abort()
        raise
    return answer


@Route(
    *("GET", "/schema", "Catalogue", SchemaBody, ("data_damaged", *STORE)),
    needs="read",
    operation_id="getSchema",
)
async def get_schema(request: web.Request) -> web.StreamResponse:
    """Return the type of each attribute and field of a context, told or inferred at its first use."""
    store = request.app[CONTEXT].store
    fields = {
        each.name: ContextFieldBody(each.kind, list(each.shown))
        for each in (await store.contexts.fresh()).shown
    }
    types = store.catalogue.schema.types
    return json_answer(SchemaBody(await types("items"), await types("users"), fields))


@Route(
    *("PUT", "/schema", "Catalogue", SchemaBody),
    (*BODY, "invalid_context", "data_damaged", *WRITES),
    needs="operate",
    operation_id="putSchema",
    body=request_body(
        SchemaBody,
        {
            "items": {"released": "time"},
            "users": {"age": "number"},
            "context": {"hour": {"kind": "number"}, "device": {"kind": "category", "categories": ["phone"]}},
        },
    ),
)
async def put_schema(request: web.Request) -> web.StreamResponse:
    """Tell types of attributes, and fields of contexts, before their first use; those of others stay.

    A field or a category that was retired comes back.
    """
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.imports) as received:
        told = _told_schema(received.raw)
    store = context.store
    kinds: tuple[tuple[Literal["items", "users"], Types], ...] = (
        ("items", told.items),
        ("users", told.users),
    )
    holding: list[tuple[Literal["items", "users"], Types, Types]] = []
    for kind, types in kinds:
        for name in types:
            if not 0 < len(name.encode()) <= MOST_NAME_BYTES:
                detail = f"a name must have 1 to {MOST_NAME_BYTES} bytes"
                raise Problem("invalid_body", detail, field=f"{kind}.{name[:MOST_NAME_BYTES]}")
        held = await held_types(store, kind)
        for name, each in types.items():
            if held.get(name, each) != each:
                detail = f"{name} is of type {held[name]} since its first use, not {each}"
                raise Problem("invalid_body", detail, field=f"{kind}.{name}")
        holding.append((kind, held, {**held, **types}))
    fields = ContextSchema(
        tuple(ContextField(name, each.kind, tuple(each.categories)) for name, each in told.context.items())
    )
    try:
        await store.contexts.tell(fields)
    except ContextRefused as exc:
        raise Problem("invalid_context", f"context: {exc}", field=f"context.{exc.name}") from exc
    # When all of the call was found right.
    for kind, held, wanted in holding:
        if not await hold(store, kind, held, wanted):
            raise StoreUnavailable("others are changing the schema", 0.1)
    return await get_schema.handler(request)


def _told_schema(raw: bytes | bytearray) -> SchemaBody:
    """Return a schema; the problem has the name of what is wrong, which decoding as a whole does not say."""
    try:
        return _SCHEMA.decode(raw)
    except Problem:
        with contextlib.suppress(*NOT_DECODED):
            for kind, named in _NAMED.decode(raw).items():
                for name, told in named.items():
                    _check_told(kind, name, told)
        raise


def _check_told(kind: str, name: str, told: msgspec.Raw) -> None:
    try:
        _SCHEMA.decode(msgspec.json.encode({kind: {name: told}}))
    except Problem as problem:
        if problem.field is None:
            raise
        field = f"{kind}.{name[:MOST_NAME_BYTES]}{problem.field.removeprefix(kind)}"
        detail = problem.detail.replace(problem.field, field, 1)
        raise Problem("invalid_body", detail, field=field) from None


@Route(
    *("DELETE", "/schema/context/{field}", "Catalogue", SchemaBody),
    _RETIRED,
    needs="operate",
    operation_id="retireContextField",
)
async def delete_context_field(request: web.Request) -> web.StreamResponse:
    """Retire a field of contexts: it is not given, shown or learned any more. Ratings keep it."""
    return await _retire(request)


@Route(
    *("DELETE", "/schema/context/{field}/{category}", "Catalogue", SchemaBody),
    _RETIRED,
    needs="operate",
    operation_id="retireContextCategory",
)
async def delete_context_category(request: web.Request) -> web.StreamResponse:
    """Retire a category of a field of contexts: it is not given, shown or learned any more."""
    return await _retire(request, path_id(request.rel_url.raw_path, 3, "category").decode())


async def _retire(request: web.Request, category: str | None = None) -> web.StreamResponse:
    name = path_id(request.rel_url.raw_path, 2, "field").decode()
    try:
        await request.app[CONTEXT].store.contexts.retire(name, category)
    except UnknownContextField as exc:
        raise Problem("not_found", str(exc)) from exc
    return await get_schema.handler(request)


async def _register(request: web.Request, item_ids: list[bytes]) -> None:
    """Give new items a row, so that they can be recommended before anyone rates them."""
    context, caller = request.app[CONTEXT], request.get(CALLED_BY)
    try:
        registry = context.store.items(await context.epoch())
        await registry.register(item_ids, context.quotas.write_limits(caller))
    except ItemsSpent as exc:
        if caller is None:
            raise
        raise context.quotas.refusal(caller, "items", exc.retry_after_s) from exc
    except EpochGone:
        # Each worker registers them in the history that has taken its place.
        return


def _becomes(item: CatalogueItem | None) -> Change:
    return lambda _: item
