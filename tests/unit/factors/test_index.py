"""The index and masks: what an indexed ranking finds of the exact one, which is that of a full sort; what a
mask or an exclusion leaves out is never returned; and the bytes of an index.
"""

import numpy as np
import pytest

from factors import (
    Bools,
    Index,
    Int64s,
    Ranker,
    build_index,
    posterior_of,
)
from factors.model.layout import item_layout
from tests.support.factories import make_items, make_model

MODEL = make_model()
COUNT, USERS = 4_000, 150
NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Items in groups of like ones, and users."""
    rng = np.random.default_rng(5)
    items = np.repeat(make_items(MODEL, 1), COUNT, axis=0)
    layout = item_layout(MODEL)
    groups = rng.normal(0, 1, (60, layout.dim))
    items[:, layout.mean] = groups[rng.integers(0, 60, COUNT)] + rng.normal(0, 0.15, (COUNT, layout.dim))
    users = np.zeros((USERS, MODEL.user_width), dtype=np.float32)
    users[:, layout.mean] = rng.normal(0, 1, (USERS, layout.dim))
    return items, users


@pytest.fixture(scope="module")
def index(tables: tuple[np.ndarray, np.ndarray]) -> Index:
    built = build_index(MODEL, *tables, np.random.default_rng(1), least_items=100)
    assert built is not None
    return built


def scores_of(items: np.ndarray, user: np.ndarray) -> np.ndarray:
    """The score of every item, but for what is the same for all."""
    layout = item_layout(MODEL)
    means, own = items[:, layout.mean].astype(float), user[layout.mean].astype(float)
    return np.asarray(means[:, :-1] @ own[:-1] + means[:, -1])


def assert_best(items: np.ndarray, user: np.ndarray, found: Int64s, allowed: Bools, n: int) -> None:
    """`found` are the best `n` of those that are allowed; equal ones stand in any order."""
    scores, passing = scores_of(items, user), np.flatnonzero(allowed)
    assert np.isin(found, passing).all()
    assert len(set(found.tolist())) == len(found) == min(n, len(passing))
    np.testing.assert_allclose(scores[found], np.sort(scores[passing])[::-1][:n], atol=1e-5)


@pytest.mark.parametrize("few", [0, 1 << 13], ids=["by the product", "row by row"])
@pytest.mark.parametrize("remembered", [False, True])
def test_exact_rankings_are_the_sorted_scores_of_what_is_allowed(
    tables: tuple[np.ndarray, np.ndarray],
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    *,
    few: int,
    remembered: bool,
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", few)
    items, users = tables
    rng, some = np.random.default_rng(3), users[:8]
    for share in (0.0, 0.001, 0.1, 0.9, 1.0):
        mask = rng.random(COUNT) < share
        mask.flags.writeable = not remembered
        excluded = [rng.integers(0, COUNT, 50) for _ in some]
        for each in (None, index):
            found = Ranker(posterior_of(MODEL), items, each).top(some, 12, excluded, exact=True, allowed=mask)
            for user, ranked, barred in zip(some, found, excluded, strict=True):
                passing = mask.copy()
                passing[barred] = False
                assert_best(items, user, ranked.item_rows, passing, 12)


def recall(ranker: Ranker, users: np.ndarray, allowed: Bools | None = None) -> float:
    nothing = [NOTHING] * len(users)
    exact = ranker.top(users, 10, nothing, exact=True, allowed=allowed)
    found = ranker.top(users, 10, nothing, allowed=allowed)
    assert allowed is None or all(allowed[ranked.item_rows].all() for ranked in found)
    pairs = zip(exact, found, strict=True)
    return float(np.mean([len(np.intersect1d(a.item_rows, b.item_rows)) / 10 for a, b in pairs]))


@pytest.mark.parametrize("remembered", [False, True])
def test_searches_find_nearly_all(
    tables: tuple[np.ndarray, np.ndarray], index: Index, monkeypatch: pytest.MonkeyPatch, *, remembered: bool
) -> None:
    monkeypatch.setattr("factors.serving.mean_table.FEW_ALLOWED", 0)
    items, users = tables
    ranker = Ranker(posterior_of(MODEL), items, index)
    assert ranker.multiplications(10) < 0.5 * ranker.multiplications()
    assert index.recall >= 0.9
    assert recall(ranker, users) >= 0.9
    for share in (0.05, 0.5):
        allowed = np.random.default_rng(4).random(COUNT) < share
        allowed.flags.writeable = not remembered
        assert recall(ranker, users, allowed) >= 0.9
    # A mask that goes against the taste: the half of the items that a user likes least.
    hits = []
    for user in users[:20]:
        allowed = scores_of(items, user) < np.median(scores_of(items, user))
        allowed.flags.writeable = not remembered
        hits.append(recall(ranker, user[None], allowed))
    assert np.mean(hits) >= 0.9


def test_items_that_are_new_or_moved_are_found(tables: tuple[np.ndarray, np.ndarray], index: Index) -> None:
    items, users = tables
    grown, layout = np.concatenate([items, items[:2]]), item_layout(MODEL)
    ranker = Ranker(posterior_of(MODEL), items, index)
    mask = np.ones(COUNT + 1, dtype=np.bool_)
    mask.flags.writeable = False
    assert ranker.top(users[:1], 1, [NOTHING], allowed=mask)[0].item_rows[0] < COUNT
    grown[COUNT, layout.bias] = 100.0
    ranker.update(np.array([COUNT]), grown)
    assert ranker.n_items == COUNT + 2
    # What a mask allows is not remembered past a change of the table.
    assert ranker.top(users[:1], 1, [NOTHING], allowed=mask)[0].item_rows[0] == COUNT
    first, best = ranker.top(users[:1], 3, [NOTHING])[0].item_rows[:2].tolist()
    assert first == COUNT
    grown[best, layout.bias] = -100.0
    ranker.update(np.array([best]), grown)
    assert best not in ranker.top(users[:1], 3, [NOTHING])[0].item_rows
