"""Filters over columns say what they say of each item, slowly; columns forget what an item was before."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.catalogue.item import CatalogueItem, Time, type_of
from service.rules.columns import Columns
from service.rules.filter_parsing import parse_filter
from service.rules.filters import mask_of


def columns_of(items: Sequence[CatalogueItem]) -> Columns:
    columns = Columns()
    columns.put(range(len(items)), items)
    return columns


def values_of(item: CatalogueItem, key: str) -> list[Any]:
    if key in ("title", "categories", "available_from", "available_until"):
        value = getattr(item, key)
        # A title that is empty is none.
        value = None if key == "title" and not value else value
    else:
        value = item.attributes.get(key)
    if value is None:
        return []
    found = value if isinstance(value, list) else [value]
    return [each.seconds if isinstance(each, Time) else each for each in found]


def passes(item: CatalogueItem, condition: dict[str, Any]) -> bool:
    match condition:
        case {"has_id": ids}:
            return item.item_id in ids
        case {"is_empty": {"key": key}}:
            return not values_of(item, key)
        case {"key": key, "match": {"value": wanted} | {"any": wanted}}:
            wanted = wanted if isinstance(wanted, list) else [wanted]
            return any(value in wanted for value in values_of(item, key))
        case {"key": key, "match": {"except": wanted}}:
            return any(value not in wanted for value in values_of(item, key))
        case {"key": key, "range": ends}:
            return any(_inside(value, ends) for value in values_of(item, key))
    should = condition.get("should", [])
    return (
        all(passes(item, each) for each in condition.get("must", []))
        and (not should or any(passes(item, each) for each in should))
        and not any(passes(item, each) for each in condition.get("must_not", []))
    )


def _inside(value: float, ends: dict[str, float]) -> bool:
    held = {
        "gt": lambda end: value > end,
        "gte": lambda end: value >= end,
        "lt": lambda end: value < end,
        "lte": lambda end: value <= end,
    }
    return all(held[name](end) for name, end in ends.items())


TEXT = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", ""])
NUMBER = st.sampled_from([-1.5, 0.0, 1.0, 2.0, 3.0, 1e11])
TEXTS = st.lists(TEXT, max_size=4)
VALUES: dict[str, Any] = {
    "size": NUMBER,
    "kind": TEXT,
    "tags": TEXTS,
    "since": NUMBER.map(Time),
    "sold": st.booleans(),
}
ITEM = st.builds(
    CatalogueItem,
    item_id=st.just(""),
    title=TEXT,
    categories=TEXTS,
    attributes=st.fixed_dictionaries({}, optional=VALUES),
    available_from=st.none() | NUMBER,
)
# Each attribute is there with its type, whatever else is drawn.
FIRST = CatalogueItem(
    "0", "a", ["a"], {"size": 1.0, "kind": "a", "tags": ["a"], "since": Time(1.0), "sold": True}
)


def matches(key: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    many = st.lists(value, max_size=12)
    match = st.one_of(value.map(lambda one: {"value": one}), many.map(lambda some: {"any": some}))
    match |= many.map(lambda some: {"except": some})
    return match.map(lambda found: {"key": key, "match": found})


def ranges(key: str) -> st.SearchStrategy[dict[str, Any]]:
    low = st.sampled_from(["gt", "gte"]).flatmap(lambda end: st.fixed_dictionaries({end: NUMBER}))
    high = st.sampled_from(["lt", "lte"]).flatmap(lambda end: st.fixed_dictionaries({end: NUMBER}))
    both = st.tuples(low, high).map(lambda ends: {**ends[0], **ends[1]})
    return st.one_of(low, high, both).map(lambda ends: {"key": key, "range": ends})


TYPES = {name: type_of(value) for name, value in FIRST.attributes.items()}
KEYS = st.sampled_from(["title", "categories", *VALUES])
LEAF = st.one_of(
    *(matches(key, TEXT) for key in ("title", "categories", "kind", "tags")),
    *(matches(key, NUMBER) for key in ("size", "since")),
    matches("sold", st.booleans()),
    *(ranges(key) for key in ("size", "since", "available_from")),
    KEYS.map(lambda key: {"is_empty": {"key": key}}),
    st.lists(st.integers(0, 8).map(str), max_size=3).map(lambda ids: {"has_id": ids}),
)
CLAUSES = ("must", "should", "must_not")
FILTER = st.recursive(
    st.fixed_dictionaries({}, optional=dict.fromkeys(CLAUSES, st.lists(LEAF, max_size=3))),
    lambda inner: st.fixed_dictionaries(
        {}, optional=dict.fromkeys(CLAUSES, st.lists(LEAF | inner, max_size=2))
    ),
    max_leaves=4,
)


def masked(condition: dict[str, Any], columns: Columns, n: int) -> list[bool]:
    rows = {b"%d" % row: row for row in range(9)}
    mask = mask_of(parse_filter(condition, TYPES, "/filter"), columns, n, rows)
    return [bool(passing) for passing in mask]


@given(st.lists(ITEM, max_size=8), FILTER)
def test_a_mask_says_of_rows_what_filters_do(items: list[CatalogueItem], condition: dict[str, Any]) -> None:
    named = [
        CatalogueItem(str(row), item.title, item.categories, item.attributes, False, item.available_from)
        for row, item in enumerate([FIRST, *items])
    ]
    columns = columns_of(named)
    empty = CatalogueItem("")
    n = len(named) + 1
    expected = [passes(item, condition) for item in named]
    ids_beyond = passes(CatalogueItem(str(len(named))), condition)
    assert masked(condition, columns, n) == [*expected, ids_beyond]
    assert masked(condition, columns, len(named)) == expected
    assert columns.categories.of(np.arange(n)) == [
        tuple(dict.fromkeys(item.categories)) for item in [*named, empty]
    ]
