"""Items folded into the ranking head between fits: what all of their raters say, as these are now."""

from pathlib import Path

import numpy as np
import pytest

from factors import Fitted, Float32s, Histories, RankingHead, fit, fit_ranking
from tests.support.event_tables import item_ids, opened
from tests.unit.trainer.test_item_deltas import NAN, SETTINGS, Event, known, table_of
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of
from trainer.fit_job.ratings import load_ratings
from trainer.fit_job.result_files import read_result, write_head, write_result
from trainer.fit_job.results import FitResult
from trainer.item_updates.since_fit import RatingsSinceFit


@pytest.fixture
def base(tmp_path: Path) -> FitResult:
    """A fit with a head, of 20 users who rated five of eight items each."""
    rng = np.random.default_rng(0)
    events: list[Event] = [
        (f"u{user}", n, int(row), float(rng.integers(1, 6)))
        for user in range(20)
        for n, row in enumerate(rng.permutation(8)[:5], start=1)
    ]
    archive = EpochArchive(tmp_path / "archive", 1, guard=lambda: None)
    table = table_of(events)
    archive.append(table, spans_of(table))
    given = load_ratings(opened(archive), item_ids(8))
    fitted: Fitted = fit(given.ratings, 20, 8, settings=SETTINGS, rng=rng)
    write_result(tmp_path / "fit", given, fitted, {})
    write_head(tmp_path / "fit", fit_ranking(given.ratings, 20, 8, rng=rng))
    return read_result(tmp_path / "fit")


def head_of(base: FitResult) -> RankingHead:
    head = base.head()
    assert head is not None
    return head


def one(rows: list[int]) -> Histories:
    """One history of these item rows."""
    count = len(rows)
    return Histories(np.array([0, count]), np.array(rows, np.int32), np.full(count, 4.0), np.full(count, NAN))


def folded(since: RatingsSinceFit, base: FitResult, histories: dict[bytes, list[int]]) -> dict[int, Float32s]:
    """The factors of all items that wait; `histories`: of the users as the store has them."""
    rows: dict[int, Float32s] = {}
    while since.waiting_items:
        chosen = since.next_round()
        vectors = np.repeat(np.asarray(base.users[:1]), len(chosen.users), axis=0)
        since.set_users(chosen.slots, np.full(len(chosen.users), 100), vectors)
        for slot, user in zip(chosen.slots, chosen.users, strict=True):
            since.set_histories([slot], one(histories[user]))
        factors = since.fold(chosen).factors
        assert factors is not None
        since.took(np.array(chosen.items, np.int32), factors)
        rows.update(zip(chosen.items, factors, strict=True))
    return rows


def test_factors_are_what_all_raters_say(base: FitResult) -> None:
    head = head_of(base)
    since = RatingsSinceFit(base.model, base, head)
    raters = list(known(base, 0))
    # One who was in the fit rates on, and one who was not begins.
    since.add(table_of([(raters[0].decode(), 6, 9, 5.0), ("new", 1, 0, 4.0), ("new", 2, 9, 1.0)]))
    histories = {raters[0]: [0, 1, 9], b"new": [0, 9]}
    rows = folded(since, base, histories)
    assert set(rows) == {0, 9}
    assert base.ranking_users is not None
    users = np.asarray(base.ranking_users)[base.rows_of(raters)]
    newer = {user: head.fold_in_users(one(rated), recency=False)[0] for user, rated in histories.items()}
    users[0] = newer[raters[0]]
    everyone = np.vstack([users, newer[b"new"]]).astype(np.float32)
    expected = head.fold_in_items(everyone, one(list(range(len(everyone)))))[0]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-4, atol=1e-6)
    both = np.vstack([newer[raters[0]], newer[b"new"]]).astype(np.float32)
    np.testing.assert_allclose(rows[9], head.fold_in_items(both, one([0, 1]))[0], rtol=1e-4, atol=1e-6)


def test_users_are_folded_in_with_the_items_as_they_are(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base, head_of(base))
    since.add(table_of([("new", 1, 11, 4.0)]))
    first = folded(since, base, {b"new": [11]})[11]
    # The next one chose the new item alone, and so is no longer what the prior says.
    since.add(table_of([("next", 1, 11, 4.0), ("next", 2, 12, 4.0)]))
    rows = folded(since, base, {b"next": [11, 12]})
    assert since.head is not None
    np.testing.assert_array_equal(since.head.items[11], rows[11])
    assert not np.allclose(first, rows[11])
    # The fit's own are as they were.
    assert len(head_of(base).items) == 8


def test_an_item_that_has_no_rating_left_has_no_factors(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base, head_of(base))
    raters = [user.decode() for user in known(base, 3)]
    since.add(table_of([(user, 6, 3, NAN) for user in raters]))
    assert not folded(since, base, {user.encode(): [1] for user in raters})[3].any()


def test_without_a_head_there_are_no_factors(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([("new", 1, 0, 4.0)]))
    chosen = since.next_round()
    since.set_users(chosen.slots, np.full(1, 100), np.asarray(base.users[:1]))
    folded = since.fold(chosen)
    vectors, factors = folded.vectors, folded.factors
    assert (vectors.shape, factors) == ((1, base.model.item_width), None)
    since.took(np.array([0], np.int32), np.zeros((1, 1), np.float32))
    assert since.head is None
