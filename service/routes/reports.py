"""Reports of `foldin evaluate`, beside what is measured here. Invariant: what is kept was read as one."""

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from featurestore.errors import StoreRefused
from featurestore.telemetry.points import MOST_REPORTS
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Body
from service.http.problems import Problem
from service.http.response import Answer, json_answer
from service.openapi import BODY, STORE, WRITES, Route, request_body
from service.routes.scenarios import NAME_IN_PATH, named_in

# A line of a report takes 1 to 2 KB with its curves, and 200 to 300 bytes of it are kept.
_MOST_BYTES, _MOST_KEPT_BYTES, _MOST_ROWS = 250_000, 64_000, 200


class ReportRow(msgspec.Struct, omit_defaults=True):
    """What an `engine` reached on a `split` of the ratings `data`: a line of `foldin evaluate --json`. A
    figure that was not measured is null; what else such a line has is not kept.
    """

    data: str
    split: str
    engine: str
    n_train: int = 0
    n_test: int = 0
    rmse: float | None = None
    mae: float | None = None
    log_likelihood: float | None = None
    coverage: float | None = None
    recall_20: float | None = None
    ndcg_100: float | None = None
    seconds: float | None = None
    note: str = ""
    skipped: str = ""


class ReportIn(msgspec.Struct):
    """The lines of a report."""

    rows: Annotated[list[ReportRow], Meta(min_length=1, max_length=_MOST_ROWS)]


class Report(msgspec.Struct):
    """A report, and when it was stored, in seconds since 1970."""

    name: str
    at: float
    rows: list[ReportRow]


class Reports(msgspec.Struct):
    """All reports, the newest first."""

    reports: list[Report]


class ReportDeleted(msgspec.Struct):
    """How many were deleted."""

    deleted: int


_BODY: Body[ReportIn] = Body(ReportIn)
# For the description, and for those who try the call there.
_EXAMPLE = {
    "rows": [
        {
            "data": "ratings.csv",
            "split": "random 1",
            "engine": "auto",
            "n_train": 720,
            "n_test": 180,
            "rmse": 0.91,
        }
    ]
}


@Route("GET", "/reports", "Operations", Reports, STORE, needs="read", operation_id="getReports")
async def get_reports(request: web.Request) -> web.StreamResponse:
    """Reports of `foldin evaluate` that were stored here."""
    stored = await request.app[CONTEXT].store.reports.all()
    # A MB of JSON, read and written.
    return Answer(await asyncio.to_thread(_shown, stored.values()))


def _shown(stored: Iterable[bytes]) -> bytes:
    found = []
    for value in stored:
        try:
            found.append(msgspec.json.decode(value, type=Report))
        except msgspec.MsgspecError:
            # Written by another version, or damaged: nothing rests on it, and the others are shown.
            continue
    return msgspec.json.encode(Reports(sorted(found, key=lambda each: -each.at)))


@Route(
    *("PUT", "/reports/{name}", "Operations", Report),
    (*BODY, "invalid_parameter", "too_many_reports", "not_found", *WRITES),
    needs="operate",
    operation_id="putReport",
    parameters=(NAME_IN_PATH,),
    body=request_body(ReportIn, _EXAMPLE),
)
async def put_report(request: web.Request) -> web.StreamResponse:
    """Store a report under a name, in place of the one before."""
    context, name = request.app[CONTEXT], named_in(request)
    request[WHAT] = name
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_BYTES) as received:
        # Rows are as many as a table of people has, but what they say may be long.
        given = await _BODY.decode_off_loop(received.raw)
    # As it was read: nothing is kept that could not be shown.
    report = Report(name, time.time(), given.rows)
    kept = msgspec.json.encode(report)
    if len(kept) > _MOST_KEPT_BYTES:
        detail = f"{len(kept)} bytes of it would be kept, and {_MOST_KEPT_BYTES} may be: send fewer rows"
        raise Problem("body_too_large", detail)
    try:
        await context.store.reports.put(name.encode(), kept)
    except StoreRefused as exc:
        raise Problem("too_many_reports", f"{exc}: delete one ({MOST_REPORTS} are kept)") from exc
    return Answer(kept)


@Route(
    *("DELETE", "/reports/{name}", "Operations", ReportDeleted),
    ("invalid_parameter", "unknown_report", "not_found", *WRITES),
    needs="operate",
    operation_id="deleteReport",
    parameters=(NAME_IN_PATH,),
)
async def delete_report(request: web.Request) -> web.StreamResponse:
    """Delete a report."""
    request[WHAT] = name = named_in(request)
    if not await request.app[CONTEXT].store.reports.delete(name.encode()):
        raise Problem("unknown_report", f"there is no report {name!r}", field="name")
    return json_answer(ReportDeleted(1))
