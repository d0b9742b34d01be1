"""An item is deleted, with its ratings or without. Invariant: it is in no list after a 2xx, and what is to be
done of its ratings is stored by then.
"""

from http import HTTPStatus

import msgspec
from aiohttp import web

from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Query, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import WRITES, Route, query_parameter
from service.routes.deletions.receipts import item_receipt

_RATINGS = ("keep", "delete")


class DeletedItem(msgspec.Struct, omit_defaults=True):
    """How many items were deleted. `receipt`: of the ratings, which are taken back one by one; `archive` is
    `pending` until then.
    """

    deleted: int
    receipt: str | None = None
    archive: str | None = None


@Route(
    *("DELETE", "/items/{item_id}", "Catalogue", DeletedItem),
    ("invalid_parameter", "not_found", "unknown_item", *WRITES),
    needs="operate",
    operation_id="deleteItem",
    parameters=(
        query_parameter(
            "ratings",
            {"type": "string", "enum": list(_RATINGS), "default": "keep"},
            "`delete`: its ratings are taken back from all users, too; the answer is then 202",
        ),
    ),
    accepts=DeletedItem,
)
async def delete_item(request: web.Request) -> web.StreamResponse:
    """Delete an item: it is in no list any more.

    Its ratings stay, for they say what their users like, unless they are to be deleted, too. Put it again to
    have it back.
    """
    context = request.app[CONTEXT]
    store, item_id = context.store, path_id(request.rel_url.raw_path, 1, "item_id")
    takes_back = Query(request.raw_path).choice("ratings", "keep", _RATINGS) == "delete"
    (state,) = await store.catalogue.states([item_id])
    epoch = (await store.generations.live()).epoch
    rows = await store.items(epoch).rows([item_id])
    # One that is deleted may still have ratings: of a call that broke off, too, which is sent again.
    if (state.deleted and not takes_back) or (state.data is None and rows[0] is None):
        raise Problem("unknown_item", "neither the catalogue nor a rating names this item")
    await store.catalogue.change({item_id: lambda _: None})
    if not takes_back:
        return json_answer(DeletedItem(1))
    since = store.confirmation.begin()
    # What was acknowledged before this moment is taken back; what comes after it stays.
    at_ms, found = await store.time_ms(), await store.stream.progress(epoch)
    ends = [found[partition].last for partition in range(len(found))]
    command = await store.commands.ask_to_take_back(item_id, epoch=epoch, at_ms=at_ms, ends=ends)
    await store.confirmation.wait(since)
    request[WHAT] = f"receipt={command}"
    receipt = item_receipt(command)
    return json_answer(DeletedItem(1, receipt, "pending"), HTTPStatus.ACCEPTED)
