"""The index: what it finds, what it leaves to the exact product, and its bytes."""

import numpy as np
import pytest

from factors import (
    Index,
    ModelUnreadable,
    Ranker,
    build_index,
    index_from_bytes,
    index_to_bytes,
    posterior_of,
)
from factors.model.layout import item_layout
from tests.support.factories import make_items, make_model

MODEL = make_model()
COUNT = 6_000


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Items in groups of like ones, and users."""
    rng = np.random.default_rng(5)
    items = np.repeat(make_items(MODEL, 1), COUNT, axis=0)
    layout = item_layout(MODEL)
    groups = rng.normal(0, 1, (60, layout.dim))
    items[:, layout.mean] = groups[rng.integers(0, 60, COUNT)] + rng.normal(0, 0.15, (COUNT, layout.dim))
    users = np.zeros((300, MODEL.user_width), dtype=np.float32)
    users[:, layout.mean] = rng.normal(0, 1, (300, layout.dim))
    return items, users


@pytest.fixture(scope="module")
def index(tables: tuple[np.ndarray, np.ndarray]) -> Index:
    items, users = tables
    built = build_index(MODEL, items, users, np.random.default_rng(1), least_items=100)
    assert built is not None
    return built


def test_searches_find_what_was_measured(tables: tuple[np.ndarray, np.ndarray], index: Index) -> None:
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items, index)
    assert ranker.multiplications(10) < 0.25 * ranker.multiplications()
    nothing = [np.zeros(0, dtype=np.int64)] * len(users)
    exact, found = ranker.top(users, 10, nothing, exact=True), ranker.top(users, 10, nothing)
    hits = [len(np.intersect1d(a.item_rows, b.item_rows)) for a, b in zip(exact, found, strict=True)]
    assert np.mean(hits) / 10 >= 0.93
    assert index.recall >= 0.95
    without = Ranker(posterior_of(MODEL), items).top(users, 10, nothing)
    for left, right in zip(exact, without, strict=True):
        np.testing.assert_array_equal(left.item_rows, right.item_rows)


def test_what_is_excluded_is_not_found(tables: tuple[np.ndarray, np.ndarray], index: Index) -> None:
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items, index)
    nothing = np.zeros(0, dtype=np.int64)
    for user in users[:20]:
        first = ranker.top(user[None], 20, [nothing])[0].item_rows
        then = ranker.top(user[None], 10, [first[:15]])[0].item_rows
        assert len(then) == 10
        assert not np.intersect1d(first[:15], then).size
    everything_but_three = np.arange(3, COUNT)
    rest = ranker.top(users[:1], 10, [everything_but_three])[0].item_rows
    assert sorted(rest.tolist()) == [0, 1, 2]


def test_deep_rankings_are_exact(tables: tuple[np.ndarray, np.ndarray], index: Index) -> None:
    items, users = tables
    nothing = [np.zeros(0, dtype=np.int64)]
    found = Ranker(posterior_of(MODEL), items, index).top(users[:1], 2_000, nothing)[0]
    exact = Ranker(posterior_of(MODEL), items).top(users[:1], 2_000, nothing)[0]
    np.testing.assert_array_equal(found.item_rows, exact.item_rows)


def test_items_that_are_new_or_moved_are_found(tables: tuple[np.ndarray, np.ndarray], index: Index) -> None:
    items, users = tables
    grown = np.concatenate([items, items[:2]])
    layout = item_layout(MODEL)
    nothing = [np.zeros(0, dtype=np.int64)]
    ranker = Ranker(posterior_of(MODEL), items, index)
    grown[COUNT, layout.bias] = 100.0
    ranker.update(np.array([COUNT]), grown)
    assert ranker.n_items == COUNT + 2
    assert ranker.top(users[:1], 3, nothing)[0].item_rows[0] == COUNT
    best = int(ranker.top(users[:1], 3, nothing)[0].item_rows[1])
    grown[best, layout.bias] = -100.0
    ranker.update(np.array([best]), grown)
    assert best not in ranker.top(users[:1], 3, nothing)[0].item_rows


def test_bytes_come_back(index: Index) -> None:
    data = index_to_bytes(index)
    back = index_from_bytes(data, MODEL, COUNT)
    np.testing.assert_array_equal(back.centres, index.centres)
    np.testing.assert_array_equal(back.lists, index.lists)
    assert (back.probes, back.recall) == (index.probes, index.recall)
    for broken in (b"", data[:-1], b"\xc0"):
        with pytest.raises(ModelUnreadable):
            index_from_bytes(broken, MODEL, COUNT)
    with pytest.raises(ModelUnreadable):
        index_from_bytes(data, MODEL, COUNT + 1)


def test_small_catalogues_and_those_without_users_have_none(tables: tuple[np.ndarray, np.ndarray]) -> None:
    items, users = tables
    rng = np.random.default_rng(2)
    assert build_index(MODEL, items, users, rng) is None
    assert build_index(MODEL, items, users[:0], rng, least_items=10) is None
