"""Deleting an item for good, with its ratings or without, and the receipts of what is done after the answer.

Invariant: an item is in no list after a 2xx, and what is to be done of its ratings is stored by then. A
receipt says that it is done only when nothing is left to do, whatever was killed meanwhile.
"""

import contextlib
import re
from http import HTTPStatus

import msgspec
from aiohttp import web

from featurestore.errors import StoreDamaged
from featurestore.store import Store
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Query, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import STORE, WRITES, Route, query_parameter

_RATINGS = ("keep", "delete")
# The id of the command, and a mark of those of the ratings of an item.
_RECEIPT = re.compile(r"([0-9a-f]{32})(-ratings)?")


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
    receipt = f"{command}-ratings"
    return json_answer(DeletedItem(1, receipt, "pending"), HTTPStatus.ACCEPTED)


class Receipt(msgspec.Struct, omit_defaults=True):
    """Proof of a request to be forgotten, or to take the ratings of an item back. `archive` is `erased` once
    the trainer has erased it there too; of the ratings of an item it becomes `taken_back`, or `failed` where
    their history was replaced before.
    """

    receipt: str
    archive: str
    user_id: str | None = None
    ratings: int | None = None
    detail: str | None = None


@Route(
    *("GET", "/receipts/{receipt}", "Users and items", Receipt),
    ("invalid_parameter", "not_found", *STORE, "unknown_receipt"),
    needs="read",
    operation_id="getReceipt",
)
async def get_receipt(request: web.Request) -> web.StreamResponse:
    """Whether the archive has forgotten a user, or has the ratings of an item taken back, too; `detail` says
    what a pending erasure waits for.
    """
    context = request.app[CONTEXT]
    receipt = path_id(request.rel_url.raw_path, 1, "receipt").decode()
    match, commands = _RECEIPT.fullmatch(receipt), context.store.commands
    # In this order: it leaves the one when the other is there.
    stage = await commands.stage(match[1]) if match else None
    outcome = await commands.outcome(match[1]) if match and stage is None else None
    if stage is None and outcome is None:
        raise Problem("unknown_receipt", "receipts are kept for an hour after the end of their work")
    of_item = match is not None and match[2] is not None
    if outcome is not None and outcome.state == "done":
        return json_answer(Receipt(receipt, "taken_back" if of_item else "erased"))
    if outcome is not None and of_item and outcome.state == "failed":
        return json_answer(Receipt(receipt, "failed", detail=outcome.detail))
    if outcome is not None:
        return json_answer(Receipt(receipt, "pending", detail=outcome.detail or outcome.code))
    detail = None
    # Of the ratings of an item nothing is told before the files.
    if match and stage and (stage == "files" or not of_item):
        detail = await _waits_for(context.store, match[1], stage)
    return json_answer(Receipt(receipt, "pending", detail=detail))


async def _waits_for(store: Store, command_id: str, stage: str) -> str:
    """Return what an erasure that has not ended waits for, as the trainer says it."""
    told = None
    # What cannot be read is told by the trainer; the receipt is good without it. The last words of one that
    # is gone stay for an hour.
    with contextlib.suppress(StoreDamaged):
        told = await store.commands.outcome(command_id) if await store.leases.held() else None
    running = told if told is not None and told.state == "running" else None
    if running is not None and running.detail:
        return running.detail
    if stage == "files":
        return "the files of the store have it until they are written anew"
    return "a trainer has to begin with it" if running is None else "the trainer is at it"
