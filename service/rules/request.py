"""The rules of a request: what a body, a query or a scenario says becomes values, checked.

Invariant: what a call says takes the place of what its scenario says, field by field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from featurestore.catalogue.schema import Types
from service.http.parsing import DescribedId, Id, body_ids
from service.rules.filter_parsing import (
    UnknownAttribute,
    category_names,
    parse_filter,
    pointer_to,
    refused,
)
from service.rules.filters import NO_FILTER, Filter, TextMatch

C = TypeVar("C", bound=str)
N = TypeVar("N", int, float)
Order = Literal["score", "rating"]
ORDERS: tuple[Order, ...] = get_args(Order)
Explore = Literal["none", "thompson"]
EXPLORE: tuple[Explore, ...] = get_args(Explore)
# Items of a list, and how many there are where neither call nor scenario says.
MAX_N, DEFAULT_N = 1_000, 10
# The most that a head chooses.
MAX_RECENCY = 16.0
# Each doubles the groups of items that are ranked apart.
MAX_BOOSTS = 4
# Farther than tenfold it is a filter or a pinned place that is wanted.
LEAST_FACTOR, MOST_FACTOR = 0.1, 10.0
# Ids in one call, as in a filter: hardly more than a body has room for.
MAX_IDS = 10_000
# Places of the first page that an editor fills by hand.
MAX_PINNED = 100
# The last place that can be asked for: as many are left out, and as many wanted.
MAX_POSITION = 11_000
# As long as an item id; a name stands in a path.
MAX_NAME = 64

# What a list may say of its items beside their scores, and how one attribute is named.
INCLUDED = ("title", "image", "categories", "attributes", "reasons")
ATTRIBUTE_OF = "attributes."
# A list of more is no page: an answer has 14 KB an item at most.
MOST_INCLUDED = 100

_INCLUDE_SCHEMA = {"examples": [["title", "image", "attributes.year", "reasons"]]}
RECENCY_SCHEMA = {"type": "number", "minimum": 0, "maximum": MAX_RECENCY}
_N_SCHEMA = {"minimum": 1, "maximum": MAX_N, "default": DEFAULT_N}
_FILTER_SCHEMA = {
    "type": "object",
    "description": "`must` (all hold), `should` (one does), `must_not` (none does): lists of conditions. A "
    "condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte, lt, lte}}`, "
    "`{is_empty: {key}}` or `{has_id: [..]}`.",
    "examples": [{"must": [{"key": "categories", "match": {"value": "drama"}}]}],
}
FilterField = Annotated[Any, Meta(extra_json_schema=_FILTER_SCHEMA)]
# Null is as if it was left out.
OptionalFilter = Annotated[Any, Meta(extra_json_schema={**_FILTER_SCHEMA, "type": ["object", "null"]})]
Ids = Annotated[list[DescribedId], Meta(extra_json_schema={"maxItems": MAX_IDS})]


class Boost(msgspec.Struct, forbid_unknown_fields=True):
    """Multiplies the scores of the items that pass a filter."""

    filter: FilterField
    multiply: Annotated[float, Meta(extra_json_schema={"minimum": LEAST_FACTOR, "maximum": MOST_FACTOR})]


class Diversity(msgspec.Struct, forbid_unknown_fields=True):
    """Maximal marginal relevance: `lambda` 1 is the order of the scores, 0 looks at differences alone."""

    trade_off: Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})] = msgspec.field(
        name="lambda"
    )


class Pin(msgspec.Struct, forbid_unknown_fields=True):
    """An item at a position of the list, from 1 on."""

    item_id: DescribedId
    position: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MAX_POSITION})]


class ItemRuleFields(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a list may have, also one that follows no taste."""

    filter: OptionalFilter = None
    exclude_items: Ids | None = None
    candidate_items: Ids | None = None
    boosts: Annotated[list[Boost], Meta(extra_json_schema={"maxItems": MAX_BOOSTS})] | None = None
    diversity: Diversity | None = None
    per_category: Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None = None
    pinned: Annotated[list[Pin], Meta(extra_json_schema={"maxItems": MAX_PINNED})] | None = None
    n: Annotated[int, Meta(extra_json_schema=_N_SCHEMA)] | None = None
    # Whether what the user has seen is left out, or the types of events that count as that.
    exclude_seen: bool | list[str] | None = None
    # What stands beside the score of each item: parts of the catalogue, and reasons.
    include: Annotated[str | list[str], Meta(extra_json_schema=_INCLUDE_SCHEMA)] | None = None

    def __post_init__(self) -> None:
        # A query has the names with commas between.
        if isinstance(self.include, str):
            self.include = self.include.split(",")


class RuleFields(ItemRuleFields, kw_only=True):
    """What a list for someone may have, and in which order. A scenario has the same fields."""

    order: Annotated[str, Meta(extra_json_schema={"enum": list(ORDERS)})] | None = None
    # Whether a draw from the posterior ranks, and whether the items that it has shown are recorded.
    explore: Annotated[str, Meta(extra_json_schema={"enum": list(EXPLORE), "default": "none"})] | None = None
    # How many times more the latest events count than early ones; else as the ranking head has chosen.
    recency: Annotated[float, Meta(extra_json_schema=RECENCY_SCHEMA)] | None = None
    impressions: bool | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules, checked; each part has the name of its field. `candidate_items`: the only items there may be,
    None for all; `pinned`: position and item, of those that `pins_pass`; `diversity`: the trade-off of
    maximal marginal relevance; `n` items, None where neither says; `exclude_seen`: whether what was seen is
    left out, or the types of events that count as that; `impressions`: what is shown is recorded, None where
    neither says.
    """

    filter: Filter = NO_FILTER
    exclude_items: tuple[bytes, ...] = ()
    candidate_items: tuple[bytes, ...] | None = None
    boosts: tuple[tuple[float, Filter], ...] = ()
    diversity: float | None = None
    per_category: int | None = None
    pinned: tuple[tuple[int, bytes], ...] = ()
    order: Order | None = None
    pins_pass: Filter = field(default=NO_FILTER, kw_only=True)
    # Of who asks and what happens to a list, not of what it may have: rules that differ in these alone are
    # equal.
    n: int | None = field(default=None, compare=False)
    exclude_seen: bool | tuple[str, ...] = field(default=True, compare=False)
    explore: Explore = field(default="none", compare=False)
    recency: float | None = field(default=None, compare=False)
    impressions: bool | None = field(default=None, compare=False)
    include: tuple[str, ...] = field(default=(), compare=False)

    @property
    def n_values(self) -> int:
        """How many ids and values it names."""
        filters = (self.filter, *(passing for _, passing in self.boosts))
        ids = len(self.exclude_items) + len(self.candidate_items or ()) + len(self.pinned)
        return ids + sum(each.n_values for each in filters)

    def ids(self) -> Iterator[bytes]:
        """Yield all ids that it names."""
        yield from self.exclude_items
        yield from self.candidate_items or ()
        yield from (item_id for _, item_id in self.pinned)
        for each in (self.filter, *(passing for _, passing in self.boosts)):
            yield from each.ids()


def merged(call: Rules, fields: RuleFields, scenario: Rules | None) -> Rules:
    """Return the rules of a call, which `fields` say, with those of its scenario. What the scenario leaves
    out no call brings back, pinned or not: both filters hold, exclusions are joined, an item must be a
    candidate of both, and the smaller cap holds. Each other field of the call takes the place of the
    scenario's.
    """
    if scenario is None:
        return call
    names = [name for name in RuleFields.__struct_fields__ if getattr(fields, name) is not None]
    joined = replace(scenario, **{name: getattr(call, name) for name in names})
    filters = tuple(each for each in (scenario.filter, call.filter) if each != NO_FILTER)
    caps = [cap for cap in (scenario.per_category, call.per_category) if cap is not None]
    if fields.pinned is not None:
        # What an editor has pinned stands beside the filter of the same rules.
        may_be = None if scenario.candidate_items is None else set(scenario.candidate_items)
        pinned = tuple(pin for pin in call.pinned if may_be is None or pin[1] in may_be)
        joined = replace(joined, pinned=pinned, pins_pass=scenario.filter)
    return replace(
        joined,
        filter=filters[0] if len(filters) == 1 else Filter(must=filters),
        exclude_items=tuple(dict.fromkeys((*scenario.exclude_items, *call.exclude_items))),
        candidate_items=_both(scenario.candidate_items, call.candidate_items),
        per_category=min(caps, default=None),
    )


def _both(these: tuple[bytes, ...] | None, those: tuple[bytes, ...] | None) -> tuple[bytes, ...] | None:
    """Return the ids that are in both, in the order of `those`; None stands for all there are."""
    if these is None or those is None:
        return those if these is None else these
    known = set(these)
    return tuple(each for each in those if each in known)


def narrowed(rules: Rules, category: str | None) -> Rules:
    """Return rules that leave only items of a category, or of any of several with commas between, of those
    that their filter leaves.
    """
    if category is None:
        return rules
    # One may have a comma in its name.
    names = dict.fromkeys(name for text in (category, *category.split(",")) for name in category_names(text))
    return replace(rules, filter=Filter(must=(TextMatch("categories", tuple(names)), rules.filter)))


def parse_rules(fields: RuleFields, types: Types) -> Rules:
    """Return the rules that `fields` say; `types`: of the attributes of items.

    Raises `invalid_rule`, whose field is the pointer of what is wrong, `UnknownAttribute` among them.
    """
    candidates, order, seen = fields.candidate_items, fields.order, fields.exclude_seen
    return Rules(
        filter=NO_FILTER if fields.filter is None else parse_filter(fields.filter, types, "/filter"),
        exclude_items=_ids(fields.exclude_items or (), "/exclude_items"),
        candidate_items=None if candidates is None else _ids(candidates, "/candidate_items"),
        boosts=tuple(_boosts(fields.boosts or (), types)),
        diversity=_trade_off(fields.diversity),
        per_category=_cap(fields.per_category),
        pinned=tuple(_pinned(fields.pinned or ())),
        order=None if order is None else _one_of(order, ORDERS, "/order"),
        n=_within(fields.n, 1, MAX_N, "/n"),
        exclude_seen=tuple(seen) if isinstance(seen, list) else seen is not False,
        explore=_one_of(fields.explore or "none", EXPLORE, "/explore"),
        recency=_within(fields.recency, 0, MAX_RECENCY, "/recency"),
        impressions=fields.impressions,
        include=_include(fields.include or (), types),
    )


def _within(value: N | None, low: float, high: float, pointer: str) -> N | None:
    if value is not None and not low <= value <= high:
        raise refused(pointer, f"must be from {low:g} to {high:g}")
    return value


def _one_of(text: str, options: Sequence[C], pointer: str) -> C:
    for option in options:
        if option == text:
            return option
    raise refused(pointer, f"must be one of {', '.join(options)}")


def _ids(values: Sequence[Id], pointer: str) -> tuple[bytes, ...]:
    if len(values) > MAX_IDS:
        raise refused(pointer, f"may have {MAX_IDS} ids")
    return tuple(body_ids(values, pointer))


def _boosts(boosts: Sequence[Boost], types: Types) -> Iterator[tuple[float, Filter]]:
    if len(boosts) > MAX_BOOSTS:
        raise refused("/boosts", f"there may be {MAX_BOOSTS} boosts")
    for place, boost in enumerate(boosts):
        pointer = pointer_to("/boosts", place)
        _within(boost.multiply, LEAST_FACTOR, MOST_FACTOR, f"{pointer}/multiply")
        yield boost.multiply, parse_filter(boost.filter, types, f"{pointer}/filter")


def _trade_off(diversity: Diversity | None) -> float | None:
    trade_off = None if diversity is None else _within(diversity.trade_off, 0, 1, "/diversity/lambda")
    # At 1 it is the order of the scores: nothing is to be compared.
    return None if trade_off == 1 else trade_off


def _include(names: Sequence[str], types: Types) -> tuple[str, ...]:
    """Return the names of parts; raises `invalid_rule`, for an attribute that there is not
    `UnknownAttribute`.
    """
    for name in names:
        attribute = name.removeprefix(ATTRIBUTE_OF)
        if name in INCLUDED:
            continue
        if attribute == name:
            raise refused(
                "/include", f"{name[:MAX_NAME]} is none of {', '.join(INCLUDED)}, {ATTRIBUTE_OF}NAME"
            )
        if attribute not in types:
            detail = f"/include: no item has an attribute {attribute[:MAX_NAME]}"
            raise UnknownAttribute("invalid_rule", detail, field="/include")
    return tuple(dict.fromkeys(names))


def _cap(per_category: int | None) -> int | None:
    if per_category is not None and per_category < 1:
        raise refused("/per_category", "must be 1 or more")
    return per_category


def _pinned(pinned: Sequence[Pin]) -> Iterator[tuple[int, bytes]]:
    if len(pinned) > MAX_PINNED:
        raise refused("/pinned", f"{MAX_PINNED} items may be pinned")
    item_ids = body_ids([pin.item_id for pin in pinned], "/pinned/item_id")
    positions, items = set[int](), set[bytes]()
    for place, (pin, item_id) in enumerate(zip(pinned, item_ids, strict=True)):
        pointer = pointer_to("/pinned", place)
        if not 1 <= pin.position <= MAX_POSITION or pin.position in positions:
            raise refused(f"{pointer}/position", f"must be from 1 to {MAX_POSITION}, each once")
        if item_id in items:
            raise refused(f"{pointer}/item_id", "is pinned twice")
        # Two items at one place, or one item at two, are a slip of an editor.
        positions.add(pin.position)
        items.add(item_id)
        yield pin.position, item_id
