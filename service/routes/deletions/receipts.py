"""Receipts of what is deleted after the answer. Invariant: one says that it is done only when nothing is left
to do, whatever was killed meanwhile.
"""

import contextlib
import re

import msgspec
from aiohttp import web

from featurestore.errors import StoreDamaged
from featurestore.store import Store
from service.context import CONTEXT
from service.http.parsing import path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import STORE, Route

# The id of the command, and a mark of those of the ratings of an item.
_RECEIPT = re.compile(r"([0-9a-f]{32})(-ratings)?")


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


def item_receipt(command_id: str) -> str:
    """Return the receipt of a command that takes the ratings of an item back."""
    return f"{command_id}-ratings"


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
