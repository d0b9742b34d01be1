"""Rules of a call, from its fields to its list. Invariant: the catalogue and the scenario are those of after
the call began.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from factors import Bools, Float32s, Int64s
from featurestore.catalogue.schema import Types
from featurestore.generations.live import LiveGeneration
from service.catalogue.view import CatalogueView
from service.context import ServiceContext
from service.experiments.counting import Membership
from service.http.parsing import MAX_ID_BYTES, Id, Query
from service.http.problems import Problem
from service.openapi import Schema, query_parameter
from service.rules.filter_parsing import UnknownAttribute, refused
from service.rules.filters import Filter
from service.rules.listing import Ranking, RuledList, Scored, apply
from service.rules.request import MAX_NAME, RuleFields, Rules, merged, narrowed, parse_rules

# Candidates are compared with all that were chosen: a list of so many takes a second of a core.
MOST_COMPARED = 1_000
# Rules with so many bytes of JSON are checked in 2 ms: a thousand values.
_QUICK_BYTES = 8_192
# Ids whose rows are looked up in 1 ms.
_QUICK_IDS = 4_000
NO_ITEM_PASSES = "no item passes the filter"
NO_ITEM_LEFT = "each item that passes is left out: it was rated, excluded, or its category is full"
# As long as an item id may be; a few dozen ids, percent-encoded, in the head of a request.
MOST_CATEGORY, MOST_IDS = 256, 1_024


def _text(longest: int) -> Schema:
    return {"type": "string", "maxLength": longest}


QUERY_RULES = (
    query_parameter("category", _text(MOST_CATEGORY), "Only items of this category"),
    query_parameter("exclude_items", _text(MOST_IDS), "Ids of items to leave out, with commas between"),
    query_parameter("scenario", _text(MAX_NAME), "Rules that are stored"),
)


class AskedRules(NamedTuple):
    """Questions to the store that were sent in one write: for the catalogue's version and for a scenario.
    `said`: the scenario that the call asks for, where another one takes its place; `member`: by which arm.
    """

    version: "asyncio.Future[list[Any]]"
    name: str | None
    scenario: "asyncio.Future[list[Any]] | None"
    said: str | None = None
    member: Membership | None = None


class CallRules(NamedTuple):
    """The rules of a call and the catalogue that they are about. `degraded`: as known last. `member`: the arm
    of an experiment that the scenario is. `scenario`: its name.
    """

    rules: Rules
    view: CatalogueView
    degraded: bool
    member: Membership | None = None
    scenario: str | None = None


class Listed(NamedTuple):
    """A list, and why it is empty where it is."""

    items: Scored
    reason: str | None


def ask(context: ServiceContext, scenario: str | None = None) -> AskedRules:
    """Ask in the write of this turn of the event loop, with what else the call asks in it."""
    return AskedRules(context.catalogue.ask(), scenario, context.scenarios.ask(scenario), scenario)


def ask_for_user(context: ServiceContext, scenario: str | None, user_id: bytes | None) -> AskedRules:
    """Ask the same for a list that is about a user, None for one who is not stored: an experiment, or the
    default scenario, may take the place of what the call says.
    """
    experiments = context.follower.experiments
    experiment, name, member = experiments.by_scenario.get(scenario), scenario, None
    if experiment is not None and user_id is not None:
        mark = experiment.mark_of(user_id)
        arm = experiment.arm_of(mark)
        if arm >= 0:
            name, member = experiment.arms[arm].scenario, Membership(experiment, arm, mark)
    if name is None:
        name = experiments.default_scenario
    asked = context.scenarios.ask(name)
    return AskedRules(context.catalogue.ask(), name, asked, scenario, member)


async def rules_of(
    context: ServiceContext,
    live: LiveGeneration,
    asked: AskedRules,
    fields: RuleFields,
    *,
    category: str | None = None,
    n_bytes: int = 0,
) -> CallRules:
    """Return the rules that a call and its scenario say. `n_bytes`: of the body that says them.

    Raises `invalid_rule`, `unknown_scenario`.
    """
    view, degraded = await context.catalogue.current(asked.version, live.epoch)
    member, name, parse = asked.member, asked.name, partial(_parsed, context, view)
    try:
        scenario = await context.scenarios.read(asked.name, asked.scenario, parse)
    except Problem as problem:
        if problem.code != "unknown_scenario" or asked.name == asked.said:
            raise
        # The call has not named what is not there.
        name, member = asked.said, None
        scenario = await context.scenarios.read(name, context.scenarios.ask(name), parse)
    if member is not None:
        context.arm_counts.asked(member.experiment, member.arm, [member.mark])
    call = await parse(partial(parse_rules, fields), n_bytes)
    rules = narrowed(merged(call, fields, scenario), category)
    return CallRules(rules, view, degraded, member, name)


async def checked_fields(context: ServiceContext, fields: RuleFields, n_bytes: int) -> None:
    """Raise `invalid_rule` where the catalogue does not have what `fields` are about, from so many bytes."""
    view, _ = await context.catalogue.current(context.catalogue.ask(), await context.epoch())
    await _parsed(context, view, partial(parse_rules, fields), n_bytes)


async def _parsed(
    context: ServiceContext, view: CatalogueView, parse: Callable[[Types], Rules], n_bytes: int
) -> Rules:
    """Return what `parse` makes of the types of attributes, as the store has them."""

    async def parsed(types: Types) -> Rules:
        make = partial(parse, types)
        return make() if n_bytes <= _QUICK_BYTES else await context.rankings.in_thread(make)

    try:
        return await parsed(view.types)
    except UnknownAttribute:
        # A type may have been fixed since, with or without an item that has the attribute.
        return await parsed(await view.read_types())


def query_rules(query: Query) -> tuple[RuleFields, str | None]:
    """Return the rules of a query, and the category."""
    text, category = _short(query, "exclude_items", MOST_IDS), _short(query, "category", MOST_CATEGORY)
    # What is no id is no item, and so it is left out.
    ids: list[Id] | None = None
    if text is not None:
        ids = [each for each in text.split(",") if 0 < len(each.encode()) <= MAX_ID_BYTES]
    return RuleFields(exclude_items=ids), category


def _short(query: Query, name: str, longest: int) -> str | None:
    text = query.text(name)
    if text is not None and len(text) > longest:
        raise Problem("invalid_parameter", f"{name} may have {longest} characters", field=name)
    return text


def check_rearranging(rules: Rules, places: int, *, explores: bool) -> None:
    """Raise `invalid_rule` where rules do not go with the number of `places`, or with a draw."""
    if not (rules.boosts or rules.cap or rules.trade_off is not None):
        return
    if explores:
        raise refused("/explore", "a draw has no order that boosts, diversity or per_category could change")
    if (rules.cap or rules.trade_off is not None) and places > MOST_COMPARED:
        detail = f"with diversity or per_category, n and offset are {MOST_COMPARED} at most together"
        raise refused("/n", detail)


async def directions(context: ServiceContext, live: LiveGeneration, rows: Int64s) -> Float32s:
    """Return a vector (m, rank) of each of `rows`, by which diversity compares items."""
    return await context.rankings.in_thread(partial(live.ranker.directions, rows), live)


async def ruled(
    context: ServiceContext,
    live: LiveGeneration,
    call: CallRules,
    ranking: Ranking,
    *,
    wanted: int,
    exclude: Int64s,
) -> Listed:
    """Return the first `wanted` places of a list under rules. `exclude` int64 (m,): rows that are in none."""
    n_items = live.ranker.n_items
    shown = call.view.allowed(time.time(), n_items)
    # Most calls have none: these are ranked as ever, many users in one product.
    if call.rules == Rules(order=call.rules.order):
        return Listed(await ranking.top(wanted, exclude, shown), None)
    rows = await _rows(context, live, call)

    async def mask(passing: Filter) -> Bools:
        return await call.view.mask(passing, n_items, rows, context.rankings.in_thread)

    applied = await apply(
        call.rules, rows, mask, call.view.both, n_items=n_items, shown=shown, exclude=exclude
    )
    if applied.empty:
        return Listed(await ranking.top(0, exclude, None), NO_ITEM_PASSES)
    made = RuledList(applied, ranking, call.view.columns, context.rankings.in_thread)
    items = await made.first(wanted)
    return Listed(items, None if len(items.rows) else NO_ITEM_LEFT)


async def _rows(context: ServiceContext, live: LiveGeneration, call: CallRules) -> dict[bytes, int]:
    """Return the rows of the ids that rules name, of those that are known."""
    registry = context.store.items(live.epoch)

    def known() -> dict[bytes, int | None]:
        return {item_id: registry.row(item_id) for item_id in call.rules.ids()}

    found = known() if call.rules.n_values <= _QUICK_IDS else await context.rankings.in_thread(known)
    # While the store is away, ids are those that this worker knows.
    unknown = [] if call.degraded else [item_id for item_id, row in found.items() if row is None]
    found.update(zip(unknown, await registry.rows(unknown), strict=True))
    return {item_id: row for item_id, row in found.items() if row is not None}
