"""An index and masks: how much of the exact ranking is found, and nothing that a mask leaves out."""

import numpy as np
import pytest

from factors import Bools, Index, Ranker, build_index, posterior_of
from factors.model.layout import item_layout
from tests.support.factories import make_items, make_model
from tests.support.waiting import some

MODEL = make_model()
COUNT, USERS = 4_000, 150
NOTHING = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray]:
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
    return some(build_index(MODEL, *tables, np.random.default_rng(1), least_items=100))


def scores_of(items: np.ndarray, user: np.ndarray) -> np.ndarray:
    layout = item_layout(MODEL)
    means, own = items[:, layout.mean].astype(float), user[layout.mean].astype(float)
    return np.asarray(means[:, :-1] @ own[:-1] + means[:, -1])


def recall(ranker: Ranker, items: np.ndarray, users: np.ndarray, allowed: Bools | None = None) -> float:
    """How much of the best ten is found; an exact ranking has the best, equal ones in any order."""
    nothing = [NOTHING] * len(users)
    exact = Ranker(posterior_of(MODEL), items).top(users, 10, nothing, allowed=allowed)
    for user, ranked in zip(users, exact, strict=True):
        scores = scores_of(items, user)
        best = np.sort(scores if allowed is None else scores[allowed])[::-1][:10]
        np.testing.assert_allclose(scores[ranked.item_rows], best, atol=1e-5)
        assert len(set(ranked.item_rows.tolist())) == 10
    found = ranker.top(users, 10, nothing, allowed=allowed)
    assert allowed is None or all(allowed[ranked.item_rows].all() for ranked in [*exact, *found])
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
    assert recall(ranker, items, users) >= 0.9
    for share in (0.05, 0.5):
        allowed = np.random.default_rng(4).random(COUNT) < share
        allowed.flags.writeable = not remembered
        assert recall(ranker, items, users, allowed) >= 0.9
    # A mask that goes against the taste: the half of the items that a user likes least.
    hits = []
    for user in users[:20]:
        allowed = scores_of(items, user) < np.median(scores_of(items, user))
        allowed.flags.writeable = not remembered
        hits.append(recall(ranker, items, user[None], allowed))
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
