"""The catalogue: items are put, changed, listed, exported and deleted; the types of attributes.

Invariant: what was answered with a 2xx is in the next answer of every worker.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import numpy as np
from aiohttp import web

from featurestore.catalogue.catalogue import Catalogue, Change, title_key
from featurestore.catalogue.item import AttributeType, CatalogueItem
from featurestore.catalogue.schema import MOST_NAME_BYTES, Kind
from featurestore.errors import EpochGone, ItemDeleted, StoreDamaged
from featurestore.ratings.context_schema import (
    ContextField,
    ContextKind,
    ContextRefused,
    UnknownContextField,
)
from service.catalogue.held_types import hold_told, with_types
from service.catalogue.known_items import known_ones, known_page
from service.catalogue.parsing import (
    MAX_ROWS,
    ItemIn,
    ItemLine,
    ItemPatch,
    ItemRowIn,
    ItemShown,
    Types,
    becomes_of_row,
    new_item,
    new_items,
    parse_items,
    patched_item,
)
from service.context import CONTEXT, ServiceContext
from service.http.audit import WHAT
from service.http.parsing import (
    NOT_DECODED,
    TEXT_ID_SCHEMA,
    Body,
    Query,
    checked_id,
    cursor_of,
    parsed,
    path_id,
)
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import (
    BODY,
    STORE,
    WRITES,
    Route,
    json_parameter,
    lines_of,
    list_of,
    query_parameter,
    request_body,
    whole,
)
from service.routes.exporting import write_lines
from service.routes.items import positive_counts, statistics_of
from service.rules.scenarios import decoded, names_attribute

MAX_NAMED = 60  # with all that an item may have, 1 MB
MAX_PAGE = 1_000  # a page of that many is some 300 KB, of large items it ends at 1 MB
_EXPORTED_AT_ONCE = 500  # 150 KB are in memory for a client that reads slowly
_ORDERS = ("id", "title")
_OF = ("catalogue", "all")


class Stored(msgspec.Struct, omit_defaults=True):
    """How many items were taken. `still_deleted`: how many of them were deleted before, and stay so."""

    accepted: int
    still_deleted: int = 0


class ItemListed(ItemShown, omit_defaults=True, kw_only=True):
    """An item of a page. Where all known ones are asked for, and a generation is live, `ratings` and `mean`
    as it knows them; `positives`: its positive events, where the generation has learned any of any item.
    """

    ratings: int | None = None
    mean: float | None = None
    positives: int | None = None


class ItemPage(msgspec.Struct):
    """Items in the order of their ids, or of their titles. `next` is the cursor of the page behind, null at
    the end; `total` counts all items of the catalogue, or all that were ever known, deleted ones too; where
    some were named, those of them that are there.
    """

    total: int
    items: list[ItemListed]
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
_IDS = msgspec.json.Decoder(list[str])
# As far as names can be told: what stands under each is decoded by itself.
_NAMED = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]])
# What aiohttp takes, of any call; ids of 256 bytes have 768 when they are percent-encoded.
_ADDRESS_BYTES = 8_190
_IDS_SAID = (
    f"These alone: a JSON array of at most {MAX_NAMED} ids. Path and query of a call have {_ADDRESS_BYTES:,} "
    "bytes at most, percent-encoded: of long ids fewer fit in."
)
_EXAMPLE = {"title": "Dune", "categories": ["sf", "classic"], "attributes": {"year": 1965}}
_DELETED = ("invalid_parameter", "not_found", "data_damaged", *WRITES)
_CHANGED = (*BODY, "invalid_parameter", "not_found", "too_many_items", "attribute_in_use", *WRITES)


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
        # Types first: a call that they refuse leaves no row, which is never taken back.
        item = await with_types(store, "items", partial(new_item, item_id, sent))
        await _register(request, [item_id])
        await store.catalogue.change({item_id: _becomes(item)})
        return json_answer(ItemShown.of(item))


@Route(
    *("PATCH", "/items/{item_id}", "Catalogue", ItemShown),
    (*_CHANGED, "unknown_item"),
    needs="operate",
    operation_id="patchItem",
    repeatable=True,
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
            raise _unknown()
        found: list[CatalogueItem] = []

        def changing(types: Types) -> Callable[[CatalogueItem | None], CatalogueItem]:
            def change(before: CatalogueItem | None) -> CatalogueItem:
                found[:] = [patched_item(item_id, before, sent, types)]
                return found[0]

            # First without a change: the types must be held before a value of them is stored.
            change(None if state.data is None else store.catalogue.read(state.data))
            return change

        change = await with_types(store, "items", changing)
        try:
            await store.catalogue.change({item_id: change}, brings_back=False)
        except ItemDeleted:
            raise _unknown() from None
        return json_answer(ItemShown.of(found[0]))


@Route(
    *("POST", "/items", "Catalogue", Stored),
    (*BODY, "too_many_rows", "too_many_items", "attribute_in_use", *WRITES),
    needs="operate",
    operation_id="putItems",
    repeatable=True,
    body=request_body(
        {"anyOf": [ItemRowIn, list_of(ItemRowIn, MAX_ROWS)]}, [{"item_id": "dune", **_EXAMPLE}], lines=True
    ),
)
async def post_items(request: web.Request) -> web.StreamResponse:
    """Say what is known of items: one, an array, or one a line. One bad row refuses all.

    Hidden ones stay hidden where a row does not say `hidden`, deleted ones deleted without `undelete`.
    """
    context = request.app[CONTEXT]
    store = context.store
    context.require_room()
    async with context.bodies.read(request, context.imports, takes_lines=True) as (raw, lines):
        rows, ids = await parsed(parse_items, raw, lines=lines)
        items = await with_types(store, "items", partial(new_items, ids, rows), off_loop=True)
        await _register(request, ids)
        # Of an item that stands twice the last counts.
        last = {item_id: (item, row) for item_id, item, row in zip(ids, items, rows, strict=True)}
        changes = {item_id: partial(becomes_of_row, *each) for item_id, each in last.items()}
        # A nightly import knows nothing of what an operator has taken out since.
        staying = {item_id for item_id, (_, row) in last.items() if not row.undelete}
        stayed = await store.catalogue.change(changes, staying=staying)
        request[WHAT] = f"items={len(changes)}"
        return json_answer(Stored(len(rows), stayed))


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
        query_parameter(
            "of",
            {"type": "string", "enum": list(_OF), "default": "catalogue"},
            "`all`: also items that ratings or other events alone name; in the order of ids",
        ),
        json_parameter("ids", list_of(TEXT_ID_SCHEMA, MAX_NAMED), _IDS_SAID),
    ),
)
async def get_items(request: web.Request) -> web.StreamResponse:
    """List the items of the catalogue, or all that are known; hidden ones too.

    Titles are compared without regard to case. A page of all known ones may be short: go on until `next` is
    null.
    """
    catalogue, query = request.app[CONTEXT].store.catalogue, Query(request.raw_path)
    n, prefix, after = (
        query.integer("n", 100, 1, MAX_PAGE),
        query.text("prefix") or "",
        query.bytes64("cursor"),
    )
    by_title = query.choice("by", "id", _ORDERS) == "title"
    named = None if (text := query.text("ids")) is None else _ids(text)
    if query.choice("of", "catalogue", _OF) == "all":
        if by_title:
            raise Problem("invalid_parameter", "all known items are listed by id alone", field="by")
        return json_answer(await _known(request.app[CONTEXT], n, prefix.encode(), after, named))
    if named is not None:
        states = await catalogue.states(named)
        items = [ItemListed.of(catalogue.read(each.data)) for each in states if each.data is not None]
        return json_answer(ItemPage(len(items), items, None))
    begins = title_key(prefix) if by_title else prefix.encode()
    page = await catalogue.page(n, prefix=begins, after=after, by_title=by_title)
    return json_answer(ItemPage(page.total, list(map(ItemListed.of, page.items)), cursor_of(page.after)))


async def _known(
    context: ServiceContext, n: int, prefix: bytes, after: bytes, named: list[bytes] | None
) -> ItemPage:
    """Return a page of all known items, or those of the `named` ones that are known."""
    store, epoch, live = context.store, await context.epoch(), context.follower.live
    if named is None:
        states, behind = await known_page(store, epoch, n, prefix=prefix, after=after)
        total = len(store.items(epoch))
    else:
        states, behind = await known_ones(store, epoch, named), None
        total = len(states)
    items = [
        ItemListed(each.item_id.decode())
        if each.data is None
        else ItemListed.of(store.catalogue.read(each.data))
        for each in states
    ]
    if live is not None and live.epoch == epoch:
        row = store.items(epoch).row
        # One without a row is as one behind the last.
        found = [row(each.item_id) for each in states]
        rows = np.array([live.n_items if each is None else each for each in found], dtype=np.int64)
        known = zip(items, statistics_of(live, rows), positive_counts(live.positives, rows), strict=True)
        for item, (ratings, mean), positives in known:
            item.ratings, item.mean, item.positives = ratings, mean, positives
    return ItemPage(total, items, cursor_of(behind))


def _ids(text: str) -> list[bytes]:
    """Return the ids of a JSON array, each once."""
    try:
        ids = list(dict.fromkeys(_IDS.decode(text)))
    except NOT_DECODED as exc:
        raise Problem("invalid_parameter", "ids must be a JSON array of texts", field="ids") from exc
    if len(ids) > MAX_NAMED:
        raise Problem("invalid_parameter", f"ids may name {MAX_NAMED} items at most", field="ids")
    return [checked_id(each.encode(), "ids") for each in ids]


@Route(
    *("GET", "/export/items", "Catalogue", lines_of(ItemLine)),
    STORE,
    needs="read",
    operation_id="exportItems",
)
async def get_export(request: web.Request) -> web.StreamResponse:
    """Return all items of the catalogue, one a line, as POST /items takes them."""
    return await write_lines(request, _exported(request.app[CONTEXT].store.catalogue))


async def _exported(catalogue: Catalogue) -> AsyncIterator[list[ItemLine]]:
    after: bytes | None = b""
    while after is not None:
        page = await catalogue.page(_EXPORTED_AT_ONCE, after=after)
        yield list(map(ItemLine.of, page.items))
        after = page.after


@Route(
    *("GET", "/schema", "Catalogue", SchemaBody, ("data_damaged", *STORE)),
    needs="read",
    operation_id="getSchema",
)
async def get_schema(request: web.Request) -> web.StreamResponse:
    """Return the type of each attribute, told or inferred at its first use, and the fields of contexts."""
    store = request.app[CONTEXT].store
    fields = {
        each.name: ContextFieldBody(each.kind, list(each.categories))
        for each in (await store.contexts.fresh()).named_fields
    }
    types = store.catalogue.schema.types
    return json_answer(SchemaBody(await types("items"), await types("users"), fields))


@Route(
    *("PUT", "/schema", "Catalogue", SchemaBody),
    (*BODY, "invalid_context", "attribute_in_use", "data_damaged", *WRITES),
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
    """Tell types of attributes, and fields of contexts, before their first use; those of others stay."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.imports) as received:
        told = _told_schema(received.raw)
    store = context.store
    fields = [ContextField(name, each.kind, tuple(each.categories)) for name, each in told.context.items()]
    try:
        # All of the call is found right before anything is written; each of the two writes is one step.
        await store.contexts.check(fields)
        await hold_told(store, {"items": told.items, "users": told.users})
        await store.contexts.tell(fields)
    except ContextRefused as exc:
        raise Problem("invalid_context", f"context: {exc}", field=f"context.{exc.name}") from exc
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
    *("DELETE", "/schema/items/{attribute}", "Catalogue", SchemaBody),
    (*_DELETED, "attribute_in_use"),
    needs="operate",
    operation_id="deleteItemAttribute",
)
async def delete_item_attribute(request: web.Request) -> web.StreamResponse:
    """Take an attribute from all items, and free its name, which may then have another type."""
    return await _delete_attribute(request, "items")


@Route(
    *("DELETE", "/schema/users/{attribute}", "Catalogue", SchemaBody),
    _DELETED,
    needs="operate",
    operation_id="deleteUserAttribute",
)
async def delete_user_attribute(request: web.Request) -> web.StreamResponse:
    """Take an attribute from all users, and free its name, which may then have another type."""
    return await _delete_attribute(request, "users")


async def _delete_attribute(request: web.Request, kind: Kind) -> web.StreamResponse:
    store, name = request.app[CONTEXT].store, path_id(request.rel_url.raw_path, 2, "attribute").decode()
    left = await store.catalogue.leave(kind, name)
    if not left:
        raise Problem("not_found", f"there is no attribute {name[:MOST_NAME_BYTES]} of {kind}")
    # From here on no scenario that names it is taken.
    try:
        for scenario, text in (await store.scenarios.texts()).items() if kind == "items" else ():
            if names_attribute(decoded(scenario, text.encode()), name):
                why = f"the scenario {scenario} names {name}: put it without, before"
                raise Problem("attribute_in_use", why)
    except (Problem, StoreDamaged):
        await store.catalogue.stay(left)
        raise
    await (store.catalogue if kind == "items" else store.attributes).clear(left)
    await store.catalogue.free(left)
    return await get_schema.handler(request)


@Route(
    *("DELETE", "/schema/context/{field}", "Catalogue", SchemaBody),
    _DELETED,
    needs="operate",
    operation_id="deleteContextField",
    # The name is free after it: a second call might delete another field.
    repeatable=False,
)
async def delete_context_field(request: web.Request) -> web.StreamResponse:
    """Delete a field of contexts, and free its name: what ratings have of it is neither shown nor learned."""
    name = path_id(request.rel_url.raw_path, 2, "field").decode()
    try:
        await request.app[CONTEXT].store.contexts.delete(name)
    except UnknownContextField as exc:
        raise Problem("not_found", str(exc)) from exc
    return await get_schema.handler(request)


async def _register(request: web.Request, item_ids: list[bytes]) -> None:
    """Give new items a row, so that they can be recommended before anyone rates them."""
    context = request.app[CONTEXT]
    try:
        registry = context.store.items(await context.epoch())
        await registry.register(item_ids)
    except EpochGone:
        # Each worker registers them in the history that has taken its place.
        return


def _unknown() -> Problem:
    return Problem("unknown_item", "neither the catalogue nor a rating names this item")


def _becomes(item: CatalogueItem | None) -> Change:
    return lambda _: item
