"""From archive segments to what a fit learns: last wins, joined by item id, whole whatever goes meanwhile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factors import Ratings
from tests.support.event_tables import append, free, item_ids, opened
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, in_registry, string_array
from trainer.archive.segments import read_segment
from trainer.errors import SegmentGoneError
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.trial import newest

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
    given = load_ratings(opened(archive), string_array([b"i0", b"taken", b"rest", b"i1"]))
    ratings = given.ratings
    assert (given.n_items, given.unknown) == (4, 1)
    assert given.user_ids.to_pylist() == ["a", "b", "d", "c"]
    assert given.user_n.tolist() == [3, 2, 2, 1]
    pairs = zip(ratings.user_row.tolist(), ratings.item_row.tolist(), ratings.value.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0, 5.0), (0, 3, 2.0), (3, 3, 4.0)]
    table, _ = read_segment(archive.snapshot().paths[0])
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
    unlearned = np.concatenate(
        [np.random.default_rng(0).permutation(np.arange(4_000, 7_920)), np.arange(7_920, 8_000)]
    )
    data = FitInput(ids, np.full(100, 80), ratings, 80, np.arange(100), unlearned)
    chosen = newest(data, 400)
    assert len(np.unique(chosen)) == 400
    assert np.isin(chosen, unlearned[len(unlearned) // 2 :]).all()
    assert (chosen >= 7_920).sum() == 20 == np.bincount(ratings.user_row[chosen]).max()
    assert set(newest(data, 10**6)) == set(unlearned[len(unlearned) // 2 :])
    assert len(newest(replace(data, unlearned=unlearned[:0]), 400)) == 0
