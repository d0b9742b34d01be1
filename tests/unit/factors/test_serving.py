"""What the service asks of a fit: scores of any batch, rankings, explanations, bytes."""

from typing import Literal

import msgspec
import numpy as np
import pytest

from factors import (
    BASIS,
    FactorsError,
    Fitted,
    Histories,
    ModelUnreadable,
    Ranker,
    Scale,
    Scorer,
    explain,
    from_bytes,
    posterior_of,
    to_bytes,
)
from factors.model.layout import triangle, unpack
from factors.serving.mean_table import largest
from factors.serving.posterior_draw import PosteriorDraw, normals
from tests.unit.factors.factors_world import fitted_of, history, ratings_of

LINKS = ("gaussian", "ordinal")


@pytest.fixture(scope="module", params=LINKS)
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """A fit; the last item is rated by no user."""
    return fitted_of(ratings_of(3), n_items=31, link=request.param)


def test_a_pair_scores_alike_alone_and_among_many(fitted: Fitted) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 500), rng.integers(0, 31, 500)
    scorer = Scorer(fitted.posterior, fitted.items)
    together = scorer.score(fitted.users, user, item)
    for j, m in ((0, 1), (99, 1), (99, 2), (200, 65), (499, 1)):
        alone = scorer.score(fitted.users, user[j : j + m], item[j : j + m])
        np.testing.assert_allclose(alone.rating, together.rating[j : j + m], atol=1e-12)
        np.testing.assert_allclose(alone.std, together.std[j : j + m], atol=1e-12)


def test_blocks_of_any_length_give_every_pair_the_same_bits(fitted: Fitted) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(-1, 45, 4001), rng.integers(-1, 35, 4001)
    scorer = Scorer(fitted.posterior, fitted.items)
    mean, variance, basis = scorer.latent(fitted.users, user, item)
    for j in (0, 1, 1999, 3999, 4000):
        for m in (1, 2, 3):
            part = slice(j, min(j + m, 4001))
            alone = scorer.latent(fitted.users, user[part], item[part])
            np.testing.assert_array_equal(alone[0], mean[part])
            np.testing.assert_array_equal(alone[1], variance[part])
            np.testing.assert_array_equal(alone[2], basis[part])


def test_ratings_alone_are_those_of_the_scores(fitted: Fitted) -> None:
    rng = np.random.default_rng(1)
    scorer = Scorer(fitted.posterior, fitted.items)
    for m in (1, 2, 700):
        user, item = rng.integers(-1, 40, m), rng.integers(-1, 31, m)
        np.testing.assert_array_equal(
            scorer.rating(fitted.users, user, item), scorer.score(fitted.users, user, item).rating
        )


def test_no_pairs_have_no_scores(fitted: Fitted) -> None:
    scorer, user, item = Scorer(fitted.posterior, fitted.items), np.zeros(9, np.int64), np.zeros(9, np.int64)
    empty = scorer.score(fitted.users, user[:0], item[:0])
    assert empty.rating.shape == empty.std.shape == empty.basis.shape == (0,)


def test_basis_says_what_a_score_rests_on(fitted: Fitted) -> None:
    scores = Scorer(fitted.posterior, fitted.items).score(
        fitted.users, np.array([0, 0, -1, 99]), np.array([0, 30, 0, 99])
    )
    assert [BASIS[code] for code in scores.basis] == ["user+item", "user", "item", "prior"]
    everyone, rows = np.array([0, 0, 5, 5]), np.array([0, 30, -1, 99])
    scorer = Scorer(fitted.posterior, fitted.items)
    alone = scorer.basis(fitted.users, everyone, rows)
    assert alone.tolist() == scorer.score(fitted.users, everyone, rows).basis.tolist()


def test_unknown_rows_score_as_the_prior(fitted: Fitted) -> None:
    grown = np.concatenate([fitted.items, fitted.posterior.prior_item[None]])
    unknown = Scorer(fitted.posterior, fitted.items).score(fitted.users, np.array([3]), np.array([-1]))
    known = Scorer(fitted.posterior, grown).score(fitted.users, np.array([3]), np.array([31]))
    assert unknown.rating[0] == pytest.approx(known.rating[0])
    assert unknown.std[0] == pytest.approx(known.std[0])


def test_distribution_agrees_with_the_score(fitted: Fitted) -> None:
    user, item = np.arange(30), np.arange(30)
    chance = Scorer(fitted.posterior, fitted.items).distribution(fitted.users, user, item)
    assert chance.shape == (30, 5)
    np.testing.assert_allclose(chance.sum(axis=1), 1.0)
    assert (chance >= 0).all()
    scores = Scorer(fitted.posterior, fitted.items).score(fitted.users, user, item)
    mean = chance @ np.arange(1.0, 6.0)
    np.testing.assert_allclose(mean, scores.rating, atol=1e-9 if fitted.model.link == "ordinal" else 0.5)


def test_distribution_needs_steps() -> None:
    from dataclasses import replace

    fitted = fitted_of(ratings_of(3), link="gaussian")
    model = replace(fitted.model, scale=Scale(1, 5))
    with pytest.raises(FactorsError, match="steps"):
        Scorer(posterior_of(model), fitted.items).distribution(fitted.users, np.array([0]), np.array([0]))


def test_top_is_the_whole_sorted_table_without_what_is_excluded(fitted: Fitted) -> None:
    ranker = Ranker(fitted.posterior, fitted.items)
    exclude = [np.array([1, 2, 3]), np.array([], dtype=int), np.array([-1, 5, 99])]
    answers = ranker.top(fitted.users[:3], 40, exclude)
    for user, ranked in enumerate(answers):
        allowed = np.setdiff1d(np.arange(31), exclude[user])
        assert sorted(ranked.item_rows.tolist()) == allowed.tolist()
        scores = Scorer(fitted.posterior, fitted.items).score(
            fitted.users, np.full(len(allowed), user), ranked.item_rows
        )
        np.testing.assert_allclose(ranked.scores, scores.rating)
        assert (np.diff(ranked.scores) <= 1e-5).all()
        first = ranker.top(fitted.users[user : user + 1], 4, exclude[user : user + 1])[0]
        assert len(first.item_rows) == 4
        assert first.scores[0] == pytest.approx(ranked.scores[0], abs=0.05)
    assert [len(r.item_rows) for r in ranker.top(fitted.users[:2], 0, exclude)] == [0, 0]


@pytest.mark.parametrize("link", LINKS)
def test_a_list_is_the_beginning_of_a_longer_one(link: Literal["gaussian", "ordinal"]) -> None:
    # Items that are known well and items that are hardly known: their ratings are in no order of the means.
    n = 1_000
    fitted = fitted_of(ratings_of(3), n_items=31, link=link)
    rng = np.random.default_rng(0)
    items = fitted.items[rng.integers(0, 31, n)].copy()
    means = fitted.posterior.parameters.items.layout.mean
    items[:, means] += rng.normal(0.0, 0.5, items[:, means].shape).astype(np.float32)
    ranker, scorer, rows = Ranker(fitted.posterior, items), Scorer(fitted.posterior, items), np.arange(n)
    allowed = rng.random(n) < 0.7
    exclude = [rng.choice(n, 20, replace=False) for _ in range(4)]
    for mask in (None, allowed):
        for user, longest in enumerate(ranker.top(fitted.users[:4], n, exclude, allowed=mask)):
            passing = np.setdiff1d(rows if mask is None else np.flatnonzero(mask), exclude[user])
            ratings = scorer.rating(fitted.users, np.full(len(passing), user), passing)
            np.testing.assert_allclose(longest.scores, np.sort(ratings)[::-1], atol=1e-6)
            for wanted in (1, 3, 10, 40, 300):
                one = fitted.users[user : user + 1], wanted, exclude[user : user + 1]
                (found,) = ranker.top(*one, allowed=mask)
                np.testing.assert_allclose(found.scores, longest.scores[:wanted], atol=1e-6)
                assert len(found.scores) == wanted
                if link == "ordinal":
                    assert found.item_rows.tolist() == longest.item_rows[:wanted].tolist()


def test_thompson_draws_follow_the_posterior(fitted: Fitted) -> None:
    ranker = Ranker(fitted.posterior, fitted.items)
    none = [np.array([], dtype=int)]
    rng = np.random.default_rng(0)
    firsts = {int(ranker.top(fitted.users[:1], 1, none, rng)[0].item_rows[0]) for _ in range(60)}
    assert len(firsts) > 1
    again = ranker.top(fitted.users[:1], 5, none, np.random.default_rng(1))[0]
    same = ranker.top(fitted.users[:1], 5, none, np.random.default_rng(1))[0]
    np.testing.assert_array_equal(again.item_rows, same.item_rows)


def test_draws_spread_as_the_scores_are_unsure(fitted: Fitted) -> None:
    user, rows, n, rng = fitted.users[3].copy(), np.arange(31), 4_000, np.random.default_rng(0)
    # A draw leaves out what is the same for all items: here the user's bias is known.
    layout = fitted.posterior.parameters.users.layout
    covariance = unpack(user[None, layout.covariance], layout.dim)[0]
    covariance[-1] = covariance[:, -1] = 0.0
    first, second, _ = triangle(layout.dim)
    user[layout.covariance] = covariance[first, second]
    mean, variance, _ = Scorer(fitted.posterior, fitted.items).latent(user[None], np.zeros(31, int), rows)
    draws = [PosteriorDraw(fitted.posterior, user, rng).scores(fitted.items, rows) for _ in range(n)]
    scores = np.array(draws, np.float64)
    apart = fitted.posterior.parameters.mean + float(user[layout.mean][-1])
    np.testing.assert_allclose(scores.mean(axis=0) + apart, mean, atol=4 * np.sqrt(variance.max() / n))
    np.testing.assert_allclose(scores.var(axis=0) / variance, 1.0, atol=5 * np.sqrt(2 / n))


def test_the_number_of_a_row_does_not_depend_on_others() -> None:
    rows = np.arange(200_000)
    key = np.uint64(12345)
    found = normals(key, rows)
    np.testing.assert_array_equal(normals(key, rows[::-7]), found[::-7])
    assert abs(found.mean()) < 4 / np.sqrt(len(rows))
    assert found.var() == pytest.approx(1.0, abs=4 * np.sqrt(2 / len(rows)))
    assert (np.abs(found) > 1.96).mean() == pytest.approx(0.05, abs=0.002)
    # Neighbours, and the same row of other draws, go their own ways.
    for other in (np.roll(found, 1), normals(key + np.uint64(1), rows)):
        assert abs(np.corrcoef(found, other)[0, 1]) < 4 / np.sqrt(len(rows))


def test_similar_and_popular_return_rated_items_only(fitted: Fitted) -> None:
    ranker = Ranker(fitted.posterior, fitted.items)
    similar = ranker.similar(4, 50)
    assert 4 not in similar.item_rows
    assert 30 not in similar.item_rows
    assert len(similar.item_rows) == 29
    assert (np.diff(similar.scores) <= 0).all()
    assert np.abs(similar.scores).max() <= 1.0 + 1e-5
    assert len(ranker.similar(30, 5).item_rows) == 0
    assert len(ranker.similar(-1, 5).item_rows) == 0
    popular = ranker.popular(50)
    assert 30 not in popular.item_rows
    assert len(popular.item_rows) == 30
    assert (np.diff(popular.scores) <= 0).all()


def test_a_ranker_follows_the_table(fitted: Fitted) -> None:
    table = np.concatenate([fitted.items[:20], np.repeat(fitted.posterior.prior_item[None], 14, axis=0)])
    ranker = Ranker(fitted.posterior, table[:20])
    table[33], table[20] = fitted.items[4], fitted.items[5]
    ranker.update(np.array([33, 20]), table)
    assert ranker.n_items == 34
    fresh = Ranker(fitted.posterior, table)
    none = [np.array([], dtype=int)]
    for left, right in (
        (ranker.top(fitted.users[:1], 10, none)[0], fresh.top(fitted.users[:1], 10, none)[0]),
        (ranker.similar(33, 10), fresh.similar(33, 10)),
        (ranker.popular(10), fresh.popular(10)),
    ):
        np.testing.assert_array_equal(left.item_rows, right.item_rows)
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-6)
    ranker.update(np.array([], dtype=int), table)
    assert ranker.n_items == 34


@pytest.mark.parametrize("n", [1, 10, 3000, 9000])
def test_the_largest_are_those_of_a_full_sort(n: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 500, 20_011).astype(np.float32)
    scores[rng.integers(0, len(scores), 13_000)] = -np.inf
    expected = np.argsort(-scores, kind="stable")
    expected = expected[scores[expected] > -np.inf][:n]
    np.testing.assert_array_equal(largest(scores, n), expected)
    assert len(largest(np.full(5, -np.inf), 3)) == 0


@pytest.mark.parametrize("item", [0, 17, 30, -1])
def test_explanations_add_up_to_the_score(fitted: Fitted, item: int) -> None:
    past = history([3, 5, 8, 3, 99], [5.0, 4.0, 1.0, 2.0, 3.0], [8.8e8, 8.8e8, 8.8e8 + 4000, 8.8e8, 8.9e8])
    user = fitted.posterior.fold_in_users(fitted.items, past)
    expected = Scorer(fitted.posterior, fitted.items).score(user, np.array([0]), np.array([item])).rating[0]
    explained = explain(fitted.posterior, fitted.items, past, item)
    assert explained.base + explained.contributions.sum() == pytest.approx(expected, abs=1e-6)
    assert sorted(explained.item_rows.tolist()) == [3, 5, 8, 99]
    assert np.isfinite(explained.contributions).all()


def test_explanations_start_from_what_a_stranger_gets() -> None:
    fitted = fitted_of(
        ratings_of(3), n_items=31, link="gaussian", implicit_effects=False, session_effects=False
    )
    stranger = (
        Scorer(fitted.posterior, fitted.items).score(fitted.users, np.array([-1]), np.array([7])).rating[0]
    )
    explained = explain(fitted.posterior, fitted.items, history([3, 5], [5.0, 4.0]), 7)
    assert explained.base == pytest.approx(stranger, abs=1e-5)
    nothing = explain(fitted.posterior, fitted.items, history([], []), 7)
    assert nothing.base == pytest.approx(stranger, abs=1e-5)
    assert len(nothing.contributions) == 0
    two = Histories(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="one history"):
        explain(fitted.posterior, fitted.items, two, 7)


def test_a_model_survives_its_bytes(fitted: Fitted) -> None:
    payload = to_bytes(fitted.model)
    read = from_bytes(payload)
    assert to_bytes(read) == payload
    assert (read.rank, read.link, read.scale) == (fitted.model.rank, fitted.model.link, fitted.model.scale)
    for name, array in fitted.model.parameters.items():
        np.testing.assert_array_equal(read.parameters[name], array)


def test_bytes_that_are_no_model_are_refused(fitted: Fitted) -> None:
    payload = to_bytes(fitted.model)
    good = msgspec.msgpack.decode(payload)

    def changed(**fields: object) -> bytes:
        return msgspec.msgpack.encode({**good, **fields})

    parameters = good["parameters"]
    nan = {**parameters, "noise": {"shape": [1], "data": np.array([np.nan]).tobytes()}}
    short = {**parameters, "noise": {"shape": [2], "data": np.zeros(1).tobytes()}}
    missing = {name: array for name, array in parameters.items() if name != "user_mean"}
    shape = {**parameters, "user_mean": {"shape": [1], "data": np.zeros(1).tobytes()}}
    bad = [
        b"",
        b"nonsense",
        payload[:-3],
        changed(format="other"),
        changed(rank=0),
        changed(rank=good["rank"] + 1),
        changed(link="logit"),
        changed(low=9.0),
        changed(user_width=7),
        changed(extra=1),
        changed(parameters=nan),
        changed(parameters=short),
        changed(parameters=missing),
        changed(parameters=shape),
    ]
    for given in bad:
        with pytest.raises(ModelUnreadable):
            from_bytes(given)
