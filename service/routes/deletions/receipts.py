"""Receipts of what is deleted after the answer. Invariant: one says that it is done only when nothing is left
to do, whatever was killed meanwhile.
"""

import re
import time

import msgspec
from aiohttp import web

from featurestore.commands import OUTCOME_S
from service.context import CONTEXT
from service.http.parsing import path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import STORE, Route

# The id of the command, the time of the call in seconds (a replica of 0.1.0 knows none without), and a mark
# of those of the ratings of an item.
_RECEIPT = re.compile(r"([0-9a-f]{32})(?:-([0-9a-f]{1,12}))?(-ratings)?")


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


def stamped(command_id: str) -> str:
    """Return the receipt of a command that erases a user."""
    return f"{command_id}-{int(time.time()):x}"


def item_receipt(command_id: str) -> str:
    """Return the receipt of a command that takes the ratings of an item back."""
    return f"{stamped(command_id)}-ratings"


@Route(
    *("GET", "/receipts/{receipt}", "Users and items", Receipt),
    ("invalid_parameter", "not_found", *STORE, "unknown_receipt"),
    needs="read",
    operation_id="getReceipt",
)
async def get_receipt(request: web.Request) -> web.StreamResponse:
    """Whether the archive has forgotten a user, or has the ratings of an item taken back, too."""
    context = request.app[CONTEXT]
    receipt = path_id(request.rel_url.raw_path, 1, "receipt").decode()
    match, commands = _RECEIPT.fullmatch(receipt), context.store.commands
    # In this order: it leaves the one when the other is there.
    stage = await commands.stage(match[1]) if match else None
    outcome = await commands.outcome(match[1]) if match and stage is None else None
    # 0.1.0 kept nothing of an erasure that its trainer had not come to.
    stamped_s = int(match[2], 16) if match and match[2] else 0
    if stage is None and outcome is None and not 0 <= time.time() - stamped_s < OUTCOME_S:
        raise Problem("unknown_receipt", "receipts are kept for an hour after the end of their work")
    of_item = match is not None and match[3] is not None
    if outcome is not None and outcome.state == "done":
        return json_answer(Receipt(receipt, "taken_back" if of_item else "erased"))
    if outcome is not None and of_item and outcome.state == "failed":
        return json_answer(Receipt(receipt, "failed", detail=outcome.detail))
    if outcome is not None:
        return json_answer(Receipt(receipt, "pending", detail=outcome.detail or outcome.code))
    detail = "the files of the store have it until they are written anew" if stage == "files" else None
    return json_answer(Receipt(receipt, "pending", detail=detail))
