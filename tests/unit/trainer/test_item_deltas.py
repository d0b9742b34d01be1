"""Items folded in since a fit are what a fold-in over all of their ratings gives, whatever came when."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from factors import (
    FitSettings,
    Fitted,
    Float32s,
    Histories,
    Scale,
    fit,
    posterior_of,
)
from factors.model.layout import item_layout
from tests.support.event_tables import event_table, item_ids, opened
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import Rows, after, spans_of
from trainer.archive.segments import open_rows
from trainer.fit_job import results
from trainer.fit_job.ratings import load_ratings
from trainer.fit_job.result_files import erase_user, read_result, write_result
from trainer.fit_job.results import FitResult
from trainer.item_updates import since_fit, updater
from trainer.item_updates.since_fit import RatingsSinceFit

NAN = float("nan")
Event = tuple[str, int, int, float]
SETTINGS = FitSettings(Scale(1.0, 5.0), rank=2, link="gaussian", sweeps=4)


def table_of(events: list[Event], first_ms: int = 1):  # type: ignore[no-untyped-def]  # an Arrow table
    ms = np.arange(first_ms, first_ms + len(events))
    return event_table(*zip(*events, strict=True), stream_ms=ms)


@pytest.fixture
def base(tmp_path: Path) -> FitResult:
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
    return read_result(tmp_path / "fit")


def test_events_that_are_left_to_the_next_fit_are_told_of_once(
    base: FitResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(since_fit, "MAX_EVENTS", 2)
    caplog.set_level("INFO")
    found = RatingsSinceFit(base.model, base)
    for row in range(4):
        assert caplog.text.count("events_left_to_fit held=2") == (row == 3)
        found.add(table_of([("new", row + 1, row, 4.0)]))
    assert caplog.text.count("events_left_to_fit held=2") == 1
    assert found.waiting_items == 2


@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_the_most_active_are_those_with_most_ratings(
    base: FitResult, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(results, "_AT_ONCE", at_once)
    # As if taken back: of the first user all ratings, of the third one.
    values = np.array(base.item_values)
    values[base.item_users == 0] = NAN
    values[np.flatnonzero(base.item_users == 2)[0]] = NAN
    left = replace(base, item_values=values)
    ids = base.user_ids(0, base.n_users)
    assert left.most_active(18) == [ids[1], *ids[3:]]
    assert left.most_active(19) == ids[1:]


@pytest.mark.parametrize("at_once", [3, 1 << 20])
def test_events_of_one_kind_and_of_one_user_are_looked_up_some_at_a_time(
    base: FitResult, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(results, "_AT_ONCE", at_once)
    assert np.array_equal(
        results.entries_of(base.item_users, 4), np.flatnonzero(np.asarray(base.item_users) == 4)
    )
    assert len(results.entries_of(base.item_users[:0], 4)) == 0
    codes, values = np.array([1, 2, 1, 3], dtype=np.uint8), np.array([1.0, 1.0, NAN, 1.0])
    told = replace(base, event_codes=codes, event_values=values, event_times=np.arange(4.0))
    times = results.WantedTimes(told, np.array([1, 3], dtype=np.uint8))
    assert len(times) == 4
    np.testing.assert_array_equal(times[0:3], [0.0, NAN, NAN])
    np.testing.assert_array_equal(times[3:9], [3.0])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell of mappings")
def test_files_of_a_fit_are_let_go_of(base: FitResult) -> None:
    def resident_kb() -> int:
        found = re.findall(
            rf"{base.path}/\S+\n(?:Size|KernelPageSize|MMUPageSize).*?\nRss: +(\d+)", told(), re.S
        )
        return sum(map(int, found))

    def told() -> str:
        return Path("/proc/self/smaps").read_text("ascii")

    users, values = np.array(base.users), np.array(base.item_values)
    assert resident_kb() > 0
    base.let_go()
    assert resident_kb() == 0
    # They are read again, as they were.
    assert np.array_equal(base.users, users)
    assert np.array_equal(base.item_values, values)


def test_segments_of_which_all_is_learned_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, read = EpochArchive(tmp_path, 1, guard=lambda: None), []
    for first_ms in (1, 11, 21):
        table = table_of([("u", 1, 0, 3.0), ("v", 1, 1, 4.0)], first_ms)
        archive.append(table, spans_of(table))

    def noting(path: Path, file: pa.NativeFile) -> Rows:
        read.append(path)
        return open_rows(path, file)

    monkeypatch.setattr(updater, "open_rows", noting)
    snapshot, files = archive.open_snapshot()
    tables = list(updater.events_since(snapshot, files, {0: (11, 0)}))
    assert [table["stream_ms"].to_pylist() for table in tables] == [[12], [21, 22]]
    assert read == list(snapshot.paths[1:])
    assert all(file.closed for file in files)


def current(base: FitResult, since: RatingsSinceFit, users: list[bytes]) -> tuple[np.ndarray, Float32s]:
    """Stands for the store: some vector for each user that tells them apart."""
    items = np.asarray(base.items)
    vectors = []
    for user in users:
        rated = np.array([len(user) % 8, user[-1] % 8], dtype=np.int32)
        history = Histories(np.array([0, 2]), rated, np.array([1.0, 5.0]), np.full(2, NAN))
        vectors.append(posterior_of(base.model).fold_in_users(items, history)[0])
    return np.full(len(users), 100), np.array(vectors)


def folded(base: FitResult, since: RatingsSinceFit) -> dict[int, Float32s]:
    rows: dict[int, Float32s] = {}
    while since.waiting_items:
        chosen = since.next_round()
        if chosen.users:
            since.set_users(chosen.slots, *current(base, since, chosen.users))
        rows.update(zip(chosen.items, since.fold(chosen).vectors, strict=True))
    return rows


def expected(base: FitResult, item: int, ratings: dict[bytes, float], newer: set[bytes]) -> Float32s:
    vectors = [
        current(base, RatingsSinceFit(base.model, base), [user])[1][0]
        if user in newer
        else np.asarray(base.users)[base.rows_of([user])[0]]
        for user in ratings
    ]
    history = Histories(
        np.array([0, len(ratings)]),
        np.arange(len(ratings), dtype=np.int32),
        np.array(list(ratings.values())),
        np.full(len(ratings), NAN),
    )
    before = np.asarray(base.items)[item] if item < len(base.items) else posterior_of(base.model).prior_item
    table = np.array(vectors, dtype=np.float32)
    row: Float32s = posterior_of(base.model).fold_in_items(table, history, current=before[None])[0]
    return row


def known(base: FitResult, item: int) -> dict[bytes, float]:
    part = base.item_history(item)
    users, values = np.asarray(base.item_users[part]), np.asarray(base.item_values[part])
    return {base.user_ids(int(u), int(u) + 1)[0]: float(v) for u, v in zip(users, values, strict=True)}


def test_a_touched_item_keeps_what_only_the_fit_knows(base: FitResult) -> None:
    effect = item_layout(base.model).implicit_effect
    items = np.array(base.items)
    items[:, effect] = 0.25
    since = RatingsSinceFit(base.model, replace(base, items=items))
    since.add(table_of([("new", 1, 3, 5.0), ("new", 2, 11, 5.0)]))
    rows = folded(base, since)
    assert (rows[3][effect] == 0.25).all()
    assert (rows[11][effect] == 0.0).all()


def test_touched_items_are_what_all_of_their_ratings_say(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    rater = next(iter(known(base, 0))).decode()
    since.add(table_of([("new", 1, 0, 5.0), (rater, 6, 0, 1.0), ("new", 2, 9, 4.0)]))
    since.add(table_of([("new", 3, 0, 2.0)]))
    assert since.waiting_items == 2
    rows = folded(base, since)
    newer = {b"new", rater.encode()}
    zero = known(base, 0) | {rater.encode(): 1.0, b"new": 2.0}
    np.testing.assert_allclose(rows[0], expected(base, 0, zero, newer), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(rows[9], expected(base, 9, {b"new": 4.0}, newer), rtol=2e-4, atol=1e-5)


def test_rating_taken_back_is_gone(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    rater = next(iter(known(base, 2)))
    since.add(table_of([(rater.decode(), 6, 2, NAN)]))
    left = {user: value for user, value in known(base, 2).items() if user != rater}
    np.testing.assert_allclose(folded(base, since)[2], expected(base, 2, left, set()), rtol=2e-4, atol=1e-5)


def test_forgotten_user_counts_no_more(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([("u3", 6, 7, 5.0), ("other", 1, 7, 2.0)]))
    folded(base, since)
    rated = {item for item in range(8) if b"u3" in known(base, item)}
    since.forget(b"u3", erase_user(base.path, b"u3"))
    rows = folded(base, since)
    assert set(rows) == rated | {7}
    left = {user: value for user, value in known(base, 7).items() if value == value} | {b"other": 2.0}  # noqa: PLR0124
    np.testing.assert_allclose(rows[7], expected(base, 7, left, {b"other"}), rtol=2e-4, atol=1e-5)


def test_items_of_a_forgotten_user_who_has_not_rated_since_are_folded_in(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    rated = {item for item in range(8) if b"u3" in known(base, item)}
    since.forget(b"u3", erase_user(base.path, b"u3"))
    assert set(folded(base, since)) == rated


def test_before_any_fit_items_rest_on_the_events_alone(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, None)
    since.add(table_of([("a", 1, 3, 5.0), ("b", 1, 3, 4.0)]))
    row = folded(base, since)[3]
    np.testing.assert_allclose(
        row, expected(base, 9, {b"a": 5.0, b"b": 4.0}, {b"a", b"b"}), rtol=2e-4, atol=1e-5
    )
    assert row.shape == (base.model.item_width,)
    assert posterior_of(base.model).prior_user.shape == (base.model.user_width,)


def test_rounds_are_bounded_and_the_oldest_come_first(
    base: FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.item_updates.since_fit.ROUND_ITEMS", 3)
    monkeypatch.setattr("trainer.item_updates.since_fit.ROUND_USERS", 2)
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([(f"x{k}", 1, 20 - k, 3.0) for k in range(6)]))
    since.add(table_of([("y", 1, 30, 3.0)]))
    seen: list[int] = []
    while since.waiting_items:
        chosen = since.next_round()
        assert 1 <= len(chosen.items) <= 3
        assert len(chosen.users) <= 2
        since.set_users(chosen.slots, *current(base, since, chosen.users))
        since.fold(chosen)
        seen.extend(chosen.items)
    assert seen == [15, 16, 17, 18, 19, 20, 30]


def test_users_are_read_again_only_after_newer_events(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([("a", 1, 1, 3.0)]))
    folded(base, since)
    since.add(table_of([("b", 1, 1, 3.0)]))
    assert since.next_round().users == [b"b"]


def test_round_that_was_not_published_comes_again(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([("a", 1, 1, 3.0)]))
    chosen = since.next_round()
    since.set_users(chosen.slots, *current(base, since, chosen.users))
    since.fold(chosen)
    assert since.waiting_items == 0
    since.put_back(chosen)
    assert since.waiting_items == 1


def test_events_that_a_fit_has_seen_are_left_out() -> None:
    table = table_of([("a", 1, 1, 3.0), ("a", 2, 2, 3.0), ("a", 3, 3, 3.0)], first_ms=10)
    assert after(table, {0: (11, 0)})["n"].to_pylist() == [3]
    assert after(table, {}).num_rows == 3
