"""Rankings of some rows alone: what a mask leaves out is never returned, and what it leaves is ranked."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from factors import Bools, Index, Ranker, build_index, posterior_of
from factors.model.layout import item_layout
from factors.serving import mean_table
from tests.support.factories import make_items, make_model

MODEL = make_model()
COUNT = 6_000
NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    items = np.repeat(make_items(MODEL, 1), COUNT, axis=0)
    layout = item_layout(MODEL)
    groups = rng.normal(0, 1, (60, layout.dim))
    items[:, layout.mean] = groups[rng.integers(0, 60, COUNT)] + rng.normal(0, 0.15, (COUNT, layout.dim))
    users = np.zeros((200, MODEL.user_width), dtype=np.float32)
    users[:, layout.mean] = rng.normal(0, 1, (200, layout.dim))
    return items, users


@pytest.fixture(scope="module")
def index(tables: tuple[np.ndarray, np.ndarray]) -> Index:
    built = build_index(MODEL, *tables, np.random.default_rng(1), least_items=100)
    assert built is not None
    return built


def by_hand(full: list[int], allowed: Bools, exclude: np.ndarray, n: int) -> list[int]:
    """The first `n` of a whole ranking that may be returned."""
    barred = set(exclude.tolist())
    return [row for row in full if row < len(allowed) and allowed[row] and row not in barred][:n]


@pytest.mark.parametrize("few", [0, 1 << 13])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("remembered", [False, True])
def test_exact_rankings_respect_a_mask(
    tables: tuple[np.ndarray, np.ndarray],
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    *,
    few: int,
    share: float,
    remembered: bool,
) -> None:
    # Both ways: row by row, and by the product with all items.
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", few)
    items, users = tables
    rng = np.random.default_rng(3)
    allowed = rng.random(COUNT) < share
    allowed.flags.writeable = not remembered
    some = users[:8]
    excluded = [rng.integers(0, COUNT, 50) for _ in some]
    for each in (None, index):
        ranker = Ranker(posterior_of(MODEL), items, each)
        full = ranker.top(some, COUNT, [NOTHING] * len(some), exact=True)
        found = ranker.top(some, 12, excluded, exact=True, allowed=allowed)
        for ranked, all_rows, barred in zip(found, full, excluded, strict=True):
            assert ranked.item_rows.tolist() == by_hand(all_rows.item_rows.tolist(), allowed, barred, 12)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("remembered", [False, True])
def test_the_index_finds_as_much_under_a_mask(
    tables: tuple[np.ndarray, np.ndarray],
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    *,
    share: float,
    remembered: bool,
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items, index)
    allowed = np.random.default_rng(4).random(COUNT) < share
    allowed.flags.writeable = not remembered
    nothing = [NOTHING] * len(users)
    exact = ranker.top(users, 10, nothing, exact=True, allowed=allowed)
    found = ranker.top(users, 10, nothing, allowed=allowed)
    hits = [len(np.intersect1d(a.item_rows, b.item_rows)) for a, b in zip(exact, found, strict=True)]
    assert np.mean(hits) / 10 >= 0.95
    assert all(allowed[ranked.item_rows].all() for ranked in found)


@pytest.mark.parametrize("remembered", [False, True])
def test_the_index_holds_where_a_mask_goes_against_the_taste(
    tables: tuple[np.ndarray, np.ndarray],
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    *,
    remembered: bool,
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items, index)
    hits = []
    for user in users[:40]:
        # The half of the items that this user likes least.
        full = ranker.top(user[None], COUNT, [NOTHING], exact=True)[0].item_rows
        allowed = np.zeros(COUNT, dtype=np.bool_)
        allowed[full[COUNT // 2 :]] = True
        allowed.flags.writeable = not remembered
        exact = ranker.top(user[None], 10, [NOTHING], exact=True, allowed=allowed)[0].item_rows
        found = ranker.top(user[None], 10, [NOTHING], allowed=allowed)[0].item_rows
        hits.append(len(np.intersect1d(exact, found)))
    assert np.mean(hits) / 10 >= 0.95


def test_rows_beyond_a_mask_are_not_allowed(tables: tuple[np.ndarray, np.ndarray]) -> None:
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items)
    allowed = np.ones(100, dtype=np.bool_)
    for ranked in (
        ranker.top(users[:1], 200, [NOTHING], allowed=allowed)[0],
        ranker.top(users[:1], 200, [NOTHING], np.random.default_rng(1), allowed=allowed)[0],
        ranker.popular(200, allowed),
    ):
        assert sorted(ranked.item_rows.tolist()) == list(range(100))
    assert ranker.similar(3, 200, allowed).item_rows.max() < 100
    none = ranker.top(users[:2], 5, [NOTHING, NOTHING], allowed=np.zeros(COUNT, dtype=np.bool_))
    assert [len(ranked.item_rows) for ranked in none] == [0, 0]


def test_masks_are_remembered_by_several_threads_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    found, none = mean_table.RememberedMasks(), np.zeros(0, dtype=np.int64)
    masks = [np.ones(1, dtype=np.bool_) for _ in range(64)]

    def put(seed: int) -> None:
        for place in np.random.default_rng(seed).integers(0, 64, 3_000).tolist():
            known = found.get(masks[place])
            assert known is None or known.mask is masks[place]
            positions = np.zeros(1_000, dtype=np.int32)
            found.put(mean_table.Allowed(masks[place], positions, 1_000, positions, none))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    assert len(found) == mean_table._REMEMBERED
    monkeypatch.setattr(mean_table, "_REMEMBERED_BYTES", 9_000)
    put(5)
    assert len(found) == 2


def test_what_a_mask_allows_is_remembered_until_the_table_has_other_rows(
    tables: tuple[np.ndarray, np.ndarray], index: Index
) -> None:
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items[: COUNT - 5], None)
    masks = [np.random.default_rng(seed).random(COUNT) < 0.1 for seed in range(40)]
    for mask in masks:
        mask[-5:] = True
        mask.flags.writeable = False
        ranker.top(users[:1], 5, [NOTHING], allowed=mask)
    assert len(ranker._state.means.remembered) == mean_table._REMEMBERED
    # Those that were used last, as filters in rotation are: none is made again.
    some = masks[-12:]
    kept = [ranker._state.means.known(mask) for mask in some]
    assert None not in kept
    for mask in (*some, masks[0], *some):
        ranker.top(users[:1], 5, [NOTHING], allowed=mask)
    assert all(a is ranker._state.means.known(mask) for a, mask in zip(kept, some, strict=True))
    ranker.update(np.zeros(0, dtype=np.int64), items)
    for mask in masks[-3:]:
        found = ranker.top(users[:1], COUNT, [NOTHING], allowed=mask)[0]
        assert sorted(found.item_rows.tolist()) == np.flatnonzero(mask).tolist()
