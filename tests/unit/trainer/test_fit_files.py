"""From archive segments to what a fit learns, and to items folded in since; who is erased is in no fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factors import FitSettings, Fitted, Float32s, Ratings, Scale, fit, fit_ranking, posterior_of
from tests.support.event_tables import append, event_table, free, item_ids, opened
from tests.unit.factors.factors_world import history
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, in_registry, string_array
from trainer.archive.segments import read_segment
from trainer.errors import SegmentGoneError
from trainer.fit_job.folder import FitFolder
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.result_files import erase_users, read_result, write_head, write_result
from trainer.fit_job.results import FitResult, user_hash
from trainer.fit_job.trial import as_served, newest
from trainer.item_updates.since_fit import RatingsSinceFit

NAN = float("nan")
Event = tuple[str, int, int, float]


def archived(folder: Path, events: list[Event], first_ms: int = 1, time: float = NAN) -> EpochArchive:
    archive = EpochArchive(folder, 1, guard=free)
    ms = np.arange(first_ms, first_ms + len(events))
    append(archive, *zip(*events, strict=True), stream_ms=ms, time=ms if np.isnan(time) else time)
    return archive


def test_events_are_joined_with_the_registry_by_item_id(tmp_path: Path) -> None:
    """A store that lost its end has given the rows of lost items to others since: the ids tell."""
    archive = archived(tmp_path, [("a", 1, 0, 1.0), ("a", 2, 1, 2.0), ("b", 1, 2, 3.0), ("d", 1, 0, 2.0)])
    later = [("b", 2, 1, NAN), ("a", 3, 0, 5.0), ("c", 1, 1, 4.0), ("d", 2, 0, NAN)]
    archive = archived(tmp_path, later, first_ms=10)
    # Row 1 is another item's by now, `i1` came again later, `i2` never did.
    given = load_ratings(opened(archive), string_array([b"i0", b"taken", b"rest", b"i1"]), threads=2)
    ratings = given.ratings
    assert (given.n_items, given.unknown) == (4, 1)
    assert given.user_ids.to_pylist() == ["a", "b", "d", "c"]
    assert given.user_n.tolist() == [3, 2, 2, 1]
    pairs = zip(ratings.user_row.tolist(), ratings.item_row.tolist(), ratings.value.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0, 5.0), (0, 3, 2.0), (3, 3, 4.0)]
    table = read_segment(archive.snapshot().paths[0])
    joined = in_registry(table, string_array([b"i2", b"i1"]))
    assert joined["item_id"].to_pylist() == ["i1", "i2"]
    assert joined["item_row"].to_pylist() == [1, 0]
    assert joined.schema == table.schema
    assert in_registry(table.slice(0, 0), string_array([])).num_rows == 0
    assert in_registry(table, string_array([])).num_rows == 0


def test_open_snapshot_is_read_whole_whatever_takes_its_files_away(tmp_path: Path) -> None:
    """New segments are merged every few seconds, also while a fit reads."""
    for k in range(9):
        archive = archived(tmp_path, [(f"u{k}", 1, 0, 3.0)], first_ms=1 + k)
    segments = opened(archive)
    assert archive.erase({b"u3": ALWAYS}) == 1
    assert archive.merge()
    gone = [path for path, _ in segments if not path.exists()]
    assert len(gone) >= 8
    with pytest.raises(SegmentGoneError):
        read_segment(gone[0])
    assert load_ratings(segments, item_ids(1)).n_users == 9
    assert load_ratings(opened(archive), item_ids(1)).n_users == 8


def test_what_is_told_again_is_not_new(tmp_path: Path) -> None:
    """A file that is imported again has nothing that a fit has not learned."""
    first = [("a", 1, 0, 4.0), ("a", 2, 1, 2.0), ("b", 1, 0, 5.0), ("b", 2, 2, 1.0)]
    # The same again, one of them changed, one taken back between; and what is new of a known and a new user.
    again = [
        *(("a", 3, 0, 4.0), ("a", 4, 1, 3.0), ("a", 5, 2, 4.0)),
        *(("b", 3, 0, NAN), ("b", 4, 0, 5.0), ("b", 5, 2, NAN)),
        ("c", 1, 0, 4.0),
    ]
    archived(tmp_path, first)
    archive = archived(tmp_path, again, first_ms=100)
    given = load_ratings(opened(archive), item_ids(3), string_array([b"a", b"b"]), np.array([2, 2]))
    new = given.unlearned
    users = given.user_ids.to_pylist()
    told = {
        (users[given.ratings.user_row[k]], int(given.ratings.item_row[k]), given.ratings.value[k])
        for k in new
    }
    assert told == {("a", 1, 3.0), ("a", 2, 4.0), ("c", 0, 4.0)}
    assert given.has_news
    assert load_ratings(opened(archive), item_ids(3)).unlearned.size == 0
    users, learned = string_array([b"a", b"b", b"c"]), np.array([5, 5, 1])
    for first_ms, time, has_news in ((200, 101.0, False), (300, 9e8, True)):
        archive = archived(tmp_path, [("a", first_ms, 1, 3.0)], first_ms, time)
        assert load_ratings(opened(archive), item_ids(3), users, learned).has_news == has_news


def test_the_newest_are_not_learned_yet_and_of_no_account_more_than_its_share() -> None:
    user, item = np.divmod(np.arange(8_000), 80)
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), np.full(8_000, 3.0), np.full(8_000, 1e9))
    ids = string_array(b"u%d" % k for k in range(100))
    # The ratings of the last user came last.
    shuffled = np.random.default_rng(0).permutation(np.arange(4_000, 7_920))
    unlearned = np.concatenate([shuffled, np.arange(7_920, 8_000)])
    data = FitInput(ids, np.full(100, 80), ratings, 80, np.arange(100), unlearned)
    chosen = newest(data, 400)
    assert len(np.unique(chosen)) == 400
    assert np.isin(chosen, unlearned[len(unlearned) // 2 :]).all()
    assert (chosen >= 7_920).sum() == 20 == np.bincount(ratings.user_row[chosen]).max()
    assert set(newest(data, 10**6)) == set(unlearned[len(unlearned) // 2 :])
    assert len(newest(replace(data, unlearned=unlearned[:0]), 400)) == 0


SETTINGS = FitSettings(Scale(1.0, 5.0), rank=2, link="gaussian", sweeps=4)


def table_of(events: list[Event]):  # type: ignore[no-untyped-def]  # an Arrow table
    return event_table(*zip(*events, strict=True), stream_ms=np.arange(1, 1 + len(events)))


@pytest.fixture
def base(tmp_path: Path) -> FitResult:
    rng = np.random.default_rng(0)
    users, n = np.divmod(np.arange(100), 5)
    rows = np.concatenate([rng.permutation(8)[:5] for _ in range(20)])
    archive = EpochArchive(tmp_path / "archive", 1, guard=free)
    ms = np.arange(1, 101)
    append(archive, [f"u{user}" for user in users], n + 1, rows, rng.integers(1, 6, 100), stream_ms=ms)
    given = load_ratings(opened(archive), item_ids(8))
    fitted: Fitted = fit(given.ratings, 20, 8, settings=SETTINGS, rng=rng)
    write_result(tmp_path / "fit", given, fitted, {})
    write_head(tmp_path / "fit", fit_ranking(given.ratings, 20, 8, rng=rng))
    return read_result(tmp_path / "fit")


def test_live_items_are_folded_in_where_a_hundredth_of_their_ratings_is_new(base: FitResult) -> None:
    user, item = np.append(np.arange(120), np.arange(20)).astype(np.int32), np.repeat([0, 1], [120, 20])
    ratings = Ratings(user, item.astype(np.int32), np.full(140, 5.0), np.full(140, NAN))
    ids, new = string_array(b"u%d" % k for k in range(120)), np.array([119, 139])
    data = FitInput(ids, np.full(120, 5), ratings, 8, np.arange(20), new)
    found = as_served(base, data, ratings, np.isin(np.arange(140), new), described={})
    # As bits: codes of an item may look like NaN.
    rows, before = (np.asarray(items).view(np.uint32) for items in (found.items, base.items))
    assert np.flatnonzero((rows != before).any(axis=1)).tolist() == [1]


def current(base: FitResult, since: RatingsSinceFit, users: list[bytes]) -> tuple[np.ndarray, Float32s]:
    """Stands for the store: some vector for each user that tells them apart."""
    items = np.asarray(base.items)
    vectors = []
    for user in users:
        rated = [len(user) % 8, user[-1] % 8]
        vectors.append(posterior_of(base.model).fold_in_users(items, history(rated, [1.0, 5.0]))[0])
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
    past = history(list(range(len(ratings))), list(ratings.values()))
    before = np.asarray(base.items)[item] if item < len(base.items) else posterior_of(base.model).prior_item
    table = np.array(vectors, dtype=np.float32)
    row: Float32s = posterior_of(base.model).fold_in_items(table, past, current=before[None])[0]
    return row


def known(base: FitResult, item: int) -> dict[bytes, float]:
    part = base.item_history(item)
    users, values = np.asarray(base.item_users[part]), np.asarray(base.item_values[part])
    return {base.user_ids(int(u), int(u) + 1)[0]: float(v) for u, v in zip(users, values, strict=True)}


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


def test_forgotten_user_counts_no_more(base: FitResult) -> None:
    since = RatingsSinceFit(base.model, base)
    since.add(table_of([("u3", 6, 7, 5.0), ("other", 1, 7, 2.0)]))
    folded(base, since)
    rated = {item for item in range(8) if b"u3" in known(base, item)}
    items: dict[bytes, set[int]] = {b"u3": set()}
    assert erase_users(base.path, [b"u3"], items) == 1
    since.forget(b"u3")
    since.fold_in_again(sorted(items[b"u3"]))
    rows = folded(base, since)
    assert set(rows) == rated | {7}
    left = {user: value for user, value in known(base, 7).items() if value == value} | {b"other": 2.0}  # noqa: PLR0124
    np.testing.assert_allclose(rows[7], expected(base, 7, left, {b"other"}), rtol=2e-4, atol=1e-5)


def test_no_trace_of_the_erased(tmp_path: Path, base: FitResult, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = FitFolder(tmp_path)
    folder.begin_fit()
    folder.erase([b"u1"])
    shutil.copytree(base.path, folder.new)
    assert read_result(folder.new).rows_of([b"u1"]).tolist() == [1]
    folder.erase_from_new()
    result = folder.adopt(read_result(folder.new), 7)
    assert result.rows_of([b"u0", b"u1", b"u2"]).tolist() == [0, -1, 2]
    assert (result.row_of(b"u1"), result.row_of(b"u2"), result.user_ids(1, 2)) == (None, 2, [b"\xff\xff"])
    np.testing.assert_array_equal(result.users[1], posterior_of(result.model).prior_user)
    assert np.isnan(result.item_values).sum() == (np.asarray(base.item_users) == 1).sum() > 0
    assert result.ranking_users is not None
    assert (result.ranking_users[1].any(), result.ranking_users[2].any()) == (False, True)
    assert not any(
        user_hash(b"u1").to_bytes(8, "little") in path.read_bytes() for path in result.path.iterdir()
    )
    folder.erase([b"u2"])
    assert result.rows_of([b"u2"]).tolist() == [-1]
    shutil.copytree(base.path, result.path.with_name("generation-000006"))
    durable = list[Path]()
    monkeypatch.setattr("trainer.fit_job.folder.sync_directory", lambda path: durable.extend(path.iterdir()))
    folder.keep([7])
    folder.erase([b"u2"])
    assert durable == [result.path], "a power cut brings back what was removed, not searched"
