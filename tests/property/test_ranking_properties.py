"""Odd histories and a ranking head: what the formulas promise holds for each of them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factors import Histories, RankingHead, Ratings, fit_ranking

N_ITEMS = 12


@pytest.fixture(scope="module", name="head")
def _head() -> RankingHead:
    rng = np.random.default_rng(1)
    pair = rng.permutation(20 * N_ITEMS)[:120]
    user, item = (pair // N_ITEMS).astype(np.int32), (pair % N_ITEMS).astype(np.int32)
    ratings = Ratings(user, item, rng.integers(1, 6, 120).astype(np.float64), np.full(120, np.nan))
    head = fit_ranking(ratings, 20, N_ITEMS, rng=rng).head
    return with_recency(head)


def with_recency(head: RankingHead) -> RankingHead:
    parameters = dataclasses.replace(head.parameters, recency_span=2.0, recency_boost=4.0)
    return dataclasses.replace(head, parameters=parameters)


# Items that the table does not have, ratings that are taken back, and times that are unknown or far away.
entries = st.lists(
    st.tuples(
        st.integers(0, N_ITEMS + 3),
        st.sampled_from([1.0, 5.0, -1e9, np.nan]),
        st.sampled_from([np.nan, 0.0, 1e9, 1e300, -5.0]),
    ),
    max_size=30,
)


def history(entries: list[tuple[int, float, float]]) -> Histories:
    rows, values, times = (
        (np.array(column) for column in zip(*entries, strict=True)) if entries else ([], [], [])
    )
    return Histories(
        np.array([0, len(entries)]),
        np.asarray(rows, np.int32),
        np.asarray(values, np.float64),
        np.asarray(times, np.float64),
    )


@given(entries=entries)
def test_scores_are_finite_and_explained(head: RankingHead, entries: list[tuple[int, float, float]]) -> None:
    own = history(entries)
    scores = head.scores(own)
    assert np.isfinite(scores).all()
    last = {row: value for row, value, _ in entries}
    counted = sorted(row for row, value in last.items() if row < N_ITEMS and not np.isnan(value))
    for item in (0, N_ITEMS - 1):
        base, rows, contributions = head.explain(own, item)
        assert rows.tolist() == counted
        exact = head.scores(own, np.array([item]))[0]
        assert base + contributions.sum() == pytest.approx(exact, rel=1e-9, abs=1e-9)
        assert scores[item] == pytest.approx(exact, abs=1e-4)
    assert np.linalg.eigvalsh(head.covariance(own)).min() > 0


@given(items=st.permutations(list(range(N_ITEMS))), count=st.integers(1, N_ITEMS))
def test_with_times_the_order_of_writing_plays_no_part(
    head: RankingHead, items: list[int], count: int
) -> None:
    written = [(item, 3.0, 1e9 + item) for item in items[:count]]
    np.testing.assert_allclose(
        head.scores(history(written)), head.scores(history(sorted(written))), atol=1e-5
    )


@given(entries=entries, more=entries)
def test_a_user_is_folded_in_alone(
    head: RankingHead, entries: list[tuple[int, float, float]], more: list[tuple[int, float, float]]
) -> None:
    one, other = history(entries), history(more)
    both = Histories(
        np.array([0, len(entries), len(entries) + len(more)]),
        np.concatenate([one.other_row, other.other_row]),
        np.concatenate([one.value, other.value]),
        np.concatenate([one.time, other.time]),
    )
    together = head.fold_in_users(both)
    np.testing.assert_allclose(together[0], head.fold_in_users(one)[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(together[1], head.fold_in_users(other)[0], rtol=1e-7, atol=1e-9)
