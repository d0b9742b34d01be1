"""A list under rules is that of a slow search through all items."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factors import Bools, Float32s, Int64s
from featurestore.catalogue.item import CatalogueItem
from service.http.problems import Problem
from service.rules.columns import Columns
from service.rules.filters import Filter, mask_of
from service.rules.listing import Applied, Ranking, RuledList, Scored, apply
from service.rules.request import (
    MAX_BOOSTS,
    MAX_IDS,
    MAX_PINNED,
    Boost,
    Diversity,
    Pin,
    RuleFields,
    Rules,
    merged,
    narrowed,
    parse_rules,
)
from tests.unit.service.rules_world import FILMS, TYPES, columns_of

ROWS = {film.item_id.encode(): row for row, film in enumerate(FILMS)}


@dataclass
class World:
    """Items with scores, most of them more than there are in the catalogue."""

    scores: list[float]
    columns: Columns
    floor: float = 0.0
    asked: int = 0
    masks: list[Bools] = field(default_factory=list)

    def ranking(self) -> Ranking:
        async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
            self.asked += 1
            self.masks += [] if allowed is None else [allowed]
            rows = [row for row in range(len(self.scores)) if allowed is None or allowed[row]]
            rows = [row for row in rows if row not in set(exclude.tolist())]
            rows = sorted(rows, key=lambda row: (-self.scores[row], row))[:n]
            scores = np.array([self.scores[row] for row in rows])
            return Scored(np.array(rows, dtype=np.int64), scores, np.full(len(rows), np.nan), scores)

        async def vectors(rows: Int64s) -> Float32s:
            return np.array([[1.0, row % 3, row % 2] for row in rows.tolist()], dtype=np.float32).reshape(
                -1, 3
            )

        return Ranking(top, vectors, self.floor)

    def applied(self, **changes: Any) -> Applied:
        given: dict[str, Any] = {
            "n_items": len(self.scores),
            "allowed": None,
            "exclude": np.zeros(0, dtype=np.int64),
            "boosts": [],
            "pinned": {},
            "trade_off": None,
            "cap": None,
            **changes,
        }
        return Applied(**given)

    async def list(self, wanted: int, **changes: Any) -> list[int]:
        made = RuledList(self.applied(**changes), self.ranking(), self.columns)
        found = await made.first(wanted)
        return [int(row) for row in found.rows]


def slow(world: World, wanted: int, applied: Applied, categories: list[tuple[str, ...]]) -> list[int]:
    """The list by its definition: all items in the order of their boosted scores, greedily under the cap."""

    def boosted(row: int) -> float:
        factor = np.prod([factor for factor, mask in applied.boosts if mask[row]])
        return world.floor + float(factor) * (world.scores[row] - world.floor)

    out = {*applied.exclude.tolist(), *applied.pinned.values()}
    rows = [row for row in range(len(world.scores)) if applied.allowed is None or applied.allowed[row]]
    rows = sorted((row for row in rows if row not in out), key=lambda row: (-boosted(row), row))
    chosen: list[int] = []
    for row in rows:
        # What is pinned counts, wherever it stands.
        held = [*chosen, *applied.pinned.values()]
        counts = [sum(name in categories[each] for each in held) for name in categories[row]]
        if applied.cap is None or all(count < applied.cap for count in counts):
            chosen.append(row)
    listed: list[int] = []
    for position in range(1, wanted + 1):
        if position in applied.pinned:
            listed.append(applied.pinned[position])
        elif chosen:
            listed.append(chosen.pop(0))
    return listed


@given(st.data())
@settings(max_examples=150, deadline=None)
async def test_a_list_is_that_of_a_search_through_all_items(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300))
    names = data.draw(st.lists(st.lists(st.sampled_from("abcde"), max_size=2, unique=True), min_size=1))
    categories = [tuple(each) for each in itertools.islice(itertools.cycle(names), n)]
    # Different scores: boosts make no ties, whose order a slow search would decide by rounding.
    scores = (np.random.default_rng(data.draw(st.integers(0, 9))).permutation(n) + 1.37).tolist()
    columns = columns_of([CatalogueItem("", categories=list(each)) for each in categories])
    world = World(scores, columns, data.draw(st.sampled_from([0.0, 1.0])))
    masks = st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random(n) < 0.6)
    boosts = data.draw(st.lists(st.tuples(st.sampled_from([0.1, 0.7, 3.1]), masks), max_size=3))
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=4, unique=True))
    applied = world.applied(
        allowed=data.draw(st.none() | masks),
        exclude=np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), dtype=np.int64),
        boosts=boosts,
        pinned={2 * number + 1: row for number, row in enumerate(rows)},
        cap=data.draw(st.none() | st.integers(1, 3)),
    )
    wanted = data.draw(st.integers(8, 40))
    found = await RuledList(applied, world.ranking(), columns).first(wanted)
    expected = slow(world, wanted, applied, categories)
    assert found.rows.tolist()[: len(expected)] == expected


async def test_few_rankings_fill_a_list_however_categories_lie() -> None:
    # Each category has three hundred items side by side, so that each ranking of so many opens one more.
    items = [CatalogueItem("", categories=[str(row // 300)]) for row in range(30_000)]
    world = World([float(30_000 - row) for row in range(30_000)], columns_of(items))
    firsts = list(range(0, 30_000, 300))
    assert await world.list(40, cap=1) == firsts[:40]
    assert world.asked <= 4
    assert await world.list(200, cap=1) == firsts
    world.asked = 0
    diverse = await world.list(40, cap=1, trade_off=0.5)
    assert sorted(row // 300 for row in diverse) == list(range(40))
    assert world.asked <= 8


@given(st.data())
@settings(max_examples=50, deadline=None)
async def test_a_diverse_list_under_a_cap_is_as_long_as_it_can_be(data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.lists(st.sampled_from("abc"), max_size=3, unique=True), min_size=1, max_size=150)
    )
    columns = columns_of([CatalogueItem("", categories=each) for each in names])
    world, cap = World([float(len(names) - row) for row in range(len(names))], columns), 2
    wanted = data.draw(st.integers(1, 12))
    found = await world.list(wanted, cap=cap, trade_off=0.3)
    counts = Counter(name for row in found for name in names[row])
    assert len(set(found)) == len(found) <= wanted
    assert max(counts.values(), default=0) <= cap
    if len(found) < wanted:
        # Whatever is not in it has a category that is full.
        rest = set(range(len(names))) - set(found)
        assert all(any(counts[name] == cap for name in names[row]) for row in rest)


async def test_a_boost_brings_up_what_no_list_of_candidates_has() -> None:
    world = World([float(2000 - row) for row in range(1003)], Columns())
    last = np.arange(1003) == 1002
    assert await world.list(2, boosts=[(3.0, last)]) == [1002, 0]
    made = RuledList(world.applied(boosts=[(3.0, last)]), world.ranking(), Columns())
    found = await made.first(2)
    assert (found.scores.tolist(), found.rating.tolist()) == ([2994.0, 2000.0], [998.0, 2000.0])


@given(st.data())
@settings(max_examples=30, deadline=None)
async def test_pages_of_a_diverse_list_join(data: st.DataObject) -> None:
    n, rng = 600, np.random.default_rng(data.draw(st.integers(0, 99)))
    items = [CatalogueItem("", categories=[str(each)]) for each in rng.integers(0, 80, n)]
    world = World(rng.uniform(0.0, 9.0, n).tolist(), columns_of(items))
    pinned = dict(zip((2, 7, 55), rng.permutation(n).tolist(), strict=False))
    rules: dict[str, Any] = {
        "trade_off": data.draw(st.sampled_from([0.1, 0.6])),
        "cap": data.draw(st.sampled_from([None, 1, 3])),
        "pinned": data.draw(st.sampled_from([{}, pinned])),
    }
    longest = await world.list(260, **rules)
    assert len(longest) == len(set(longest))
    assert len(longest) == 260 or rules["cap"] is not None
    for wanted in (1, 10, 20, 49, 50, 51, 60, 130):
        # Behind the end of a list stands what is pinned farther on.
        if wanted <= len(longest) and max(rules["pinned"], default=0) <= len(longest):
            assert await world.list(wanted, **rules) == longest[:wanted]


async def test_what_is_pinned_counts_for_caps_and_diversity() -> None:
    items = [CatalogueItem("", categories=[name]) for name in "aabbcc"]
    world = World([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], columns_of(items))
    # Wherever it stands: a page knows of what the next one has.
    for position in (1, 3):
        found = await world.list(3, cap=1, pinned={position: 5})
        assert found[position - 1] == 5
        assert [row for row in found if row != 5] == [0, 2]
    assert await world.list(3, cap=1, pinned={9: 5}) == [0, 2]
    # More than the cap are shown where an editor wants them, and no other one.
    assert await world.list(4, cap=1, pinned={1: 0, 2: 1}) == [0, 1, 2, 4]
    # Rows that differ by six are alike, and the best is as one that is pinned.
    plain = World([9.0, 8.9, *[1.0] * 4, 8.8], Columns())
    assert (await plain.list(1, trade_off=0.5))[0] == 0
    assert (await plain.list(2, trade_off=0.5, pinned={1: 6}))[1] == 1


async def test_rules_become_rows() -> None:
    columns = columns_of(FILMS)
    fields = RuleFields(
        filter={"must": {"key": "country", "match": {"value": "us"}}},
        exclude_items=["heat", "gone"],
        candidate_items=["alien", "heat", 7],
        boosts=[Boost({"must": [{"is_empty": {"key": "tags"}}]}, 2.0)],
        pinned=[Pin("solaris", 1), Pin("nothing", 2), Pin("heat", 3), Pin("gone", 4)],
        per_category=2,
        diversity=Diversity(1.0),
        order="rating",
    )
    rules = narrowed(parse_rules(fields, TYPES), "horror")
    assert set(rules.ids()) == {b"heat", b"gone", b"alien", b"7", b"solaris", b"nothing"}
    assert (rules.cap, rules.trade_off, rules.order) == (2, None, "rating")

    async def mask(wanted: Filter) -> Bools:
        return mask_of(wanted, columns, len(FILMS), ROWS)

    shown = np.array([film.item_id != "nothing" for film in FILMS])
    applied = await apply(
        rules,
        ROWS,
        mask,
        np.logical_and,
        n_items=len(FILMS),
        shown=shown,
        exclude=np.array([0], dtype=np.int64),
    )
    assert applied.allowed is not None
    assert np.flatnonzero(applied.allowed).tolist() == [1]
    assert applied.exclude.tolist() == [0, 4]
    assert applied.boosts[0][1].tolist() == [False, True, True, True, False]
    # Not what is hidden, excluded or unknown.
    assert applied.pinned == {1: 0}
    assert not applied.empty


def test_every_field_of_a_call_takes_the_place_of_its_part() -> None:
    values: dict[str, Any] = {
        "filter": {"must_not": [{"has_id": ["b"]}]},
        "exclude_items": ["b"],
        "candidate_items": ["b"],
        "boosts": [Boost({}, 2.0)],
        "diversity": Diversity(0.1),
        "per_category": 3,
        "pinned": [Pin("b", 1)],
        "order": "rating",
        "impressions": True,
    }
    assert set(values) == set(RuleFields.__struct_fields__)
    whole = RuleFields(**values)
    for name, value in values.items():
        fields = RuleFields(**{name: value})
        call = parse_rules(fields, {})
        alone, over = merged(call, fields, Rules()), merged(call, fields, parse_rules(whole, {}))
        assert alone == call
        assert over == parse_rules(whole, {})
        # Rules that record what they show list as those that do not: that is left out of their comparison.
        assert (call == Rules()) == alone.impressions == (name == "impressions")
        assert over.impressions


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (RuleFields(filter=3), "/filter"),
        (RuleFields(boosts=[Boost({}, 2.0), Boost({}, 11.0)]), "/boosts/1/multiply"),
        (RuleFields(boosts=[Boost({}, 0.0)]), "/boosts/0/multiply"),
        (RuleFields(boosts=[Boost({"must": 1}, 2.0)]), "/boosts/0/filter/must"),
        (RuleFields(boosts=[Boost({}, 2.0)] * (MAX_BOOSTS + 1)), "/boosts"),
        (RuleFields(diversity=Diversity(1.1)), "/diversity/lambda"),
        (RuleFields(per_category=0), "/per_category"),
        (RuleFields(pinned=[Pin("a", 0)]), "/pinned/0/position"),
        (RuleFields(pinned=[Pin("a", 1), Pin("b", 1)]), "/pinned/1/position"),
        (RuleFields(pinned=[Pin("a", 1), Pin("a", 2)]), "/pinned/1/item_id"),
        (RuleFields(pinned=[Pin("a", 1)] * (MAX_PINNED + 1)), "/pinned"),
        (RuleFields(exclude_items=["a"] * (MAX_IDS + 1)), "/exclude_items"),
        (RuleFields(order="best"), "/order"),
    ],
)
def test_rules_that_are_wrong_are_named(fields: RuleFields, field: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_rules(fields, TYPES)
    assert (refused.value.code, refused.value.field) == ("invalid_rule", field)
