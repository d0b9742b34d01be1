"""From archive segments to the files of a fit: last wins, growth, warm start, erasure, and every way it
can fail.
"""

import asyncio
import dataclasses
import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from factors import Histories, RankingHead, Ratings, head_from_bytes, posterior_of
from tests.support.event_tables import event_table, free, item_ids, opened
from tests.support.trainers import started_fit
from tests.support.waiting import wait_until, wait_until_async
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import in_registry, spans_of, string_array
from trainer.archive.item_list import read_items, write_items
from trainer.archive.segments import open_segment, read_segment
from trainer.errors import (
    ArchiveFailedError,
    FitFailedError,
    SegmentDamagedError,
    SegmentGoneError,
)
from trainer.fit_job.job import FitRequest, of_fields, run_fit
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.ratings import load_ratings
from trainer.fit_job.result_files import erase_user, read_result, unnamed
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


async def test_what_a_fit_learns_does_not_depend_on_its_threads(tmp_path: Path) -> None:
    archive = archived(tmp_path, world(400, 60))
    alone, together = [
        await fitted(request(archive, tmp_path / f"fit-{threads}", n_items=60, threads=threads))
        for threads in (1, 3)
    ]
    assert np.array_equal(alone.users, together.users)
    assert np.array_equal(alone.items, together.items)
    assert alone.ranking is not None
    assert together.ranking is not None
    assert np.array_equal(alone.ranking, together.ranking)


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


def test_users_of_the_earlier_fit_come_first_and_the_erased_are_gone(tmp_path: Path) -> None:
    archive = archived(tmp_path, [("new", 1, 0, 1.0), ("b", 1, 0, 5.0), ("a", 1, 0, 3.0)])
    given = load_ratings(opened(archive), item_ids(1), string_array([b"a", b"\xff\xff", b"b"]))
    assert given.user_ids.to_pylist() == ["a", "b", "new"]
    assert given.kept.tolist() == [0, 2]
    assert given.ratings.value.tolist() == [3.0, 5.0, 1.0]


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
    assert archive.erase(b"u3", 1) == 1
    assert archive.merge()
    gone = [path for path, _ in segments if not path.exists()]
    assert len(gone) >= 8
    with pytest.raises(SegmentGoneError):
        read_segment(gone[0])
    assert load_ratings(segments, item_ids(1)).n_users == 9
    assert load_ratings(opened(archive), item_ids(1)).n_users == 8


def test_snapshot_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    archive = archived(tmp_path, world())
    (path,) = archive.snapshot().paths
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(ArchiveFailedError, match="Too many open files"):
            archive.open_snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    path.unlink()
    with pytest.raises(SegmentDamagedError, match="is missing"):
        archive.open_snapshot()


def test_item_list_is_what_was_written(tmp_path: Path) -> None:
    ids = [b"a", "\u00e9".encode(), b"x" * 256]
    path = write_items(tmp_path, ids)
    assert read_items(path).cast("binary").to_pylist() == ids
    assert len(read_items(write_items(tmp_path, []))) == 0
    assert len(read_items(tmp_path / "none")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["items.list"]
    path = write_items(tmp_path, ids)
    for damage in (path.read_bytes()[:-30], b"", b"PAR1" * 10):
        path.write_bytes(damage)
        with pytest.raises(ArchiveFailedError, match="damaged"):
            read_items(path)


def test_each_rating_has_the_context_of_its_last_event(tmp_path: Path) -> None:
    archived(tmp_path, [("a", 1, 0, 1.0)])
    archive = EpochArchive(tmp_path, 1, guard=free)
    for first, contexts in ((2, [[7.0, NAN], [8.0, NAN], [NAN, 9.0]]), (3, [[NAN], [5.0], [NAN]])):
        ms = np.arange(3) + 10 * first
        rows = np.array([0, 1, first])
        table = event_table(
            ["a", "b", "a"], [first, first, first], rows, [3.0] * 3, stream_ms=ms, context=contexts
        )
        archive.append(table, spans_of(table))
    given = load_ratings(opened(archive), item_ids(4)).ratings
    assert given.context is not None
    found = {
        (user, item): context
        for user, item, context in zip(
            given.user_row.tolist(),
            given.item_row.tolist(),
            np.nan_to_num(given.context).tolist(),
            strict=True,
        )
    }
    assert found == {(0, 0): [0.0, 0.0], (1, 1): [5.0, 0.0], (0, 2): [0.0, 9.0], (0, 3): [0.0, 0.0]}


def test_what_is_retired_is_not_learned() -> None:
    context = np.array([[1, 5, 0], [2, 6, 1], [NAN, 7, 2]], dtype=np.float32)
    rows = np.arange(3, dtype=np.int32)
    given = Ratings(rows, rows, np.full(3, 3.0), np.zeros(3), context=context)
    for retired, wanted in (
        ((), context),
        (((0, None),), [[NAN, 5, 0], [NAN, 6, 1], [NAN, 7, 2]]),
        (((1, None), (2, 1)), [[1, NAN, 0], [2, NAN, NAN], [NAN, NAN, 2]]),
    ):
        found = of_fields(given, 3, retired)
        np.testing.assert_array_equal(found.context, wanted)
    assert of_fields(given, 0).context is None


@pytest.mark.slow
async def test_erased_user_leaves_no_context_in_the_files(tmp_path: Path) -> None:
    events = world()
    archive = EpochArchive(tmp_path / "archive", 1, guard=free)
    context = np.where(np.array([user == "u7" for user, *_ in events]), 1234.5, 2.25)[:, None]
    table = event_table(*zip(*events, strict=True), stream_ms=np.arange(len(events)), context=context)
    archive.append(table, spans_of(table))
    result = await fitted(request(archive, tmp_path / "fit", context_kinds=("number", "number")))
    assert result.item_contexts is not None
    of_user = np.asarray(result.item_users) == 7
    # The second field was given with no rating.
    assert (np.asarray(result.item_contexts)[of_user, 0] == 1234.5).all()
    assert erase_user(result.path, b"u7")
    files = b"".join(path.read_bytes() for path in result.path.iterdir())
    assert np.float32(1234.5).tobytes() not in files
    assert np.float32(2.25).tobytes() in files


def test_nothing_archived_is_an_empty_input() -> None:
    given = load_ratings([], item_ids(0))
    assert (given.n_users, given.n_items, len(given.ratings.value)) == (0, 0, 0)


@pytest.mark.slow
async def test_fit_leaves_complete_files_that_a_next_fit_starts_from(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    first = await fitted(request(archive, tmp_path / "first"))
    assert first.users.shape == (40, first.model.user_width)
    assert first.items.shape == (16, first.model.item_width)
    assert first.metrics["unseen"] == 24
    assert first.metrics["loss"] < first.metrics["baseline_loss"] * 1.2
    assert first.rows_of([b"u3", b"unknown", b"u39"]).tolist() == [3, -1, 39]
    assert first.user_ids(3, 5) == [b"u3", b"u4"]
    ratings = [first.item_history(row) for row in (0, 15, 99)]
    assert ratings[0].stop > ratings[0].start
    assert all(part.stop == part.start for part in ratings[1:])
    archived(tmp_path / "archive", [("late", 1, 17, 5.0), ("late", 2, 0, 5.0)], first_ms=10_000)
    archive = EpochArchive(tmp_path / "archive", 1, guard=free)
    second = await fitted(request(archive, tmp_path / "second", n_items=18, live=str(first.path)))
    assert second.n_users == 41
    assert len(second.items) == 18
    assert second.user_ids(0, 3) == [b"u0", b"u1", b"u2"]
    assert not list(tmp_path.glob("*.tmp"))  # noqa: ASYNC240 - a look at a local folder


@pytest.mark.slow
async def test_erased_user_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    result = await fitted(request(archive, tmp_path / "fit"))
    rated = int((np.asarray(result.item_users) == 7).sum())
    assert erase_user(result.path, b"u7")
    assert not erase_user(result.path, b"u7")
    np.testing.assert_array_equal(result.users[7], posterior_of(result.model).prior_user)
    assert np.isnan(result.item_values).sum() == rated > 0
    assert result.ranking_users is not None
    assert not result.ranking_users[7].any()
    assert result.ranking_users[8].any()
    assert result.rows_of([b"u7", b"u8"]).tolist() == [-1, 8]
    assert result.user_ids(7, 8) == [b"\xff\xff"]
    again = load_ratings(opened(archive), item_ids(16), result.user_id_array())
    assert again.user_ids.to_pylist()[-1] == "u7", "who comes back is a new user"


async def test_erased_user_is_not_recognised_by_a_hash_or_by_what_was_rated(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    result = await fitted(request(archive, tmp_path / "fit"))
    first = int(result.hash_rows[0])
    users = sorted({7, 8, first})
    before = np.array(result.item_users)
    items = {user: set(result.items_of(user).tolist()) for user in users}
    for user in users:
        # And those of which others had been given what was another's.
        assert set(erase_user(result.path, b"u%d" % user)) >= items[user] > set()
        files = b"".join(path.read_bytes() for path in result.path.iterdir())
        assert user_hash(b"u%d" % user).to_bytes(8, "little") not in files
    assert (np.diff(result.hashes.astype(object)) >= 0).all(), "in order, for those who are searched for"
    left = [user for user in range(40) if user not in users]
    assert result.rows_of([b"u%d" % user for user in left]).tolist() == left
    gone = np.isin(before, users)
    assert (np.isnan(result.item_values) == gone).all()
    # Of 16 items of a world of 40 users few have been rated by so many that no other user was found.
    stayed = (np.asarray(result.item_users) == before)[gone]
    assert stayed.mean() < 0.2
    assert (np.asarray(result.item_users)[~gone] == before[~gone]).all()
    # Nothing that a user rated is taken back by what was another's.
    pairs = list(zip(np.repeat(np.arange(16), np.diff(result.item_indptr)), result.item_users, strict=True))
    held = {pair for pair, is_gone in zip(pairs, gone, strict=True) if not is_gone}
    assert not held & {pair for pair, is_gone in zip(pairs, gone, strict=True) if is_gone}


async def test_user_is_erased_whose_hash_is_damaged(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    result = await fitted(request(archive, tmp_path / "fit"))
    hashes = np.load(result.path / "hashes.npy")
    np.save(result.path / "hashes.npy", np.zeros_like(hashes))
    assert erase_user(result.path, b"u12")
    assert b"u12" not in (result.path / "id_bytes.npy").read_bytes()


@pytest.mark.slow
async def test_fit_has_a_ranking_head_that_the_next_one_begins_from(tmp_path: Path) -> None:
    # Of so many ratings choices are made.
    archive = archived(tmp_path / "archive", world(n_users=100))
    first = await fitted(request(archive, tmp_path / "first"))
    head, vectors = head_of(first), first.ranking_users
    assert vectors is not None
    data = load_ratings(opened(archive), item_ids(16))
    offsets = np.searchsorted(data.ratings.user_row, np.arange(data.n_users + 1))
    histories = Histories(offsets, data.ratings.item_row, data.ratings.value, data.ratings.time)
    users = head.fold_in_users(histories, recency=False)
    np.testing.assert_allclose(vectors.astype(np.float64), users, rtol=1e-5, atol=1e-6)
    archived(tmp_path / "archive", [("new", n, n, 4.0) for n in range(1, 5)], first_ms=1_000)
    second = await fitted(request(archive, tmp_path / "second", live=str(first.path)))
    assert head_of(second).parameters.decided == head.parameters.decided > 0
    assert second.metrics["ranking_negatives"] == first.metrics["ranking_negatives"]


@pytest.mark.slow
async def test_damaged_head_is_not_begun_from(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    first = await fitted(request(archive, tmp_path / "first"))
    np.save(first.path / "ranking.npy", np.zeros(100, np.uint8))
    second = await fitted(request(archive, tmp_path / "second", live=str(first.path)))
    assert len(head_of(second).items) == len(second.items)


async def test_fit_without_a_ranking_head_is_read(tmp_path: Path) -> None:
    result = await fitted(request(archived(tmp_path / "archive", world()), tmp_path / "fit"))
    # As an engine without a head leaves it.
    for name in ("ranking", "ranking_users"):
        (result.path / f"{name}.npy").unlink()
    old = read_result(result.path)
    assert old.ranking is None
    assert old.ranking_users is None
    assert erase_user(old.path, b"u7")


def head_of(result: FitResult) -> RankingHead:
    assert result.ranking is not None
    return head_from_bytes(result.ranking.tobytes(), len(result.items))


async def test_fit_of_nothing_is_the_prior(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path / "archive", 1, guard=free)
    result = await fitted(request(archive, tmp_path / "fit", n_items=3))
    assert result.ranking is None
    assert result.users.shape == (0, result.model.user_width)
    assert len(result.items) == 3


async def test_damaged_segment_is_named(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    victim = archive.snapshot().paths[0]
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(FitFailedError, match="unreadable") as caught:
        await fitted(request(archive, tmp_path / "fit"))
    assert caught.value.damaged == victim


async def test_fit_learns_its_snapshot_though_the_files_are_gone(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    asked = request(archive, tmp_path / "fit")
    _, files = archive.open_snapshot()
    archive.erase(b"u1", 100)
    assert asked.paths[0] not in map(str, archive.snapshot().paths)
    assert (await fitted(asked, files=files)).n_users == 40


async def test_refused_input_is_permanent(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", [("a", 1, 0, 77.0)])
    with pytest.raises(FitFailedError, match="scale") as caught:
        await fitted(request(archive, tmp_path / "fit"))
    assert caught.value.permanent


async def test_unwritable_output_is_told(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(FitFailedError):
        await fitted(request(archive, blocked / "fit"))


@pytest.mark.fit_process
async def test_killed_fit_leaves_nothing(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    asked = request(archive, tmp_path / "fit")
    with pytest.raises(FitFailedError, match="signal 9"):
        await fitted(asked, lambda pid: os.kill(pid, signal.SIGKILL))
    assert not (tmp_path / "fit").exists()


@pytest.mark.fit_process
@pytest.mark.slow
async def test_fit_that_is_killed_at_its_ranking_head_is_a_fit_without_one(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world(n_users=400, n_items=60))
    asked = request(archive, tmp_path / "fit", n_items=60)

    def kill_later(pid: int) -> None:
        wait_until((tmp_path / "fit.ratings").is_dir, "the fit of the ratings")
        os.kill(pid, signal.SIGKILL)

    pids: list[int] = []
    fitting = asyncio.create_task(fitted(asked, pids.append))
    await wait_until_async(lambda: bool(pids), "the process of the fit")
    await asyncio.to_thread(kill_later, pids[0])
    result = await fitting
    assert (result.ranking, result.ranking_users, result.head()) == (None, None, None)
    assert result.n_users == 400
    assert not [name for name in result.metrics if name.startswith("ranking")]
    assert result.path.exists()
    assert not unnamed(result.path).exists()
    # And a fit may start from it.
    again = await fitted(request(archive, tmp_path / "again", n_items=60, live=str(result.path)))
    assert again.ranking is not None


async def test_fit_whose_ranking_head_cannot_be_written_is_a_fit_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.fit_job.ranking.write_head", disk_full)
    archive = archived(tmp_path / "archive", world())
    files = [os.open(segment, os.O_RDONLY) for segment in archive.snapshot().paths]
    run_fit(request(archive, tmp_path / "fit", descriptors=tuple(files)), lambda _: None)
    assert read_result(tmp_path / "fit").ranking is None


@pytest.mark.fit_process
async def test_cancelled_fit_ends_its_process(tmp_path: Path) -> None:
    archive = archived(tmp_path / "archive", world())
    pids: list[int] = []
    task = asyncio.create_task(fitted(request(archive, tmp_path / "fit"), pids.append))
    await wait_until_async(lambda: bool(pids), "the process of the fit")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
