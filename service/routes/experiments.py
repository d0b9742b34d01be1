"""Experiments: two or more scenarios, each for a share of the users, and what came of each.

Invariant: an experiment is never changed, so that its figures are of one and the same thing; ending it is one
call.
"""

import math
import time

import msgspec
from aiohttp import web

from featurestore.errors import StoreDamaged, StoreRefused
from featurestore.experiments import (
    ROUNDING,
    Arm,
    Definition,
    Experiment,
    ExperimentExists,
    Figure,
    arm_named,
    require_readable,
)
from featurestore.generations.served import wait_until_followed
from service.context import CONTEXT, ServiceContext
from service.experiments.figures import Difference, Estimate, positive_rate, rate_difference
from service.http.audit import WHAT
from service.http.parsing import Body, Query
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, STORE, WRITES, Route, query_parameter, request_body
from service.routes.scenarios import NAME, NAME_IN_PATH, NAME_SCHEMA, named_in
from service.training import SERVED_WITHIN_S

# More arms than these share too few users to tell them apart.
MAX_ARMS = 8
# Definitions have names and numbers alone.
_MOST_BYTES = 10_000


class ArmIn(msgspec.Struct, forbid_unknown_fields=True):
    """A `share` of the users, from 0 to 1, and the scenario that they get."""

    name: str
    share: float
    scenario: str


class ExperimentBody(msgspec.Struct, forbid_unknown_fields=True):
    """`scenario`: the calls of GET /recommend that take part ask for this one; without it, those that ask for
    none.
    """

    arms: list[ArmIn]
    scenario: str | None = None


class ExperimentOut(msgspec.Struct, omit_defaults=True):
    """An experiment. `began`: seconds since 1970."""

    name: str
    arms: list[Arm]
    began: float
    scenario: str | None = None


class ExperimentsOut(msgspec.Struct, omit_defaults=True):
    """Those that run. `default_scenario`: of calls that ask for none, as an experiment has left it."""

    experiments: list[ExperimentOut]
    default_scenario: str | None = None


class Begun(ExperimentOut, omit_defaults=True):
    """`followed`: whether every worker acts by it already."""

    followed: bool = False


class ArmFigures(msgspec.Struct, omit_defaults=True):
    """What came of an arm. `users`: how many it has answered, to about a percent. `lists` that were answered,
    items `shown` in them, and of these the `positives`. The difference is to the first arm.
    """

    name: str
    share: float
    scenario: str
    users: int
    lists: int
    shown: int
    positives: int
    positive_rate: Estimate | None = None
    positive_rate_difference: Difference | None = None


class ExperimentFigures(msgspec.Struct, omit_defaults=True):
    """An experiment and what came of it so far."""

    name: str
    arms: list[ArmFigures]
    began: float
    scenario: str | None = None


class Ended(msgspec.Struct, omit_defaults=True):
    """`scenario`: that of calls that ask for none from now on. `followed`: whether every worker knows."""

    ended: str
    followed: bool
    scenario: str | None = None


_BODY: Body[ExperimentBody] = Body(ExperimentBody)
_EXAMPLE = {
    "arms": [
        {"name": "as-now", "share": 0.5, "scenario": "home"},
        {"name": "mixed", "share": 0.5, "scenario": "home-mixed"},
    ],
    "scenario": "home",
}


@Route(
    *("GET", "/experiments", "Rules", ExperimentsOut),
    ("data_damaged", *STORE),
    needs="read",
    operation_id="getExperiments",
)
async def get_experiments(request: web.Request) -> web.StreamResponse:
    """The experiments that run."""
    found = await request.app[CONTEXT].store.experiments.all()
    return json_answer(ExperimentsOut([_described(each) for each in found.running], found.default_scenario))


@Route(
    *("GET", "/experiments/{name}", "Rules", ExperimentFigures),
    ("invalid_parameter", "unknown_experiment", "data_damaged", "not_found", *STORE),
    needs="read",
    operation_id="getExperiment",
    parameters=(NAME_IN_PATH,),
)
async def get_experiment(request: web.Request) -> web.StreamResponse:
    """What came of an experiment so far, by arm."""
    context = request.app[CONTEXT]
    experiment = await _named(context, named_in(request))
    definition = experiment.definition
    figures = await context.store.tallies.read(experiment)
    first = figures[0][0]
    arms = []
    for place, (arm, (tally, users)) in enumerate(zip(experiment.arms, figures, strict=True)):
        lists, shown, positives = (round(float(tally[figure].sum())) for figure in Figure)
        found = ArmFigures(arm.name, arm.share, arm.scenario, users, lists, shown, positives)
        found.positive_rate = positive_rate(tally)
        if place:
            found.positive_rate_difference = rate_difference(tally, first)
        arms.append(found)
    return json_answer(ExperimentFigures(experiment.name, arms, definition.began, definition.scenario))


@Route(
    *("PUT", "/experiments/{name}", "Rules", Begun),
    (
        *(*BODY, "invalid_parameter", "experiment_exists", "too_many_experiments", "unknown_scenario"),
        *("data_damaged", "not_found", *WRITES),
    ),
    needs="operate",
    operation_id="putExperiment",
    parameters=(NAME_IN_PATH,),
    body=request_body(ExperimentBody, _EXAMPLE),
)
async def put_experiment(request: web.Request) -> web.StreamResponse:
    """Begin an experiment. Sent again it changes nothing; another one of the same name is refused."""
    context, name = request.app[CONTEXT], named_in(request)
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_BYTES) as received:
        body = _BODY.decode(received.raw)
    arms = _checked_arms(body)
    request[WHAT] = f"experiment={name}"
    for field, scenario in [("arms.scenario", arm.scenario) for arm in arms] + [("scenario", body.scenario)]:
        if scenario is not None and await context.store.scenarios.get(scenario.encode()) is None:
            raise Problem("unknown_scenario", f"there is no scenario {scenario!r}", field=field)
    try:
        found = await context.store.experiments.begin(name, Definition(arms, time.time(), body.scenario))
    except ExperimentExists as exc:
        detail = f"the experiment {exc.name!r} runs, with other arms or about the same calls; end it first"
        raise Problem("experiment_exists", detail, field="name") from exc
    except StoreDamaged:
        raise
    except StoreRefused as exc:
        raise Problem("too_many_experiments", str(exc)) from exc
    described = msgspec.structs.asdict(_described(found))
    return json_answer(Begun(**described, followed=await _followed(context)))


@Route(
    *("DELETE", "/experiments/{name}", "Rules", Ended),
    (
        "invalid_parameter",
        "unknown_experiment",
        "unknown_scenario",
        "data_damaged",
        "not_found",
        *WRITES,
    ),
    needs="operate",
    operation_id="deleteExperiment",
    parameters=(NAME_IN_PATH, query_parameter("keep", NAME_SCHEMA, "The arm that goes on, for everybody")),
)
async def delete_experiment(request: web.Request) -> web.StreamResponse:
    """End an experiment, and forget its figures.

    With `keep` the scenario of that arm takes the place of the one that the experiment was about.
    """
    context, name = request.app[CONTEXT], named_in(request)
    keep = Query(request.raw_path).text("keep")
    request[WHAT] = f"experiment={name} keep={keep or '-'}"
    default: str | None = None
    if keep is not None:
        experiment = await _named(context, name)
        arm = arm_named(experiment, keep)
        if arm is None:
            raise Problem("invalid_parameter", f"the experiment has no arm {keep!r}", field="keep")
        default = await _kept(context, experiment, arm)
    if not await context.store.experiments.end(name, MAX_ARMS, default):
        raise _unknown(name)
    return json_answer(Ended(name, await _followed(context), default))


async def _kept(context: ServiceContext, experiment: Experiment, arm: Arm) -> str | None:
    """Return the scenario of calls that ask for none, where the experiment is about these. The rules of a
    scenario that calls name are replaced here: once more where the call is repeated.
    """
    said, scenarios = experiment.definition.scenario, context.store.scenarios
    if said is None:
        return arm.scenario
    rules = await scenarios.get(arm.scenario.encode())
    if rules is None:
        raise Problem("unknown_scenario", f"there is no scenario {arm.scenario!r}", field="keep")
    await scenarios.put(said.encode(), rules)
    return None


async def _followed(context: ServiceContext) -> bool:
    version = (await context.store.experiments.all()).version
    generations, here = context.store.generations, context.follower
    return await wait_until_followed(generations, version, SERVED_WITHIN_S, here=here)


async def _named(context: ServiceContext, name: str) -> Experiment:
    found = await context.store.experiments.all()
    require_readable(found, name, context.store.keys.experiments)
    experiment = found.named(name)
    if experiment is None:
        raise _unknown(name)
    return experiment


def _unknown(name: str) -> Problem:
    return Problem("unknown_experiment", f"there is no experiment {name!r}", field="name")


def _described(experiment: Experiment) -> ExperimentOut:
    definition = experiment.definition
    return ExperimentOut(experiment.name, [*experiment.arms], definition.began, definition.scenario)


def _checked_arms(body: ExperimentBody) -> tuple[Arm, ...]:
    """Return the arms of a body. Raises `invalid_body`."""
    arms = tuple(Arm(arm.name, arm.share, arm.scenario) for arm in body.arms)
    names = [arm.name for arm in arms]
    if not 2 <= len(arms) <= MAX_ARMS:
        raise _refused("arms", f"there must be 2 to {MAX_ARMS} arms")
    if any(not NAME.fullmatch(name) for name in names) or len({*names}) < len(names):
        raise _refused("arms.name", "each arm needs a name of its own of letters, digits and `_.-`")
    if any(not 0 < arm.share <= 1 for arm in arms) or math.fsum(arm.share for arm in arms) > 1 + ROUNDING:
        raise _refused("arms.share", "shares must be above 0, and 1 at most together")
    return arms


def _refused(field: str, detail: str) -> Problem:
    return Problem("invalid_body", f"{field}: {detail}", field=field)
