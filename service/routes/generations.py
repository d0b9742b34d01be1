"""GET /generations and going back to one. Invariant: activation is the same pointer flip as publishing."""

import logging
from collections.abc import Mapping
from dataclasses import asdict

import msgspec
from aiohttp import web

from featurestore.errors import StoreDamaged
from featurestore.experiments import Showings
from featurestore.generations.served import wait_until_served
from service.context import CONTEXT
from service.experiments.figures import Estimate, wilson
from service.http.audit import WHAT
from service.http.parsing import Query, whole_number
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import STORE, WRITES, Route, parameter, query_parameter, whole
from service.training import SERVED_WITHIN_S

log = logging.getLogger("foldin.service")

# What a JSON number holds exactly.
MAX_NUMBER = 2**53


class Feedback(msgspec.Struct, frozen=True):
    """What came of a generation's lists: how many there were, items shown in them, of these the positives (a
    positive event within seven days), their share with a 95 % interval, and the share of its items that were
    shown at all, to about a percent.
    """

    lists: int
    shown: int
    positives: int
    positive_rate: Estimate | None
    coverage: float


class GenerationOut(msgspec.Struct, omit_defaults=True):
    """One generation. `created`: seconds since 1970."""

    generation: int
    epoch: int
    state: str
    live: bool
    created: float
    rank: int
    link: str
    engine: str
    n_users: int
    n_items: int
    n_ratings: int
    metrics: dict[str, float]
    feedback: Feedback | None = None


class GenerationsOut(msgspec.Struct):
    """What is kept, the newest first. `live` is 0 before the first; `held`: automatic refits wait."""

    live: int
    epoch: int
    held: bool
    generations: list[GenerationOut]


class Activated(msgspec.Struct):
    """What is live now. `served`: whether every worker answers from it already."""

    generation: int
    epoch: int
    held: bool
    served: bool


def feedback_of(found: Showings, n_items: int) -> Feedback:
    """Return what came of lists over so many items."""
    # Items may come after the fit, and distinct ones are counted to about a percent.
    coverage = min(1.0, found.distinct / n_items) if n_items else 0.0
    rate = wilson(min(1.0, found.positives / found.shown), found.shown) if found.shown else None
    return Feedback(found.lists, found.shown, found.positives, rate, coverage)


@Route("GET", "/generations", "Training", GenerationsOut, STORE, operation_id="getGenerations", needs="read")
async def get_generations(request: web.Request) -> web.StreamResponse:
    """The generations that are kept."""
    context = request.app[CONTEXT]
    generations = context.store.generations
    pointer, summaries = await generations.live(), await generations.list()
    showings: Mapping[int, Showings] = {}
    try:
        showings = await context.store.showings.read()
    except StoreDamaged as exc:
        # Figures for people: without them there is still what is needed to go back to a generation.
        log.warning("figures of lists cannot be read: %s", exc)
    found = [
        # Every other field has the name that it has in the store.
        msgspec.convert(
            {**asdict(each), "live": each.generation == pointer.generation}, GenerationOut, strict=True
        )
        for each in sorted(summaries, key=lambda each: -each.generation)
    ]
    for each in found:
        if (shown := showings.get(each.generation)) is not None:
            each.feedback = feedback_of(shown, each.n_items)
    return json_answer(GenerationsOut(pointer.generation, pointer.epoch, pointer.held, found))


@Route(
    *("POST", "/generations/{generation}/activate", "Training", Activated),
    ("invalid_parameter", "not_found", "unknown_generation", *WRITES),
    needs="operate",
    operation_id="activate",
    repeatable=True,
    parameters=(
        parameter("generation", "path", whole(1, MAX_NUMBER), "Its number", required=True),
        query_parameter(
            "hold",
            {"type": "boolean"},
            "Whether automatic refits wait from now on; left out, they do where it is not the newest",
        ),
    ),
)
async def post_activate(request: web.Request) -> web.StreamResponse:
    """Make a generation that is kept the live one.

    Going back from the newest also holds automatic refits until a call goes forward again; `hold` says so, or
    that they go on, of any: also of the live one.
    """
    context = request.app[CONTEXT]
    number = whole_number(request.match_info["generation"], "generation", 1, MAX_NUMBER)
    request[WHAT] = f"generation={number}"
    store = context.store
    summaries = [each for each in await store.generations.list() if each.state == "ready"]
    chosen = next((each for each in summaries if each.generation == number), None)
    if chosen is None:
        raise Problem("unknown_generation", f"generation {number} is not kept; see GET /generations")
    if not chosen.n_ratings:
        meta = await store.generations.meta(chosen.epoch, number)
        if store.scale.outdated(meta.model, chosen.n_ratings):
            raise Problem("unknown_generation", f"generation {number} is of the scale before it was decided")
    # The next automatic refit would undo a step back.
    back = number < max(each.generation for each in summaries)
    hold = Query(request.raw_path).flag("hold", back)
    since = store.confirmation.begin()
    await store.generations.activate(number, hold=hold)
    await store.confirmation.wait(since)
    served = await wait_until_served(
        store.generations, chosen.epoch, number, SERVED_WITHIN_S, here=context.follower, exactly=True
    )
    return json_answer(Activated(number, chosen.epoch, hold, served))
