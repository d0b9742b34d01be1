"""PUT /scale: the scale of the ratings, decided once.

Invariant: after a 2xx every worker holds ratings to this scale, and none answers by the prior of another.
"""

import msgspec
from aiohttp import web

from featurestore.generations.served import wait_for_scale
from featurestore.settings import format_scale, scale_of
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Body
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, WRITES, Route, request_body
from service.training import SERVED_WITHIN_S

_MOST_BYTES = 1_000  # three numbers


class ScaleIn(msgspec.Struct, forbid_unknown_fields=True):
    """A scale: its low end, its high end, and the step between its values where all ratings keep one."""

    low: float
    high: float
    step: float | None = None


class ScaleOut(msgspec.Struct):
    """The scale of the ratings. `served`: whether every worker answers by it already."""

    low: float
    high: float
    step: float | None
    served: bool


_BODY: Body[ScaleIn] = Body(ScaleIn)


@Route(
    *("PUT", "/scale", "Operations", ScaleOut),
    (*BODY, "scale_decided", "data_damaged", *WRITES),
    needs="operate",
    operation_id="decideScale",
    body=request_body(ScaleIn, {"low": 0.5, "high": 5, "step": 0.5}),
)
async def put_scale(request: web.Request) -> web.StreamResponse:
    """Decide on the scale of the ratings, before the first one is stored. May be repeated."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, None, limit_bytes=_MOST_BYTES) as (raw, _):
        body = _BODY.decode(raw)
    try:
        wanted = scale_of(body.low, body.high, body.step)
    except ValueError as exc:
        raise Problem("invalid_body", f"the scale {exc}", field="low") from None
    request[WHAT] = f"scale={format_scale(wanted)}"
    store = context.store
    since = store.confirmation.begin()
    if not await store.scale.decide(wanted):
        detail = (
            f"it is {format_scale(store.scale.value)}, for good: for another one begin another store, with "
            "another FOLDIN_NAMESPACE, or `foldin up --data` on another folder"
        )
        raise Problem("scale_decided", detail)
    await store.confirmation.wait(since)
    served = await wait_for_scale(store.generations, store.scale, SERVED_WITHIN_S, here=context.follower)
    scale = store.scale.value
    return json_answer(ScaleOut(scale.low, scale.high, scale.step, served))
