"""Filters over columns say what they say of each item; columns forget what an item was before."""

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.catalogue.item import CatalogueItem, Time, type_of
from service.rules.columns import Columns
from service.rules.filter_parsing import parse_filter
from service.rules.filters import mask_of
from tests.unit.service.rules_world import columns_of, passes, values_of

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
@settings(max_examples=200, deadline=None)
def test_a_mask_says_of_each_row_what_the_filter_says_of_its_item(
    items: list[CatalogueItem], condition: dict[str, Any]
) -> None:
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


@given(st.lists(st.tuples(st.integers(0, 6), st.none() | ITEM), max_size=30), FILTER)
@settings(max_examples=150, deadline=None)
def test_columns_after_changes_are_those_of_what_is_there(
    changes: list[tuple[int, CatalogueItem | None]], condition: dict[str, Any]
) -> None:
    changed, items = Columns(), {0: FIRST}
    changed.put([0], [FIRST])
    for row, item in changes:
        if item is None:
            changed.put([row + 1], [CatalogueItem("")])
            items.pop(row + 1, None)
        else:
            changed.put([row + 1], [item])
            items[row + 1] = item
    fresh = columns_of([items.get(row, CatalogueItem("")) for row in range(8)])
    assert masked(condition, changed, 8) == masked(condition, fresh, 8)
    for key in ("title", "categories", *VALUES):
        column = changed.column(key)
        assert column is not None
        assert column.filled == sum(bool(values_of(item, key)) for item in items.values())


@given(st.lists(st.tuples(st.integers(0, 6), TEXTS), max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_text_knows_the_lists_that_it_is_in(changes: list[tuple[int, list[str]]]) -> None:
    columns, now = Columns(), dict[int, tuple[str, ...]]()
    for row, texts in changes:
        columns.put([row], [CatalogueItem("", categories=texts)])
        now[row] = tuple(dict.fromkeys(texts))
    lists = {texts for texts in now.values() if texts}
    column = columns.categories
    found = {text: [column._values[code] for code in codes] for text, codes in column._with.items()}
    assert {text: sorted(each) for text, each in found.items()} == {
        text: sorted(each for each in lists if text in each) for text in {*itertools.chain(*lists)}
    }
    for code, held in enumerate(column._values):
        assert [
            column._with[text][place] for text, place in zip(held, column._places[code], strict=True)
        ] == [code] * len(held)


def test_codes_are_given_again() -> None:
    columns = Columns()
    for number in range(10_000):
        columns.put([number % 3], [CatalogueItem("", str(number), [str(number), "all"])])
    assert len(columns.title._values) <= 5
    assert len(columns.categories._values) <= 5
    assert len(columns.categories._with) == 4


def test_an_attribute_that_no_item_has_may_change_its_type() -> None:
    columns = Columns()
    columns.put([0], [CatalogueItem("", attributes={"size": 1.0})])
    before = columns.column("size")
    columns.put([1], [CatalogueItem("", attributes={"size": "large"})])
    assert columns.column("size") is before
    assert masked({"must": {"key": "size", "match": {"except": []}}}, columns, 2) == [True, False]
    columns.put([0], [CatalogueItem("")])
    columns.put([1], [CatalogueItem("", attributes={"size": "large"})])
    after = columns.column("size")
    assert after is not None
    assert before is not None
    assert (after.kind, after.changes > before.changes) == ("text", True)
