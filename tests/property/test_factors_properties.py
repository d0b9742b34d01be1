"""Whatever the ratings: a fold-in is independent of company, and each answer is finite and on the scale."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factors import Fitted, Histories, Scorer, explain, from_bytes, to_bytes
from tests.unit.factors.factors_world import fitted_of, ratings_of

FITS = {link: fitted_of(ratings_of(3), link=link) for link in ("gaussian", "ordinal")}
ENTRIES = st.lists(
    st.tuples(
        st.integers(-2, 40),
        st.one_of(st.floats(1.0, 5.0), st.just(float("nan"))),
        st.one_of(st.floats(-1e18, 1e18), st.just(float("nan"))),
    ),
    max_size=12,
)
LINK = st.sampled_from(sorted(FITS))


def histories(many: list[list[tuple[int, float, float]]]) -> Histories:
    """Histories of these entries."""
    flat = [entry for each in many for entry in each]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in many])]).astype(np.int64)
    columns = [np.array(column) for column in zip(*flat, strict=True)] if flat else [np.zeros(0)] * 3
    return Histories(offsets, columns[0].astype(np.int32), columns[1].astype(float), columns[2].astype(float))


def last_only(entries: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """What of a history counts."""
    kept = {row: (row, value, time) for row, value, time in entries}
    return [entry for entry in kept.values() if not np.isnan(entry[1])]


@given(link=LINK, many=st.lists(ENTRIES, min_size=1, max_size=4))
def test_company_and_repeats_do_not_matter(link: str, many: list[list[tuple[int, float, float]]]) -> None:
    fitted: Fitted = FITS[link]
    together = fitted.posterior.fold_in_users(fitted.items, histories(many))
    for row, entries in zip(together, many, strict=True):
        alone = fitted.posterior.fold_in_users(fitted.items, histories([last_only(entries)]))[0]
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)


@given(link=LINK, entries=ENTRIES, item=st.integers(-2, 40), time=st.floats(-1e18, 1e18))
def test_answers_are_finite_and_on_the_scale(
    link: str, entries: list[tuple[int, float, float]], item: int, time: float
) -> None:
    fitted = FITS[link]
    past = histories([entries])
    user = fitted.posterior.fold_in_users(fitted.items, past)
    assert np.isfinite(user).all()
    one = np.zeros(1, dtype=np.int64), np.array([item])
    for when in (None, np.array([time])):
        scores = Scorer(fitted.posterior, fitted.items).score(user, *one, time=when)
        assert 1.0 <= scores.rating[0] <= 5.0
        assert 0.0 < scores.std[0] < 10.0
    explained = explain(fitted.posterior, fitted.items, past, item)
    rating = Scorer(fitted.posterior, fitted.items).score(user, *one).rating[0]
    assert abs(explained.base + explained.contributions.sum() - rating) < 1e-6


@given(link=LINK, position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_damaged_bytes_are_refused_or_a_model(link: str, position: int, byte: int) -> None:
    payload = bytearray(to_bytes(FITS[link].model))
    payload[position % len(payload)] = byte
    try:
        model = from_bytes(bytes(payload))
    except ValueError:
        return
    assert model.rank >= 1
