"""A list under rules is that of a slow search through all items."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from factors import Bools, Float32s, Int64s
from featurestore.catalogue.item import CatalogueItem
from service.rules.columns import Columns
from service.rules.listing import Applied, Ranking, RuledList, Scored
from tests.unit.service.rules_world import columns_of


@dataclass
class World:
    """Items with scores, most of them more than there are in the catalogue."""

    scores: list[float]
    columns: Columns
    floor: float = 0.0

    def ranking(self) -> Ranking:
        async def top(n: int, exclude: Int64s, allowed: Bools | None) -> Scored:
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
@settings(max_examples=60, deadline=None)
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


@given(st.data())
@settings(max_examples=10, deadline=None)
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
