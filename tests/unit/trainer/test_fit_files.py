"""From archive segments to the files of a fit: last wins, growth, warm start, erasure, and every way it
can fail.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from factors import posterior_of
from tests.support.event_tables import event_table, free, item_ids, opened
from tests.support.trainers import started_fit
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, in_registry, spans_of, string_array
from trainer.archive.item_list import write_items
from trainer.archive.segments import open_segment, read_segment
from trainer.errors import (
    SegmentGoneError,
)
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.ratings import load_ratings
from trainer.fit_job.result_files import erase_users
from trainer.fit_job.results import FitResult, user_hash

NAN = float("nan")
Event = tuple[str, int, int, float]


def archived(folder: Path, events: list[Event], first_ms: int = 1) -> EpochArchive:
    """Events (user, n, item row, rating) as one more segment."""
    archive = EpochArchive(folder, 1, guard=free)
    ms = np.arange(first_ms, first_ms + len(events))
    table = event_table(*zip(*events, strict=True), stream_ms=ms, time=ms)
    archive.append(table, spans_of(table))
    return archive


def world(n_users: int = 40, n_items: int = 15, seed: int = 0) -> list[Event]:
    """Ratings that a rank 1 model with biases explains."""
    rng = np.random.default_rng(seed)
    level, taste, kind = rng.normal(0, 0.6, n_items), rng.normal(size=n_users), rng.normal(size=n_items)
    events: list[Event] = []
    for user in range(n_users):
        for n, row in enumerate(rng.permutation(n_items)[:12], start=1):
            score = 3 + level[row] + taste[user] * kind[row] + rng.normal(0, 0.3)
            events.append((f"u{user}", n, int(row), float(np.clip(round(score), 1, 5))))
    return events


def request(archive: EpochArchive, output: Path, n_items: int = 16, **changes: object) -> FitRequest:
    ids = [b"i%d" % row for row in range(n_items)]
    base = FitRequest(
        paths=tuple(str(path) for path in archive.snapshot().paths),
        items=str(write_items(archive.directory, ids)),
        output=str(output),
        engine="variational",
        low=1.0,
        high=5.0,
        step=None,
        threads=1,
        seed=1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # fields by name


async def fitted(
    asked: FitRequest,
    started: Callable[[int], None] | None = None,
    files: Sequence[pa.OSFile] | None = None,
) -> FitResult:
    def step(name: str) -> None:
        assert name == "fit:started"
        if started is not None:
            started(started_fit())

    async with asyncio.timeout(60):
        files = files or [open_segment(Path(path)) for path in asked.paths]
        return await fit_in_process(asked, files, step=step)


def test_last_event_of_a_pair_counts(tmp_path: Path) -> None:
    archived(tmp_path, [("a", 1, 0, 1.0), ("a", 2, 1, 2.0), ("b", 1, 0, 5.0)])
    archive = archived(tmp_path, [("a", 3, 0, 4.0), ("a", 4, 1, NAN), ("c", 1, 2, NAN)], first_ms=10)
    given = load_ratings(opened(archive), item_ids(3))
    assert given.user_ids.to_pylist() == ["a", "b", "c"]
    assert given.user_n.tolist() == [4, 1, 1]
    ratings = given.ratings
    pairs = zip(ratings.user_row.tolist(), ratings.item_row.tolist(), ratings.value.tolist(), strict=True)
    assert list(pairs) == [(0, 0, 4.0), (1, 0, 5.0)]
    assert given.n_items == 3


def test_events_are_joined_with_the_registry_by_item_id(tmp_path: Path) -> None:
    """A store that lost its end has given the rows of lost items to others since: the ids tell."""
    archive = archived(tmp_path, [("a", 1, 0, 1.0), ("a", 2, 1, 2.0), ("b", 1, 2, 3.0)])
    archive = archived(tmp_path, [("b", 2, 1, NAN), ("a", 3, 0, 5.0), ("c", 1, 1, 4.0)], first_ms=10)
    # Row 1 is another item's by now, `i1` came again later, `i2` never did.
    given = load_ratings(opened(archive), string_array([b"i0", b"taken", b"rest", b"i1"]))
    ratings = given.ratings
    assert (given.n_items, given.unknown) == (4, 1)
    assert given.user_ids.to_pylist() == ["a", "b", "c"]
    assert given.user_n.tolist() == [3, 2, 1]
    pairs = zip(ratings.user_row.tolist(), ratings.item_row.tolist(), ratings.value.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0, 5.0), (0, 3, 2.0), (2, 3, 4.0)]
    table, _ = read_segment(archive.snapshot().paths[0])
    joined = in_registry(table, string_array([b"i2", b"i1"]))
    assert joined["item_id"].to_pylist() == ["i1", "i2"]
    assert joined["item_row"].to_pylist() == [1, 0]
    assert joined.schema == table.schema
    assert in_registry(table.slice(0, 0), string_array([])).num_rows == 0
    assert in_registry(table, string_array([])).num_rows == 0


def test_open_snapshot_is_read_whole_whatever_takes_its_files_away(tmp_path: Path) -> None:
    """Of a large archive under a steady stream each fit would fail: new segments are merged every few
    seconds.
    """
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


@pytest.mark.slow
async def test_erased_user_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    result = await fitted(request(archive, tmp_path / "fit"))
    rated = int((np.asarray(result.item_users) == 7).sum())
    assert erase_users(result.path, [b"u7"])
    assert not erase_users(result.path, [b"u7"])
    np.testing.assert_array_equal(result.users[7], posterior_of(result.model).prior_user)
    assert np.isnan(result.item_values).sum() == rated > 0
    assert result.ranking_users is not None
    assert not result.ranking_users[7].any()
    assert result.ranking_users[8].any()
    assert result.rows_of([b"u7", b"u8"]).tolist() == [-1, 8]
    assert result.user_ids(7, 8) == [b"\xff\xff"]
    files = b"".join(path.read_bytes() for path in result.path.iterdir())
    assert user_hash(b"u7").to_bytes(8, "little") not in files, "nor is the user known by a hash"
    again = load_ratings(opened(archive), item_ids(16), result.user_id_array())
    assert again.user_ids.to_pylist()[-1] == "u7", "who comes back is a new user"


async def test_fit_of_nothing_is_the_prior(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path / "archive", 1, guard=free)
    result = await fitted(request(archive, tmp_path / "fit", n_items=3))
    assert result.ranking is None
    assert result.users.shape == (0, result.model.user_width)
    assert len(result.items) == 3
