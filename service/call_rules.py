"""Rules of a call, from its fields to its list. Invariant: the catalogue and the scenario are those of after
the call began.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

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
from service.rules.filters import NO_FILTER, Filter, known_rows, mask_of_rows, unknown_value
from service.rules.listing import Ranking, RuledList, Scored, Top, apply
from service.rules.request import (
    DEFAULT_N,
    MAX_N,
    MAX_NAME,
    MOST_INCLUDED,
    RuleFields,
    Rules,
    merged,
    narrowed,
    parse_rules,
)

# Candidates are compared with all that were chosen: a list of so many takes a second of a core.
MOST_COMPARED = 1_000
# Rules with so many bytes of JSON are checked in 2 ms: a thousand values.
_QUICK_BYTES = 8_192
# Ids whose rows are looked up in 1 ms.
_QUICK_IDS = 4_000
# Why a list is empty: the first of these that leaves nothing of what those before it have left.
NO_ITEM = "there is no item to choose from"
NONE_SHOWN = "each item is hidden, deleted, or not available now"
NO_ITEM_PASSES = "no item passes the filter"
NONE_PASSES_SHOWN = "each item that passes the filter is hidden, deleted, or not available now"
NO_CANDIDATE = "no item of candidate_items is left by the filter and by what may be shown"
ALL_EXCLUDED = "each item that is left is among exclude_items"
ALL_SEEN = "the user has rated or consumed each item that is left"
NONE_RANKED = "of no item that is left there is anything known to rank it by"
BEHIND = "offset is behind the last item"
# A few dozen ids or categories, percent-encoded, in the head of a request.
MOST_IDS = 1_024


def _text(longest: int) -> Schema:
    return {"type": "string", "maxLength": longest}


QUERY_RULES = (
    query_parameter(
        "category", _text(MOST_IDS), "Only items of this category, or any of several with commas"
    ),
    query_parameter("exclude_items", _text(MOST_IDS), "Ids of items to leave out, with commas between"),
    query_parameter("scenario", _text(MAX_NAME), "Rules that are stored"),
    query_parameter(
        "include",
        # The clients take a list, too, and send it with commas.
        _text(MOST_IDS) | {"x-list": True},
        "What to say of each item, with commas between: `title`, `image`, `categories`, `attributes`, "
        "`attributes.NAME`, and in lists for a user `reasons`",
    ),
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
        member = Membership.of(experiment, user_id)
        name = scenario if member is None else experiment.arms[member.arm].scenario
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
    if member is not None and rules.impressions is None:
        # Without showings an experiment has nothing to count; `false` is said by clients that send their own.
        rules = replace(rules, impressions=True)
    return CallRules(rules, view, degraded, member, name)


async def checked_fields(context: ServiceContext, fields: RuleFields, n_bytes: int) -> None:
    """Raise `invalid_rule` where the catalogue does not have what `fields` are about, from so many bytes, or
    no list could have them together.
    """
    view, _ = await context.catalogue.current(context.catalogue.ask(), await context.epoch())
    rules = await _parsed(context, view, partial(parse_rules, fields), n_bytes)
    check_rearranging(rules, rules.n or DEFAULT_N, explores=rules.explore != "none")


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
    text, category = _short(query, "exclude_items", MOST_IDS), _short(query, "category", MOST_IDS)
    # What is no id is no item, and so it is left out.
    ids: list[Id] | None = None
    if text is not None:
        ids = [each for each in text.split(",") if 0 < len(each.encode()) <= MAX_ID_BYTES]
    n, include = query.integer("n", 0, 1, MAX_N) or None, _short(query, "include", MOST_IDS)
    return RuleFields(exclude_items=ids, n=n, include=include), category


def _short(query: Query, name: str, longest: int) -> str | None:
    text = query.text(name)
    if text is not None and len(text) > longest:
        raise Problem("invalid_parameter", f"{name} may have {longest} characters", field=name)
    return text


def check_rearranging(rules: Rules, places: int, *, explores: bool) -> None:
    """Raise `invalid_rule` where rules do not go with the number of `places`, or with a draw."""
    if rules.include and (rules.n or DEFAULT_N) > MOST_INCLUDED:
        raise refused("/n", f"with include, n is {MOST_INCLUDED} at most")
    if not (rules.boosts or rules.per_category or rules.diversity is not None):
        return
    if explores:
        raise refused("/explore", "a draw has no order that boosts, diversity or per_category could change")
    if (rules.per_category or rules.diversity is not None) and places > MOST_COMPARED:
        detail = f"with diversity or per_category, n and offset are {MOST_COMPARED} at most together"
        raise refused("/n", detail)


async def _directions(context: ServiceContext, live: LiveGeneration, rows: Int64s) -> Float32s:
    """Return a vector (m, rank) of each of `rows`, by which diversity compares items."""
    by_events = live.likeness if live.by_events else None
    vectors = (by_events or live.ranker).directions
    return await context.rankings.in_thread(partial(vectors, rows), live)


async def ruled(
    context: ServiceContext,
    live: LiveGeneration,
    call: CallRules,
    top: Top,
    *,
    floor: float = 0.0,
    offset: int,
    explores: bool = False,
    less: Sequence[int] = (),
    seen: Int64s | None = None,
) -> Listed:
    """Return the places of a list behind the best `offset`, under rules; `top` and `floor` as of a `Ranking`.
    `explores`: a draw ranks; `less`: rows that are in no such list; `seen` int64 (k,): those that the user
    has seen.
    """
    # Items before the offset are ranked too: their scores decide which ones come behind them.
    wanted = (call.rules.n or DEFAULT_N) + offset
    check_rearranging(call.rules, wanted, explores=explores)
    registry, n_items = context.store.items(live.epoch), live.ranker.n_items
    if n_items > len(registry):
        await registry.refresh()
    # Rows that are not given to an item yet have no name.
    exclude = np.append(np.array(less, dtype=np.int64), np.arange(len(registry), n_items))
    shown = call.view.allowed(time.time(), n_items)
    left_out = exclude if seen is None else np.concatenate([seen, exclude])
    rows: dict[bytes, int] = {}

    async def mask(passing: Filter) -> Bools:
        return await call.view.mask(passing, n_items, rows, context.rankings.in_thread)

    # Most calls have none: these are ranked as ever, many users in one product.
    if call.rules == Rules(order=call.rules.order):
        items = await top(wanted, left_out, shown)
    else:
        rows = await _rows(context, live, call)
        applied = await apply(
            call.rules, rows, mask, call.view.masks.both, n_items=n_items, shown=shown, exclude=left_out
        )
        ranking = Ranking(top, partial(_directions, context, live), floor)
        made = RuledList(applied, ranking, call.view.columns, context.rankings.in_thread)
        items = await made.first(wanted)
    if len(items.rows):
        page = items.at(slice(offset, None))
        return Listed(page, None if len(page.rows) else BEHIND)

    def without(left: Int64s) -> Bools:
        return ~mask_of_rows(left, n_items)

    everything, some = np.ones(n_items, dtype=np.bool_), call.rules.candidate_items
    passing = everything if call.rules.filter == NO_FILTER else await mask(call.rules.filter)
    steps = (
        (NO_ITEM, without(exclude)),
        (NONE_SHOWN, everything if shown is None else shown),
        (NONE_PASSES_SHOWN if passing.any() else NO_ITEM_PASSES, passing),
        (NO_CANDIDATE, everything if some is None else mask_of_rows(known_rows(some, rows), n_items)),
        (ALL_EXCLUDED, without(known_rows(call.rules.exclude_items, rows))),
        (ALL_SEEN, everything if seen is None else without(seen)),
    )
    why = why_empty(steps)
    if why == NO_ITEM_PASSES:
        find = partial(unknown_value, call.rules.filter, call.view.columns)
        said = await call.view.columns.read(find, context.rankings.in_thread, quick=False)
        why = said or why
    return Listed(items, why)


def why_empty(steps: Sequence[tuple[str, Bools]]) -> str:
    """Return why nothing is in a list: the first reason whose mask (n,) leaves nothing of what is left."""
    left: Bools | None = None
    for why, mask in steps:
        left = mask if left is None else left & mask
        if not left.any():
            return why
    return NONE_RANKED


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
