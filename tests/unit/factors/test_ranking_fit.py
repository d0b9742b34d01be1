"""The fit of a ranking head: half-steps, neighbours, held-out lists and choices against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from factors import Float64s, Ratings, fit_ranking
from factors.inference.compiled import ranking_kernels
from factors.inference.compiled.least_squares import solve_events
from factors.inference.histories import Compressed, compress_pairs
from factors.ranking import fit as ranking_fit
from factors.ranking import half_steps, regressions
from factors.ranking.half_steps import Events, Prior, solve_rows
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import choices_of
from factors.ranking.selection import lists, search
from tests.unit.factors.factors_world import ratings, ratings_of

N_USERS, N_ITEMS = 40, 30
MANY_USERS, MANY_ITEMS = 100, 120


def by_user(of: Ratings, n_users: int = N_USERS) -> Compressed:
    return compress_pairs(of.user_row, of.item_row, of.value, of.time, n_users)


def clusters(seed: int) -> Ratings:
    """Users who choose items of one of six kinds, some items three times as often, which they rate high."""
    rng, kinds = np.random.default_rng(seed), np.arange(MANY_ITEMS).reshape(-1, 6).T
    chance = np.tile([3.0, 1.0], MANY_ITEMS // 12) / (MANY_ITEMS // 3)
    each = [rng.choice(kinds[rng.integers(6)], 16, replace=False, p=chance) for _ in range(MANY_USERS)]
    user, item = np.repeat(np.arange(MANY_USERS), 16), np.concatenate(each)
    value = np.where(item // 6 % 2 == 0, 5.0, 1.0)
    return ratings(user, item, value, 1e9 + 86_400.0 * rng.permutation(len(item)))


@pytest.mark.parametrize("kind", ["python", "compiled"])
@pytest.mark.parametrize("weighted", [False, True])
# Less than whole registers, and whole ones.
@pytest.mark.parametrize("rank", [18, 64])
def test_loops_match_numpy(monkeypatch: pytest.MonkeyPatch, kind: str, rank: int, *, weighted: bool) -> None:
    rng = np.random.default_rng(6)
    counts = np.array([0, 1, 3, 40, 7, 0])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    n = int(indptr[-1])
    table = rng.normal(0.0, 0.3, (50, rank)).astype(np.float32)
    weight = rng.uniform(0.1, 3.0, n) if weighted else None
    target = rng.integers(0, 2, n).astype(np.float64) if weighted else None
    events = Events(indptr, rng.integers(0, 50, n), weight, target)
    prior = Prior(table.T @ table, rng.uniform(0.5, 2.0, 6), rng.uniform(0.5, 2.0, 6), rng.normal(size=rank))
    # Long rows are summed up piece by piece.
    monkeypatch.setattr(half_steps, "_AT_ONCE", 64)
    expected = solve_rows(events, table, prior)
    for row in range(6):
        part = slice(indptr[row], indptr[row + 1])
        each, w = table[events.other[part]].astype(np.float64), np.ones(part.stop - part.start)
        w = w if weight is None else weight[part]
        linear = prior.ridge[row] * prior.mean + (w if target is None else w * target[part]) @ each
        precision = prior.activity[row] * prior.gram + prior.ridge[row] * np.eye(rank) + (each.T * w) @ each
        np.testing.assert_allclose(expected[row], np.linalg.solve(precision, linear), rtol=1e-3, atol=1e-6)
    if kind == "python":
        monkeypatch.setattr(half_steps, "row_loops", lambda: {solve_events: solve_events})
    # What numpy solves with would not be looked at.
    monkeypatch.setattr(half_steps, "row_blocks", lambda *_: pytest.fail("numpy was asked"))
    for threads in (1, 2):
        found = solve_rows(events, table, prior, threads, compiled=True)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    # What cannot be solved is a matter of its row alone.
    prior.ridge[1] = np.nan
    found = solve_rows(events, table, prior, compiled=True)
    assert np.isnan(found[1]).all()
    rest = np.arange(6) != 1
    np.testing.assert_allclose(found[rest], expected[rest], rtol=1e-3, atol=1e-5)


def dense(term: Neighbours) -> Float64s:
    result = np.zeros((N_ITEMS, N_ITEMS))
    for j in range(N_ITEMS):
        for entry in range(term.indptr[j], term.indptr[j + 1]):
            result[j, term.item_row[entry]] += term.weight[entry]
    return result


def slow_regressions(data: Compressed, most: int, ridge: float) -> Float64s:
    """The sparse term, one item after the other, from the matrix of who chose what."""
    chosen = np.zeros((N_USERS, N_ITEMS))
    chosen[data.row, data.other] = 1.0
    weight = 1.0 / np.sqrt(data.counts + 1.0)
    weight *= data.counts.sum() / (weight * data.counts).sum()
    gram = chosen.T @ (weight[:, None] * chosen)
    result = np.zeros((N_ITEMS, N_ITEMS))
    for i in range(N_ITEMS):
        cosine = gram[i] / np.sqrt(np.maximum(gram[i, i] * np.diag(gram), 1e-12))
        cosine[i] = -1.0
        near = np.argsort(-cosine, kind="stable")[:most]
        near = near[gram[i, near] > 0]
        inner = gram[np.ix_(near, near)]
        system = inner + np.diag(ridge + np.diag(inner))
        result[near, i] = np.linalg.solve(system, gram[near, i])
    return result


LOOPS = (ranking_kernels.find_cosines, ranking_kernels.fit_neighbours)
LISTS = (ranking_kernels.add_neighbours, ranking_kernels.find_places)


@pytest.fixture(params=["python", "compiled"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(regressions, "neighbour_loops", lambda: {loop: loop for loop in LOOPS})
        monkeypatch.setattr(lists, "list_loops", lambda: {loop: loop for loop in LISTS})


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(("most", "weighted"), [(1, True), (4, True), (N_ITEMS - 1, False)])
def test_loops_fit_the_neighbours_of_numpy(most: int, *, weighted: bool) -> None:
    given = ratings_of(4)
    # Item 0 is chosen by none, and of what is weighted none is as near as another.
    data = by_user(given.take(given.item_row > 0))
    said = np.random.default_rng(2).uniform(0.0, 2.0, len(data.other)) if weighted else None
    slow, fast = (
        regressions.regressions(data, N_ITEMS, said, most=most, threads=2, compiled=compiled)
        for compiled in (False, True)
    )
    assert isinstance(fast, regressions.CompiledRegressions)
    for how in ("fit", "fit_all"):
        expected, found = (dense(getattr(each, how)(3.0)) for each in (slow, fast))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-5)
        if how == "fit" and said is None:
            assert not np.diag(found).any()
            np.testing.assert_allclose(found, slow_regressions(data, most, 3.0), rtol=2e-3, atol=5e-5)
    assert (fast.n_near <= most).all()
    assert fast.n_near[0] == 0


def test_a_refit_goes_on_from_the_head_before() -> None:
    given = clusters(3)
    most = given.take(np.arange(len(given.value) - 50))
    before = fit_ranking(most, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    after = fit_ranking(given, MANY_USERS, MANY_ITEMS + 2, rng=np.random.default_rng(2), start=before.head)
    assert choices_of(after.head.parameters) == choices_of(before.head.parameters)
    assert len(after.head.items) == MANY_ITEMS + 2
    known = after.head.items[:MANY_ITEMS]
    turned = np.linalg.norm(known - before.head.items) / np.linalg.norm(known)
    assert turned < 0.2
    # Of far fewer events than now the choices do not stand.
    few = fit_ranking(given.take(np.arange(500)), MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    more = given.take(np.arange(1_200))
    again = fit_ranking(more, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1), start=few.head)
    assert again.head.parameters.decided == 1_200


@pytest.mark.parametrize("senseless", [False, True])
def test_worse_choices_do_not_follow(monkeypatch: pytest.MonkeyPatch, *, senseless: bool) -> None:
    given = clusters(3)
    rng, later = np.random.default_rng(5), np.arange(len(given.value)) % 16 >= 10
    live = fit_ranking(given.take(~later), MANY_USERS, MANY_ITEMS, rng=rng).head
    others = replace(choices_of(live.parameters), gamma=0.0, decided=len(later))
    if senseless:
        others = replace(others, sparse_weight=0.0, ridge=1e4)
    monkeypatch.setattr(ranking_fit, "choose", lambda *_, **__: search.Chosen(others))
    new = np.flatnonzero(later)
    found = fit_ranking(given, MANY_USERS, MANY_ITEMS, rng=rng, start=live, unlearned=new)
    assert found.head.parameters.ridge == live.parameters.ridge
    assert found.head.parameters.decided == len(later)
    assert ("ranking_kept" in found.metrics) == senseless


@pytest.mark.parametrize("looked_at", [90, MANY_ITEMS])
def test_the_factors_that_a_search_found_are_those_of_its_items(
    monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    monkeypatch.setattr(search, "_MOST_ITEMS", looked_at)
    of = clusters(3)
    begin = search.choose(by_user(of, MANY_USERS), MANY_ITEMS, np.random.default_rng(1)).begin
    assert begin is not None
    (found,) = np.nonzero(begin.any(axis=1))
    most = np.argsort(-np.bincount(of.item_row, minlength=MANY_ITEMS), kind="stable")[:looked_at]
    assert set(found) <= set(most.tolist())
    assert len(found) > 0.9 * looked_at
    # Items of a kind are near each other, and not to others.
    similarity, kind = begin[found] @ begin[found].T, found % 6
    alike = kind[:, None] == kind
    assert similarity[alike].mean() > 4.0 * np.abs(similarity[~alike]).mean()


def test_recency_costs_little_of_finding_events_of_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, n_users = np.random.default_rng(4), 70
    kinds = np.arange(MANY_ITEMS).reshape(-1, 6).T
    # Users turn to another kind at the end.
    pairs = [rng.choice(6, 2, replace=False) for _ in range(n_users)]
    item = [rng.permutation(kinds[kind])[:n] for one, two in pairs for kind, n in ((one, 14), (two, 4))]
    user, n = np.repeat(np.arange(n_users), 18), 18 * n_users
    given = compress_pairs(user, np.concatenate(item), np.ones(n), np.arange(n) * np.float64(3600), n_users)
    usual = search.choose(given, MANY_ITEMS, np.random.default_rng(1)).choices
    monkeypatch.setattr(search, "_COST_OF_RECENCY", 1.0)
    any_price = search.choose(given, MANY_ITEMS, np.random.default_rng(1)).choices
    assert usual.recency_boost < any_price.recency_boost


@pytest.mark.parametrize(
    ("anytime", "graded", "latest", "power"),
    [
        # The highest graded gain, where it costs little of either.
        ([0.50, 0.52, 0.518], [0.2, 0.3, 0.4], [0.3, 0.3, 0.3], 1.0),
        ([0.50, 0.52, 0.51], [0.2, 0.3, 0.4], [0.3, 0.3, 0.3], 0.5),
        ([0.50, 0.50, 0.50], [0.2, 0.3, 0.4], [0.3, 0.29, 0.2], 0.0),
        ([0.40, 0.50], [0.2, 0.3], [0.3, 0.2], 0.0),
        ([0.50], [0.2], [0.3], 0.0),
    ],
)
def test_ratings_count_as_much_as_costs_little(
    anytime: list[float], graded: list[float], latest: list[float], power: float
) -> None:
    spread = np.array([-1e-4, 1e-4])
    # By the powers 0, 0.5 and 1.
    parts = [{k / 2: value + spread for k, value in enumerate(part)} for part in (anytime, graded, latest)]
    assert search._best_power((parts[0], parts[1]), parts[2])[0] == power
