"""Implicit feedback: fold-in is the library's own exact solve, and a fit grows without forgetting where
it was.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from factors import (
    Choices,
    Factorize,
    FitDiverged,
    FitRefused,
    FitSettings,
    Fitted,
    Float32s,
    Histories,
    RankingHead,
    Ratings,
    Scale,
    Scorer,
    TypeWeight,
    all_finite_items,
    explain,
    fit_ranking,
    from_bytes,
    posterior_of,
    to_bytes,
)
from factors.engine_api import confidence_of, implicit_factors, weighting_of
from factors.model.layout import item_layout, user_layout
from trainer.engines import head_sweeps, implicit_als, make_engine
from trainer.engines.base import FitTask

SCALE = Scale(1.0, 5.0)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """The library warns where BLAS has more."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def choices(n_users: int = 60, n_items: int = 40, groups: int = 4, seed: int = 0) -> Ratings:
    """Users of a group choose among its items."""
    rng = np.random.default_rng(seed)
    rows = [
        (user, item, rng.integers(1, 6))
        for user in range(n_users)
        for item in range(n_items)
        if rng.random() < (0.5 if item % groups == user % groups else 0.02)
    ]
    user, item, value = (np.array(column) for column in zip(*rows, strict=True))
    return Ratings(
        user.astype(np.int32), item.astype(np.int32), value.astype(np.float64), np.full(len(rows), np.nan)
    )


def fitted(ratings: Ratings, n_users: int = 60, n_items: int = 40, start: Fitted | None = None) -> Fitted:
    engine = make_engine("implicit", FitSettings(SCALE, rank=6))
    return engine.fit(FitTask(ratings, n_users, n_items, np.random.default_rng(1), start))


def history(ratings: Ratings, user: int) -> Histories:
    mine = ratings.user_row == user
    return Histories(
        np.array([0, mine.sum()]), ratings.item_row[mine], ratings.value[mine], ratings.time[mine]
    )


def test_fold_in_is_the_exact_solve_of_the_library() -> None:
    ratings, fit = choices(), fitted(choices())
    weighting = weighting_of(fit.model)
    assert weighting.power > 0
    alpha = weighting.alpha
    als = AlternatingLeastSquares(factors=6, num_threads=1)
    als.user_factors, als.item_factors = implicit_factors(fit)
    confidence = confidence_of(ratings.value, SCALE, alpha).astype(np.float32)
    matrix = sp.csr_matrix((confidence, (ratings.user_row, ratings.item_row)), shape=(60, 40))
    for user in (0, 7, 59):
        als.regularization = weighting.ridges("user", np.diff(matrix.indptr)[user])
        expected = als.recalculate_user(user, matrix[user])
        row = fit.posterior.fold_in_users(fit.items, history(ratings, user))[0]
        np.testing.assert_allclose(row[user_layout(fit.model).latent] / 4.0, expected, atol=1e-4)
        np.testing.assert_allclose(row, fit.users[user], atol=1e-5)
    by_item = matrix.T.tocsr()
    for item in (0, 39):
        raters = by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]
        values = (by_item[item].data.astype(np.float64) - 1) / alpha * 4 + 1
        given = Histories(np.array([0, len(raters)]), raters, values, np.full(len(raters), np.nan))
        row = fit.posterior.fold_in_items(fit.users, given)[0]
        als.regularization = weighting.ridges("item", np.diff(by_item.indptr)[item])
        expected = als.recalculate_item(item, by_item[item])
        np.testing.assert_allclose(row[item_layout(fit.model).latent], expected, atol=2e-3)


def test_chosen_groups_are_found() -> None:
    fit = fitted(choices())
    scorer = Scorer(fit.posterior, fit.items)
    items = np.arange(40)
    scores = scorer.score(fit.users, np.zeros(40, dtype=np.int64), items)
    assert scores.rating[items % 4 == 0].mean() > scores.rating[items % 4 != 0].mean() + 0.5
    assert np.isfinite(scores.std).all()
    assert (scores.std > 0).all()


def test_judged_by_the_rank_of_what_was_chosen() -> None:
    ratings = choices()
    unseen = np.arange(len(ratings.value)) % 10 == 0
    parts = [
        Ratings(ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows])
        for rows in (~unseen, unseen)
    ]
    engine = make_engine("implicit", FitSettings(SCALE, rank=6))
    metrics = engine.held_out(fitted(parts[0]), parts[0], parts[1])
    assert metrics["loss"] < 0.8 * metrics["baseline_loss"]
    assert 0 < metrics["held_out_recall_at_20"] <= 1


def test_rank_confidence_and_ridge_are_chosen_once_and_kept_by_the_fits_that_go_on() -> None:
    ratings = choices(n_users=120, n_items=60)
    engine = make_engine("implicit", FitSettings(SCALE))
    first, second = (
        engine.fit(FitTask(ratings, 120, 60, np.random.default_rng(seed), start))
        for seed, start in ((1, None), (1, None))
    )
    np.testing.assert_array_equal(first.items, second.items)
    more = choices(n_users=130, n_items=62)
    grown = engine.fit(FitTask(more, 130, 62, np.random.default_rng(2), from_fit(first)))
    assert grown.model.rank == first.model.rank
    assert [grown.metrics[name] for name in ("alpha", "ridge", "power")] == [
        first.metrics[name] for name in ("alpha", "ridge", "power")
    ]


def from_fit(fit: Fitted) -> Fitted:
    """As it comes back from its files."""
    return Fitted(from_bytes(to_bytes(fit.model)), fit.users, fit.items)


def test_grows_from_an_earlier_fit() -> None:
    first = fitted(choices())
    more = choices(n_users=70, n_items=45, seed=0)
    second = fitted(more, 70, 45, start=first)
    assert second.users.shape[0] == 70
    assert second.items.shape[0] == 45
    assert np.isfinite(second.users).all()
    assert all_finite_items(second.model, second.items)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (2, 3)])
def test_nothing_chosen_is_finite(sizes: tuple[int, int]) -> None:
    empty = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    fit = fitted(empty, *sizes)
    assert (len(fit.users), len(fit.items)) == sizes
    assert np.isfinite(fit.users).all()


def test_model_survives_its_bytes_and_explains_its_scores() -> None:
    ratings, fit = choices(), fitted(choices())
    model = from_bytes(to_bytes(fit.model))
    given = history(ratings, 3)
    np.testing.assert_array_equal(
        posterior_of(model).fold_in_users(fit.items, given),
        fit.posterior.fold_in_users(fit.items, given),
    )
    why = explain(posterior_of(model), fit.items, given, 5)
    score = Scorer(posterior_of(model), fit.items).score(fit.users[3:4], np.array([0]), np.array([5]))
    np.testing.assert_allclose(why.base + why.contributions.sum(), score.rating[0], atol=1e-5)
    assert why.base == pytest.approx(SCALE.low, abs=0.2)


def test_unknown_items_and_empty_histories_are_the_prior() -> None:
    fit = fitted(choices())
    unrated = Histories(np.array([0, 0]), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    strange = Histories(np.array([0, 1]), np.array([999], np.int32), np.array([5.0]), np.array([np.nan]))
    rows = [fit.posterior.fold_in_users(fit.items, given)[0] for given in (unrated, strange)]
    layout = user_layout(fit.model)
    for row in rows:
        np.testing.assert_allclose(row[layout.latent], 0, atol=1e-6)
    np.testing.assert_allclose(rows[0][layout.covariance], rows[1][layout.covariance], rtol=1e-5, atol=1e-9)


def test_one_user_of_very_many_choices_leaves_room_for_the_others() -> None:
    each, heavy = 100, 110_000
    user = np.concatenate([np.repeat(np.arange(100), each), np.full(heavy, 100)]).astype(np.int32)
    item = np.concatenate([np.tile(np.arange(each), 100), np.arange(heavy)]).astype(np.int32)
    ratings = Ratings(user, item, np.full(len(user), 5.0), np.full(len(user), np.nan))
    for seed in range(5):
        part = implicit_als._some_users(ratings, 101, np.random.default_rng(seed))
        assert np.bincount(part.user_row).tolist() == [each] * 100 + [1_000]


PURCHASE, VIEW, DISLIKE = 4, 1, 6
EVENTS = (
    TypeWeight(PURCHASE, "positive", None, decisive=True),
    TypeWeight(VIEW, "positive"),
    TypeWeight(DISLIKE, "negative"),
)
N_USERS, N_ITEMS, N_GROUPS = 200, 60, 6


def bought_and_viewed() -> tuple[Choices, Choices]:
    """Events without any rating: users buy within their group of items, view anything, and dislike items of
    the next group; and what they buy later.
    """
    rng = np.random.default_rng(3)
    rows: list[tuple[int, int, int]] = []
    later: list[tuple[int, int, int]] = []
    for user in range(N_USERS):
        group = np.arange(user % N_GROUPS, N_ITEMS, N_GROUPS)
        bought = rng.permutation(group)
        rows += [(user, item, PURCHASE) for item in bought[:4].tolist()]
        later += [(user, item, PURCHASE) for item in bought[4:6].tolist()]
        rows += [(user, item, VIEW) for item in rng.permutation(N_ITEMS)[:12].tolist()]
        rows += [(user, (item + 1) % N_ITEMS, DISLIKE) for item in group[:3].tolist()]
    return made(rows), made(later)


def made(rows: list[tuple[int, int, int]]) -> Choices:
    user, item, code = (np.array(column) for column in zip(*rows, strict=True))
    value, time = np.ones(len(user)), np.full(len(user), np.nan)
    return Choices(user.astype(np.int32), item.astype(np.int32), value, time, code.astype(np.uint8))


def head_of(given: Choices, types: tuple[TypeWeight, ...], factorize: Factorize | None) -> RankingHead:
    rng = np.random.default_rng(1)
    return fit_ranking(
        *(given.ratings(), N_USERS, N_ITEMS), rng=rng, choices=given, types=types, factorize=factorize
    ).head


def found_later(head: RankingHead, given: Choices, later: Choices) -> float:
    """Return which part of what is bought later is among the first six that were not bought."""
    order = np.argsort(given.user_row, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(given.user_row, minlength=N_USERS))])
    histories = Histories(
        offsets, given.item_row[order], given.value[order], given.time[order], given.type_code[order]
    )
    relevance = head.relevance(histories)
    bought = given.type_code == PURCHASE
    relevance[given.user_row[bought], given.item_row[bought]] = -np.inf
    first = np.argsort(-relevance, axis=1)[:, :6]
    return float((first[later.user_row] == later.item_row[:, None]).any(axis=1).mean())


def test_events_are_learned_by_the_librarys_sweeps() -> None:
    given, later = bought_and_viewed()
    library = head_sweeps("implicit", 1, np.random.default_rng(2))
    assert library is not None
    asked: list[tuple[float, float, int]] = []

    def watched(confidences: sp.csr_matrix, rank: int, ridge: float) -> Float32s:
        asked.append((float(confidences.data.min()), float(confidences.data.max()), rank))
        assert ridge > 0
        return library(confidences, rank, ridge)

    head = head_of(given, EVENTS, watched)
    # Dislikes are negative, which the library takes for a 0 that is sure.
    ((lowest, highest, rank),) = asked
    assert (lowest < -1, highest > 1, rank) == (True, True, N_ITEMS)
    by_own = head_of(given, EVENTS, None)
    one, other = found_later(head, given, later), found_later(by_own, given, later)
    # By chance 6 of 56.
    assert one > 0.9
    assert one >= other - 0.03
    # A weight of its own for each type, chosen by the head's chooser: what is viewed by chance counts little.
    weights = {each.code: each.weight for each in head.parameters.types}
    assert weights == {each.code: each.weight for each in by_own.parameters.types}
    assert (weights[VIEW] or 0) < (weights[PURCHASE] or 0)
    assert head.parameters.gamma == 0.0
    # Where purchases weigh nothing, they are not found.
    ignored = tuple(replace(each, weight=0.0 if each.code == PURCHASE else 1.0) for each in EVENTS)
    assert found_later(head_of(given, ignored, library), given, later) < 0.5


def test_dislikes_alone_are_refused() -> None:
    given, _ = bought_and_viewed()
    disliked = given.take(given.type_code == DISLIKE)
    for library in (None, head_sweeps("implicit", 1, np.random.default_rng(2))):
        with pytest.raises(FitRefused, match="wanted"):
            head_of(disliked, EVENTS, library)


def test_factors_that_are_not_finite_are_no_fit() -> None:
    library = head_sweeps("implicit", 1, np.random.default_rng(2))
    assert library is not None
    with pytest.raises(FitDiverged):
        library(sp.csr_matrix(np.full((3, 4), np.nan, np.float32)), 2, 1.0)


def test_other_engines_have_no_sweeps_of_their_own() -> None:
    assert head_sweeps("variational", 1, np.random.default_rng(2)) is None
