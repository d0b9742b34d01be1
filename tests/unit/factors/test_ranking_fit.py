"""The fit of a ranking head: half-steps, neighbours, held-out lists and choices against slow references."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from factors import Bools, Float64s, Histories, Int64s, RankingFit, Ratings, fit_ranking
from factors.inference.compiled import ranking_kernels
from factors.inference.compiled.least_squares import solve_events
from factors.inference.histories import Compressed, compress_pairs
from factors.model.types import Scale
from factors.ranking import fit, half_steps, neighbours, regressions, training
from factors.ranking.choices import RankingChoices, choices_of
from factors.ranking.half_steps import Events, Prior, solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import CoOccurrences, Neighbours
from factors.ranking.selection import lists
from factors.ranking.selection import search as selection
from factors.ranking.selection.expected import expected_ratings
from factors.ranking.selection.held_out import HeldOut, hold_out
from factors.ranking.selection.search import _Search, choose, climb
from factors.ranking.training import fit_factors, fit_with
from tests.unit.factors.factors_world import ratings_of

N_USERS, N_ITEMS = 40, 30
MANY_USERS, MANY_ITEMS = 100, 120


def by_user(ratings: Ratings, n_users: int = N_USERS) -> Compressed:
    return compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, n_users)


def clusters(seed: int, *, drifting: bool = False) -> Ratings:
    """Users who choose items of one of six kinds; where they drift, of another one each third of their
    time. They choose an item of an even six three times as often, and rate it high.
    """
    rng = np.random.default_rng(seed)
    columns = []
    for user in range(MANY_USERS):
        kinds = rng.permutation(6)[:3] if drifting else np.full(3, rng.integers(6))
        chosen = []
        for kind in kinds:
            items = np.arange(kind, MANY_ITEMS, 6)
            chance = np.where(items // 6 % 2 == 0, 3.0, 1.0)
            chosen.append(rng.choice(items, 8, replace=False, p=chance / chance.sum()))
        items = np.unique(np.concatenate(chosen)) if not drifting else np.concatenate(chosen)
        time = 1e9 + 86_400.0 * np.arange(len(items))
        if not drifting:
            time = rng.permutation(time)
        value = np.where(items // 6 % 2 == 0, 5.0, 1.0)
        columns.append(np.stack([np.full(len(items), user), items, value, time]))
    user_row, item_row, values, times = np.concatenate(columns, axis=1)
    return Ratings(user_row.astype(np.int32), item_row.astype(np.int32), values, times)


@pytest.mark.parametrize("at_once", [1 << 22, 64])
@pytest.mark.parametrize("rank", [4, 36])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_half_step_is_the_minimiser_of_each_row(
    monkeypatch: pytest.MonkeyPatch, at_once: int, rank: int, weighted: bool
) -> None:
    # In small pieces the same: long rows are summed up piece by piece.
    monkeypatch.setattr(half_steps, "_AT_ONCE", at_once)
    rng = np.random.default_rng(5)
    data, table = by_user(ratings_of(4)), rng.normal(size=(N_ITEMS, rank))
    weight = rng.uniform(0.1, 2.0, len(data.other)) if weighted else None
    half = rng.normal(size=(rank, rank))
    activity, ridge = rng.uniform(0.5, 2.0, (2, N_USERS))
    prior = Prior(half @ half.T, activity, ridge, rng.normal(size=rank))
    found = solve_rows(Events(data.indptr, data.other, weight), table, prior, threads=2)
    for user in range(N_USERS):
        precision, linear = activity[user] * prior.gram + ridge[user] * np.eye(rank), ridge[user] * prior.mean
        for entry in range(data.indptr[user], data.indptr[user + 1]):
            y, w = table[data.other[entry]], 1.0 if weight is None else weight[entry]
            precision, linear = precision + w * np.outer(y, y), linear + w * y
        np.testing.assert_allclose(found[user], np.linalg.solve(precision, linear), rtol=1e-8)


@pytest.mark.parametrize("kind", ["python", "compiled"])
@pytest.mark.parametrize("weighted", [False, True])
# Less than whole registers, and whole ones.
@pytest.mark.parametrize("rank", [18, 33, 64])
def test_loops_solve_the_rows_of_numpy(
    monkeypatch: pytest.MonkeyPatch, kind: str, rank: int, *, weighted: bool
) -> None:
    if kind == "compiled" and find_spec("numba") is None:
        pytest.skip("numba is not installed (extra `fast`)")
    rng = np.random.default_rng(6)
    counts = np.array([0, 1, 3, 40, 7, 0])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    n = int(indptr[-1])
    table = rng.normal(0.0, 0.3, (50, rank)).astype(np.float32)
    weight = rng.uniform(0.1, 3.0, n) if weighted else None
    target = rng.integers(0, 2, n).astype(np.float64) if weighted else None
    events = Events(indptr, rng.integers(0, 50, n), weight, target)
    prior = Prior(table.T @ table, rng.uniform(0.5, 2.0, 6), rng.uniform(0.5, 2.0, 6), rng.normal(size=rank))
    expected = solve_rows(events, table, prior)
    if kind == "python":
        monkeypatch.setattr(half_steps, "row_loops", lambda: {solve_events: solve_events})
    monkeypatch.setattr(half_steps, "MANY_RATINGS", 1)
    # What numpy solves with would not be looked at.
    monkeypatch.setattr(half_steps, "row_blocks", lambda *_: pytest.fail("numpy was asked"))
    for threads in (1, 2):
        found = solve_rows(events, table, prior, threads)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    # What cannot be solved is a matter of its row alone.
    prior.ridge[1] = np.nan
    found = solve_rows(events, table, prior)
    assert np.isnan(found[1]).all()
    rest = np.arange(6) != 1
    np.testing.assert_allclose(found[rest], expected[rest], rtol=1e-3, atol=1e-5)


def loss(data: Compressed, fit: RankingFit) -> float:
    """What a fit minimises, pair by pair."""
    p, counts, item_counts = fit.head.parameters, data.counts, np.bincount(data.other, minlength=N_ITEMS)
    users, items = fit.users.astype(np.float64), fit.head.items.astype(np.float64)
    total = 0.0
    for user in range(N_USERS):
        a = (counts[user] + 1) ** p.user_power / p.user_unit
        chosen = set(data.other[data.indptr[user] : data.indptr[user + 1]].tolist())
        for item in range(N_ITEMS):
            b = (item_counts[item] + 1) ** p.item_power / p.item_unit
            score = users[user] @ items[item]
            total += p.background * a * b * score**2 + (item in chosen) * (score - 1) ** 2
        total += (
            p.ridge
            * (counts[user] + p.background * a * N_ITEMS)
            * float(((users[user] - p.user_mean) ** 2).sum())
        )
    for item in range(N_ITEMS):
        b = (item_counts[item] + 1) ** p.item_power / p.item_unit
        total += p.ridge * (item_counts[item] + p.background * b * N_USERS) * float((items[item] ** 2).sum())
    return total


def test_sweeps_lessen_the_loss() -> None:
    data = by_user(ratings_of(4))
    choices = RankingChoices(rank=5, user_power=0.3, item_power=-0.2, neighbours=5)
    losses = [
        loss(data, fit_with(data, N_ITEMS, replace(choices, sweeps=sweeps), rng=np.random.default_rng(1)))
        for sweeps in (1, 2, 4, 8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_the_grams_are_what_all_pairs_add() -> None:
    data = by_user(ratings_of(4))
    choices = RankingChoices(rank=5, user_power=0.3, item_power=-0.2)
    parameters, items = fit_factors(data, N_ITEMS, choices, rng=np.random.default_rng(1))
    counts = np.bincount(data.other, minlength=N_ITEMS)
    weight = (counts + 1.0) ** -0.2
    weight /= weight.mean()
    slow = sum(b * np.outer(y, y) for b, y in zip(weight, items.astype(np.float64), strict=True))
    np.testing.assert_allclose(parameters.user_gram, parameters.background * slow, rtol=1e-6)
    assert parameters.background * N_USERS * N_ITEMS == pytest.approx(8.0 * len(data.other))


def dense(term: Neighbours) -> Float64s:
    """`[j, i]`: what `j` in a history adds to `i`."""
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


@pytest.mark.parametrize("most", [4, N_ITEMS - 1])
def test_neighbours_are_the_regressions(most: int) -> None:
    data = by_user(ratings_of(4))
    together = CoOccurrences.of(data, N_ITEMS)
    term = together.fit(together.nearest(most), 3.0, threads=2)
    np.testing.assert_allclose(dense(term), slow_regressions(data, most, 3.0), rtol=2e-3, atol=2e-5)
    assert not np.diag(dense(term)).any()


def test_neighbours_of_many_items_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    together = CoOccurrences.of(by_user(ratings_of(4)), N_ITEMS)
    at_once = together.nearest(4)
    monkeypatch.setattr(neighbours, "_PAIRS_AT_ONCE", 7)
    np.testing.assert_array_equal(together.nearest(4), at_once)


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("levels", [2, 256])
def test_pairs_far_from_the_nearest_are_left_out_first(
    monkeypatch: pytest.MonkeyPatch, most: int, levels: int
) -> None:
    together = CoOccurrences.of(by_user(ratings_of(3)), N_ITEMS)
    expected = together.nearest(most)
    seen: list[int] = []
    nearest = neighbours._nearest_levels

    def counted(item: Int64s, cosine: Float64s, wanted: Int64s) -> Bools:
        kept = nearest(item, cosine, wanted)
        seen.append(int((~kept).sum()))
        return kept

    monkeypatch.setattr(neighbours, "_nearest_levels", counted)
    monkeypatch.setattr(neighbours, "_CROWDED", 0)
    monkeypatch.setattr(neighbours, "_LEVELS", levels)
    for one, other in zip(together.nearest(most), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum(seen) > 0 or levels == 2


def test_many_items_are_looked_up_in_the_sparse_matrix() -> None:
    together = CoOccurrences.of(by_user(ratings_of(4)), N_ITEMS)
    pairs = together.nearest(4)
    sparse = replace(together, dense=None).fit(pairs, 3.0)
    np.testing.assert_allclose(dense(sparse), dense(together.fit(pairs, 3.0)), rtol=2e-3, atol=2e-5)


def test_all_items_may_be_neighbours() -> None:
    data = by_user(ratings_of(4))
    term = CoOccurrences.of(data, N_ITEMS).fit_all(3.0)
    np.testing.assert_allclose(dense(term), slow_regressions(data, N_ITEMS - 1, 3.0), rtol=2e-3, atol=2e-5)


def test_all_items_are_neighbours_in_the_fit_where_that_was_chosen_of_those_with_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "_surely_better", lambda quality, than: quality is not than)
    ratings = clusters(3)
    # Items that are not rated yet are not among those that the choice looks at.
    how: dict[str, Any] = {"hold_out": "random", "rng": np.random.default_rng(1)}
    head = fit_ranking(ratings, MANY_USERS, MANY_ITEMS + 7, **how).head
    known = CoOccurrences.of(by_user(ratings, MANY_USERS), MANY_ITEMS + 7)
    every = known.fit_all(head.parameters.neighbour_ridge).scaled(head.parameters.sparse_weight)
    found, expected = (each.matrix().toarray() for each in (head.neighbours, every))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # All of a larger catalogue would be too many.
    monkeypatch.setattr(selection, "_ALL_NEIGHBOURS", MANY_ITEMS + 6)
    how = {"hold_out": "random", "rng": np.random.default_rng(1)}
    head = fit_ranking(ratings, MANY_USERS, MANY_ITEMS + 7, **how).head
    assert head.parameters.neighbours == RankingChoices().neighbours


LOOPS = (ranking_kernels.find_cosines, ranking_kernels.fit_neighbours)
LISTS = (ranking_kernels.add_neighbours, ranking_kernels.find_places)


@pytest.fixture(params=["python", "compiled"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of neighbours and lists, as they stand and compiled."""
    if request.param == "compiled" and find_spec("numba") is None:
        pytest.skip("numba is not installed (extra `fast`)")
    if request.param == "python":
        monkeypatch.setattr(regressions, "neighbour_loops", lambda: {loop: loop for loop in LOOPS})
        monkeypatch.setattr(lists, "list_loops", lambda: {loop: loop for loop in LISTS})


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("most", [1, 4, N_ITEMS - 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loops_fit_the_neighbours_of_numpy(most: int, *, weighted: bool) -> None:
    ratings = ratings_of(4)
    # Item 0 is chosen by none, and of what is weighted none is as near as another.
    data = by_user(ratings.take(ratings.item_row > 0))
    said = np.random.default_rng(2).uniform(0.0, 2.0, len(data.other)) if weighted else None
    if not weighted and most < N_ITEMS - 1:
        pytest.skip("of equal cosines rounding would decide")
    slow, fast = (
        regressions.regressions(data, N_ITEMS, said, most=most, threads=2, compiled=compiled)
        for compiled in (False, True)
    )
    assert isinstance(fast, regressions.CompiledRegressions)
    for how in ("fit", "fit_all"):
        expected, found = (dense(getattr(each, how)(3.0)) for each in (slow, fast))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-5)
    assert (fast.n_near <= most).all()
    assert fast.n_near[0] == 0


@pytest.mark.usefixtures("loops")
def test_of_equal_cosines_the_first_items_are_near() -> None:
    # All users choose all items.
    row, item = np.divmod(np.arange(12, dtype=np.int32), 4)
    data = by_user(Ratings(row, item, np.ones(12), np.full(12, np.nan)), 3)
    found = regressions.regressions(data, 4, None, most=2, compiled=True)
    assert isinstance(found, regressions.CompiledRegressions)
    assert found.near.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_cosines_of_very_many_items_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regressions, "_BYTES", 0)
    monkeypatch.setattr(regressions, "_BYTES_AN_EVENT", 1)
    found = regressions.regressions(by_user(ratings_of(4)), N_ITEMS, None, most=3, compiled=True)
    assert isinstance(found, regressions.NumpyRegressions)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_loops_make_the_lists_of_numpy(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(lists, "_SCORES", at_once)
    data = by_user(clusters(3), MANY_USERS)
    held, _ = hold_out(data, "latest", np.random.default_rng(1))
    sets = HeldOut.of(data, MANY_ITEMS, held, np.random.default_rng(1))
    slow, fast = (lists.Lists(sets, MANY_ITEMS, 2, compiled) for compiled in (False, True))
    together = CoOccurrences.of(data, MANY_ITEMS)
    term = together.fit(together.nearest(9), 3.0)
    said = np.random.default_rng(1).random(len(slow.later)).astype(np.float32)
    rows = slice(2, 7)
    np.testing.assert_allclose(fast.sparse(term, said, rows), slow.sparse(term, said, rows), atol=1e-6)
    # Many scores are equal.
    scores = np.random.default_rng(1).integers(0, 30, (len(sets.users), MANY_ITEMS)).astype(np.float32)
    kinds = [each.places(lambda rows: (scores[rows], 2.0 * scores[rows])) for each in (slow, fast)]
    for one, other in zip(*kinds, strict=True):
        np.testing.assert_array_equal(sets.gained(one), sets.gained(other))
        np.testing.assert_array_equal(sets.gained(one), sets.quality(scores.copy()))


def test_what_is_compiled_chooses_what_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("numba") is None:
        pytest.skip("numba is not installed (extra `fast`)")
    ratings = clusters(3, drifting=True)
    slow = fit_ranking(ratings, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    for module in (half_steps, selection, training):
        monkeypatch.setattr(module, "MANY_RATINGS", 1)
    fast = fit_ranking(ratings, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1), threads=2)
    assert choices_of(fast.head.parameters) == choices_of(slow.head.parameters)
    np.testing.assert_allclose(fast.users, slow.users, atol=1e-2)


def test_noise_is_the_error_of_all_pairs() -> None:
    data = by_user(ratings_of(4))
    choices = RankingChoices(rank=5, user_power=0.3, item_power=-0.2, neighbours=5)
    found = fit_with(data, N_ITEMS, choices, rng=np.random.default_rng(1))
    p, item_counts = found.head.parameters, np.bincount(data.other, minlength=N_ITEMS)
    scores = found.users.astype(np.float64) @ found.head.items.astype(np.float64).T
    weight = p.background * np.outer(p.activity("user", data.counts), p.activity("item", item_counts))
    chosen = np.zeros(scores.shape)
    chosen[data.row, data.other] = 1.0
    errors = (chosen * (scores - 1.0) ** 2 + weight * scores**2).sum()
    assert p.noise == pytest.approx(errors / (chosen + weight).sum(), rel=1e-3)


def test_quality_is_ndcg_of_what_is_not_in_the_history() -> None:
    data = by_user(
        Ratings(
            np.array([0, 0, 0, 1, 1], np.int32),
            np.array([0, 1, 2, 1, 3], np.int32),
            np.array([3.0, 5.0, 1.0, 5.0, 4.0]),
            np.full(5, np.nan),
        ),
        2,
    )
    # Of user 0 the items 1 and 2 are wanted, of user 1 none.
    held = HeldOut.of(data, 4, np.array([False, True, True, False, False]), np.random.default_rng(1))
    assert held.users.tolist() == [0]
    scores = np.array([[9.0, 1.0, 3.0, 2.0]], dtype=np.float32)
    # Item 0 is seen; item 2 is first, item 1 third.
    expected = (1.0 + 0.5) / (1.0 + 1.0 / np.log2(3.0))
    assert held.quality(scores.copy())[0] == pytest.approx(expected)
    # Graded: item 1 has the highest rating of all, item 2 the lowest, which gains nothing.
    assert held.quality(scores.copy(), held.gain)[0] == pytest.approx(0.5)
    assert held.quality(scores.copy(), depth=1)[0] == pytest.approx(1.0)
    # A list that does not decide wins nothing by it.
    assert held.quality(np.zeros((1, 4), np.float32), depth=2)[0] == 0.0


def test_what_is_held_out_is_the_latest_where_times_tell() -> None:
    data = by_user(clusters(1), MANY_USERS)
    held, how = hold_out(data, "latest", np.random.default_rng(1))
    assert how == "latest"
    for user in range(MANY_USERS):
        own = slice(data.indptr[user], data.indptr[user + 1])
        assert data.time[own][held[own]].min() > data.time[own][~held[own]].max()
    for times in (np.full(len(data.time), np.nan), np.full(len(data.time), 1e9)):
        held, how = hold_out(replace(data, time=times), "latest", np.random.default_rng(1))
        assert how == "random"
        assert 0 < held.sum() < 0.2 * len(held)


def test_choices_look_at_some_users_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = by_user(clusters(2), MANY_USERS)
    monkeypatch.setattr(selection, "_MOST_EVENTS", 1_200)
    monkeypatch.setattr(selection, "_MOST_ITEMS", 90)
    found, figures = choose(data, MANY_ITEMS, "random", np.random.default_rng(1))
    assert found.decided == len(data.other)
    assert figures["ranking_ndcg"] > 0.0
    # None of the users fits: nothing is chosen.
    monkeypatch.setattr(selection, "_MOST_EVENTS", 3)
    assert choose(data, MANY_ITEMS, "random", np.random.default_rng(1)) == (RankingChoices(), {})


@pytest.mark.slow
def test_recency_is_chosen_where_users_move_on_and_off_elsewhere() -> None:
    still, moving = by_user(clusters(2), MANY_USERS), by_user(clusters(2, drifting=True), MANY_USERS)
    assert choose(still, MANY_ITEMS, "latest", np.random.default_rng(1))[0].recency_boost == 0.0
    assert choose(moving, MANY_ITEMS, "latest", np.random.default_rng(1))[0].recency_boost > 0.0
    # What is asked for at random is not the latest.
    assert choose(moving, MANY_ITEMS, "random", np.random.default_rng(1))[0].recency_boost == 0.0


@pytest.mark.parametrize("boost", [0.0, 1.0, 8.0])
def test_lists_of_a_choice_are_those_of_the_head(boost: float) -> None:
    data = by_user(clusters(3), 200)
    held, _ = hold_out(data, "latest", np.random.default_rng(1))
    sets = HeldOut.of(data, MANY_ITEMS, held, np.random.default_rng(1))
    search = _Search(sets, MANY_ITEMS, 1, RankingChoices())
    choices = search.settings(replace(RankingChoices(), decided=1.0))
    search.recency(choices)
    choices = replace(choices, recency_span=5.0, recency_boost=boost)
    parameters, items = search._best()
    parameters = replace(parameters, recency_span=5.0, recency_boost=boost)
    head = RankingHead(parameters, items, search.neighbours.scaled(choices.sparse_weight))
    expected = head.relevance(sets.histories)
    relevance = search._relevance(choices, search._best())
    for rows in (slice(0, 3), slice(3, len(sets.users))):
        np.testing.assert_allclose(relevance(rows), expected[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ratings_count_where_that_costs_little() -> None:
    ratings = clusters(3)
    found = fit_ranking(ratings, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    assert found.head.parameters.gamma > 0.0
    alike = replace(ratings, value=np.full(len(ratings.value), 4.0))
    assert (
        fit_ranking(alike, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1)).head.parameters.gamma == 0.0
    )


def test_expected_ratings_are_those_of_the_ratings_learned() -> None:
    data = by_user(clusters(3), MANY_USERS)
    expected = expected_ratings(data, MANY_ITEMS, np.arange(5), Scale(1.0, 5.0), np.random.default_rng(1))
    assert expected is not None
    rating = expected(slice(0, 5))
    np.testing.assert_allclose(expected(slice(2, 4)), rating[2:4], rtol=1e-5)
    liked = np.arange(MANY_ITEMS) // 6 % 2 == 0
    assert rating[:, liked].min() > 4.0
    assert rating[:, ~liked].max() < 2.0


def test_a_refit_goes_on_from_the_head_before() -> None:
    ratings = clusters(3)
    most = ratings.take(np.arange(len(ratings.value) - 50))
    before = fit_ranking(most, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    after = fit_ranking(ratings, MANY_USERS, MANY_ITEMS + 2, rng=np.random.default_rng(2), start=before.head)
    assert choices_of(after.head.parameters) == choices_of(before.head.parameters)
    assert len(after.head.items) == MANY_ITEMS + 2
    known = after.head.items[:MANY_ITEMS]
    turned = np.linalg.norm(known - before.head.items) / np.linalg.norm(known)
    assert turned < 0.2
    # Of far fewer events than now the choices do not stand.
    few = fit_ranking(ratings.take(np.arange(500)), MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    again = fit_ranking(ratings, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1), start=few.head)
    assert again.head.parameters.decided == len(ratings.value)


def test_few_new_events_take_fewer_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    ratings, asked = clusters(3), []
    n = round(0.75 * len(ratings.value))
    before = fit_ranking(ratings.take(np.arange(n)), MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    assert before.head.parameters.events == pytest.approx(n)
    plain = training.fit_with

    def noted(data: Compressed, n_items: int, settings: RankingChoices, **how: Any) -> RankingFit:
        asked.append(settings.sweeps)
        return plain(data, n_items, settings, **how)

    monkeypatch.setattr(fit, "fit_with", noted)
    monkeypatch.setattr(fit, "LEAST_EVENTS", 500)
    for more in (1.04, 0.96, 1.2, 0.8):
        known = ratings.take(np.arange(round(more * n)))
        fit_ranking(known, MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1), start=before.head)
    assert asked == [2, 2, 4, 4]


def test_sweeps_end_where_lists_are_about_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    data = by_user(clusters(3), MANY_USERS)
    held, _ = hold_out(data, "latest", np.random.default_rng(1))
    sets = HeldOut.of(data, MANY_ITEMS, held, np.random.default_rng(1))
    search, asked = _Search(sets, MANY_ITEMS, 1, RankingChoices()), []
    plain, qualities = search._fit, iter((0.4, 0.4991, 0.5, 0.499))

    def noted(_: _Search, choices: RankingChoices) -> object:
        asked.append(choices.sweeps)
        return plain(choices)

    monkeypatch.setattr(_Search, "_fit", noted)
    monkeypatch.setattr(lists.Lists, "qualities", lambda *_: [np.full(3, next(qualities))])
    assert search._settled(RankingChoices(rank=4)) == 6
    assert np.cumsum(asked).tolist() == [4, 6, 8, 12]


def test_lists_of_a_head_find_what_is_held_out() -> None:
    ratings = clusters(5)
    held = np.random.default_rng(1).random(len(ratings.value)) < 0.2
    found = fit_ranking(ratings.take(~held), MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    data = HeldOut.of(
        by_user(ratings, MANY_USERS),
        MANY_ITEMS,
        held[by_user(ratings, MANY_USERS).source],
        np.random.default_rng(1),
    )
    popularity = np.bincount(ratings.item_row[~held], minlength=MANY_ITEMS).astype(np.float32)
    least = data.quality(np.tile(popularity, (len(data.users), 1)), depth=10).mean()
    assert data.quality(found.head.relevance(data.histories), depth=10).mean() > least + 0.2


def test_a_climb_ends_at_the_best_it_has_seen() -> None:
    def double(value: float, up: int) -> float:
        return value * 2.0**up

    assert climb(1.0, double, lambda value: -abs(np.log2(value) - 2)) == 4.0
    assert climb(1.0, double, lambda value: -abs(np.log2(value) + 1)) == 0.5
    assert climb(1.0, double, lambda _: 0.0) == 1.0


def test_relevance_of_many_users_is_that_of_each() -> None:
    found = fit_ranking(clusters(5), MANY_USERS, MANY_ITEMS, rng=np.random.default_rng(1))
    offsets = np.array([0, 3, 3, 5])
    rows, values = np.array([1, 2, 3, 50, 4], np.int32), np.ones(5)
    many = found.head.relevance(Histories(offsets, rows, values, np.full(5, np.nan)))
    for user in range(3):
        part = slice(offsets[user], offsets[user + 1])
        one = Histories(
            np.array([0, offsets[user + 1] - offsets[user]]),
            rows[part],
            values[part],
            np.full(5, np.nan)[part],
        )
        np.testing.assert_allclose(many[user], found.head.scores(one), atol=1e-5)
