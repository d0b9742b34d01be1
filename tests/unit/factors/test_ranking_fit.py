"""The fit of a ranking head: half-steps, neighbours, held-out lists and choices against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from factors import Float64s, Histories, RankingFit, Ratings, fit_ranking
from factors.inference.histories import Compressed, compress_pairs
from factors.model.types import Scale
from factors.ranking import half_steps, neighbours, selection
from factors.ranking.choices import RankingChoices, choices_of
from factors.ranking.expected import expected_ratings
from factors.ranking.half_steps import Events, Prior, solve_rows
from factors.ranking.held_out import HeldOut, hold_out
from factors.ranking.neighbours import CoOccurrences, Neighbours
from factors.ranking.selection import choose, climb
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


def test_many_items_are_looked_up_in_the_sparse_matrix() -> None:
    together = CoOccurrences.of(by_user(ratings_of(4)), N_ITEMS)
    pairs = together.nearest(4)
    sparse = replace(together, dense=None).fit(pairs, 3.0)
    np.testing.assert_allclose(dense(sparse), dense(together.fit(pairs, 3.0)), rtol=2e-3, atol=2e-5)


def test_all_items_may_be_neighbours() -> None:
    data = by_user(ratings_of(4))
    term = CoOccurrences.of(data, N_ITEMS).fit_all(3.0)
    np.testing.assert_allclose(dense(term), slow_regressions(data, N_ITEMS - 1, 3.0), rtol=2e-3, atol=2e-5)


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


def test_recency_is_chosen_where_users_move_on_and_off_elsewhere() -> None:
    still, moving = by_user(clusters(2), MANY_USERS), by_user(clusters(2, drifting=True), MANY_USERS)
    assert choose(still, MANY_ITEMS, "latest", np.random.default_rng(1))[0].recency_boost == 0.0
    assert choose(moving, MANY_ITEMS, "latest", np.random.default_rng(1))[0].recency_boost > 0.0
    # What is asked for at random is not the latest.
    assert choose(moving, MANY_ITEMS, "random", np.random.default_rng(1))[0].recency_boost == 0.0


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
    rating = expected_ratings(data, MANY_ITEMS, np.arange(5), Scale(1.0, 5.0), np.random.default_rng(1))
    assert rating is not None
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
