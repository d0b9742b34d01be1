"""Filters pass the items that they say; what is wrong in one is named by its place."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from featurestore.catalogue.item import CatalogueItem
from service.http.problems import Problem
from service.rules import masks
from service.rules.filter_parsing import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, parse_filter
from service.rules.filters import Filter, mask_of
from service.rules.masks import Masks
from tests.unit.service.rules_world import FILMS, TYPES, columns_of, passes

ROWS = {film.item_id.encode(): row for row, film in enumerate(FILMS)}
SCIFI = {"key": "categories", "match": {"value": "science fiction"}}


def passing(condition: dict[str, Any], *, n: int = len(FILMS)) -> list[str]:
    columns = columns_of(FILMS)
    mask = mask_of(parse_filter(condition, TYPES, "/filter"), columns, n, ROWS)
    assert mask.shape == (n,)
    return [FILMS[row].item_id if row < len(FILMS) else "newer" for row in np.flatnonzero(mask).tolist()]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, ["solaris", "alien", "metropolis", "nothing", "heat"]),
        ({"must": [SCIFI]}, ["solaris", "alien"]),
        # One condition may stand without its list.
        ({"must": SCIFI}, ["solaris", "alien"]),
        ({"must_not": [SCIFI]}, ["metropolis", "nothing", "heat"]),
        ({"should": []}, ["solaris", "alien", "metropolis", "nothing", "heat"]),
        ({"should": [SCIFI, {"key": "title", "match": {"value": "Heat"}}]}, ["solaris", "alien", "heat"]),
        ({"must": [SCIFI, {"key": "year", "range": {"gt": 1972}}]}, ["alien"]),
        ({"must": [{"key": "year", "range": {"gte": 1927, "lt": 1979}}]}, ["solaris", "metropolis"]),
        ({"must": [{"key": "year", "match": {"any": [1979, 1927.0]}}]}, ["alien", "metropolis"]),
        ({"must": [{"key": "colour", "match": {"value": False}}]}, ["metropolis"]),
        ({"must": [{"key": "country", "match": {"except": ["us", "fr"]}}]}, ["solaris", "metropolis"]),
        ({"must": [{"key": "tags", "match": {"except": ["slow"]}}]}, ["solaris"]),
        ({"must": [{"key": "added", "range": {"gte": "2001-09-09T01:46:40Z"}}]}, ["solaris"]),
        ({"must": [{"key": "added", "range": {"gt": "2001-09-09T01:46:40"}}]}, []),
        ({"must": [{"key": "available_from", "range": {"gt": 1e9}}]}, ["heat"]),
        ({"must": [{"is_empty": {"key": "categories"}}]}, ["metropolis", "nothing"]),
        ({"must": [{"has_id": ["alien", "gone", "heat"]}]}, ["alien", "heat"]),
        ({"must": [{"should": [SCIFI], "must_not": [{"has_id": ["alien"]}]}]}, ["solaris"]),
    ],
)
def test_a_filter_passes_what_it_says(condition: dict[str, Any], expected: list[str]) -> None:
    assert passing(condition) == expected
    if condition != {"must": SCIFI} and "2001" not in str(condition):
        assert [film.item_id for film in FILMS if passes(film, condition)] == expected


def test_items_that_the_catalogue_lacks_have_no_attributes() -> None:
    assert passing({"must_not": [SCIFI]}, n=7)[-2:] == ["newer", "newer"]
    assert passing({"must": [{"is_empty": {"key": "year"}}]}, n=7)[-2:] == ["newer", "newer"]
    assert passing({"must": [SCIFI]}, n=7) == ["solaris", "alien"]
    assert passing({"must": [SCIFI]}, n=1) == ["solaris"]


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ([], "/filter"),
        ({"most": []}, "/filter/most"),
        ({"must": 0}, "/filter/must"),
        ({"must": [3]}, "/filter/must/0"),
        ({"must": [SCIFI, {"key": "price", "match": {"value": 1}}]}, "/filter/must/1/key"),
        ({"must": [{"key": 7, "match": {"value": 1}}]}, "/filter/must/0/key"),
        ({"must": [{"match": {"value": 1}}]}, "/filter/must/0/key"),
        ({"must": [{"key": "year"}]}, "/filter/must/0"),
        ({"must": [{"key": "year", "match": {"value": 1}, "range": {"gt": 1}}]}, "/filter/must/0"),
        ({"must": [{"key": "year", "match": {}}]}, "/filter/must/0/match"),
        ({"must": [{"key": "year", "match": {"text": "1"}}]}, "/filter/must/0/match/text"),
        ({"must": [{"key": "year", "match": {"value": "1972"}}]}, "/filter/must/0/match/value"),
        ({"must": [{"key": "year", "match": {"value": True}}]}, "/filter/must/0/match/value"),
        ({"must": [{"key": "year", "match": {"any": [1, None]}}]}, "/filter/must/0/match/any/1"),
        ({"must": [{"key": "year", "match": {"any": 1}}]}, "/filter/must/0/match/any"),
        ({"must": [{"key": "year", "range": {"gt": 10**400}}]}, "/filter/must/0/range/gt"),
        ({"must": [{"key": "year", "range": {"gt": 1, "gte": 1}}]}, "/filter/must/0/range"),
        ({"must": [{"key": "year", "range": {}}]}, "/filter/must/0/range"),
        ({"must": [{"key": "country", "range": {"gt": "a"}}]}, "/filter/must/0/range"),
        ({"must": [{"key": "colour", "match": {"value": 1}}]}, "/filter/must/0/match/value"),
        ({"must": [{"key": "tags", "match": {"value": ["slow"]}}]}, "/filter/must/0/match/value"),
        ({"must": [{"key": "added", "range": {"gt": "yesterday"}}]}, "/filter/must/0/range/gt"),
        ({"must": [{"is_empty": {"key": "a/b~c"}}]}, "/filter/must/0/is_empty/key"),
        ({"must": [{"has_id": [True]}]}, "/filter/must/0/has_id/0"),
        ({"must": [{"has_id": [""]}]}, "/filter/must/0/has_id/0"),
        ({"must": [{"a/b~c": 1}]}, "/filter/must/0/a~1b~0c"),
        ({"must": [SCIFI] * (MAX_CONDITIONS + 1)}, f"/filter/must/{MAX_CONDITIONS}"),
        ({"must": [{"has_id": ["a"] * (MAX_VALUES + 1)}]}, "/filter/must/0/has_id"),
        ({"must": [{"key": "tags", "match": {"any": [""] * (MAX_VALUES + 1)}}]}, "/filter/must/0/match/any"),
    ],
)
def test_what_is_wrong_is_named(condition: Any, field: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_filter(condition, TYPES, "/filter")
    assert (refused.value.code, refused.value.field) == ("invalid_rule", field)


def test_filters_may_not_stand_too_deep() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"must": [nested(depth - 1)]} if depth > 1 else {}

    parse_filter(nested(MAX_DEPTH), {}, "/filter")
    with pytest.raises(Problem, match="deep"):
        parse_filter(nested(MAX_DEPTH + 1), {}, "/filter")
    with pytest.raises(Problem, match="deep"):
        parse_filter(nested(500), {}, "/filter")


async def test_a_mask_is_kept_until_its_column_changes() -> None:
    columns = columns_of(FILMS)
    kept = Masks(columns)
    wanted = parse_filter({"must": [SCIFI]}, TYPES, "/filter")
    first = await kept.mask(wanted, 5, {})
    assert await kept.mask(wanted, 5, {}) is first
    # Another column, and the same texts again.
    columns.put([0], [CatalogueItem("solaris", "Solyaris", list(FILMS[0].categories))])
    assert await kept.mask(wanted, 5, {}) is first
    columns.put([4], [CatalogueItem("heat", "Heat", ["science fiction"])])
    assert (await kept.mask(wanted, 5, {})).tolist() == [True, True, False, False, True]
    columns.put([1], [CatalogueItem("")])
    assert (await kept.mask(wanted, 5, {})).tolist() == [True, False, False, False, True]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = False


async def test_masks_that_are_kept_are_bounded() -> None:
    columns = columns_of(FILMS)
    kept = Masks(columns, kept_bytes=10)
    first, second, third = (
        parse_filter({"must": [{"key": "year", "range": {"gt": year}}]}, TYPES, "/filter")
        for year in (1, 2, 3)
    )
    one = await kept.mask(first, 5, {})
    two = await kept.mask(second, 5, {})
    assert await kept.mask(first, 5, {}) is one
    await kept.mask(third, 5, {})
    assert await kept.mask(first, 5, {}) is one
    assert await kept.mask(second, 5, {}) is not two


async def test_long_masks_are_made_in_a_thread_while_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks, "_QUICK", 0)
    columns, began, go_on = columns_of(FILMS), threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        began.set()
        assert go_on.wait(10)
        return mask_of(*args)

    monkeypatch.setattr(masks, "mask_of", slow)

    async def write() -> None:
        async with columns.lock.writing():
            columns.put([3], [CatalogueItem("nothing", "Something", ["science fiction"])])

    asked = asyncio.create_task(Masks(columns).mask(parse_filter({"must": SCIFI}, TYPES, ""), 5, {}))
    await asyncio.to_thread(began.wait)
    written = asyncio.create_task(write())
    await asyncio.sleep(0)
    assert not written.done()
    go_on.set()
    assert (await asked).tolist() == [True, True, False, False, False]
    await written
    assert (await Masks(columns).mask(Filter(), 5, {})).all()
