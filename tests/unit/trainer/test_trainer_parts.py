"""Small parts of the trainer, and what it decides from values alone: when to fit, what may go live."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from factors import MANY_RATINGS
from featurestore.errors import FULL_REASONS, LeaseLost
from featurestore.generations.manifest import read_pointer
from featurestore.ratings.stream import Progress
from tests.support.event_tables import free
from tests.support.waiting import some
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.erasures import Erasures, Ledger, ledger_files, parse_ledger
from trainer.archive.events import Span
from trainer.archive.fence import problem_in
from trainer.capacity import LEAST_FREE_BYTES, MOST_FREE_BYTES, Space, disk, fullest, memory
from trainer.consume.rebuild import is_incomplete
from trainer.errors import LedgerDamagedError
from trainer.fit_job import compiling
from trainer.fit_job.compiling import compile_ahead
from trainer.gate import Evidence, Policy, judge
from trainer.leadership import Leadership
from trainer.schedule import Decision, Rules, Situation, decide

GB = 2**30


@pytest.mark.parametrize(
    ("total", "kept"), [(GB // 4, LEAST_FREE_BYTES), (10 * GB, GB // 2), (4_000 * GB, MOST_FREE_BYTES)]
)
def test_a_disk_keeps_a_share_within_bounds_and_room_for_a_rewrite(total: int, kept: int) -> None:
    assert disk("archive_disk", total, total).needed_bytes == kept
    assert disk("store_disk", total, total, 3 * GB).needed_bytes == kept + 3 * GB


def test_a_store_without_a_limit_is_never_full() -> None:
    assert memory(GB, 0) is None
    space, beyond = some(memory(95 * GB, 100 * GB)), some(memory(120 * GB, 100 * GB))
    assert (fullest([space], None), beyond.free_bytes, fullest([space, beyond], None)) == (None, 0, beyond)


def test_what_is_refused_is_taken_again_only_with_clearly_more_room() -> None:
    some, few, more, enough = (Space("store_disk", free, 1000, 100) for free in (100, 99, 109, 111))
    assert [fullest([space], None) for space in (some, few)] == [None, few]
    assert [fullest([space], "store_disk") for space in (more, enough)] == [more, None]
    assert fullest([more], "archive_disk") is None


@pytest.mark.parametrize(
    ("text", "at_9", "at_10"),
    [
        *((f"{reason}:10", reason, None) for reason in FULL_REASONS),
        # Of a leader of another version, and what no leader wrote.
        ("something_else:10", "store_disk", None),
        ("store_disk:soon", None, None),
        ("", None, None),
    ],
)
def test_what_a_leader_said_holds_until_it_ends(text: str, at_9: str | None, at_10: str | None) -> None:
    pointer = read_pointer({b"epoch": b"1", b"full": text.encode()}, b"live")
    assert (pointer.full_at(9.0), pointer.full_at(10.0)) == (at_9, at_10)


RECORD = 32


def added(folder: Path, *erased: tuple[bytes, int]) -> Path:
    Erasures(folder, guard=free).add(erased)
    (path,) = ledger_files(folder)
    return path


def read(path: Path, *, skip_damaged: bool = False) -> Ledger:
    return parse_ledger(path, path.read_bytes(), skip_damaged=skip_damaged)


def test_each_user_with_the_last_time(tmp_path: Path) -> None:
    added(tmp_path, (b"ann", 1000), (b"bob", 2000), (b"ann", 3000))
    path = added(tmp_path, (b"ann", 2500))
    ledger = read(path)
    assert ledger.erased_at([b"bob", b"cid", b"ann"]).tolist() == [2000, 0, 3000]
    assert ledger.erased_at([]).tolist() == []
    assert len(ledger) == 2
    assert b"ann" not in path.read_bytes()
    assert path.stat().st_size == 5 * RECORD


def test_a_part_of_a_record_that_a_power_cut_left_stays_and_another_file_is_begun(tmp_path: Path) -> None:
    torn = added(tmp_path, (b"ann", 1), (b"bob", 2))
    content = torn.read_bytes() + bytes(range(16))
    torn.write_bytes(content)
    assert read(torn).erased_at([b"ann", b"bob"]).tolist() == [1, 2]
    for _ in range(2):
        Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert torn.read_bytes() == content
    (other,) = set(ledger_files(tmp_path)) - {torn}
    assert read(other).erased_at([b"ann", b"bob", b"cid"]).tolist() == [0, 0, 3]


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2), (b"cid", 3))
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)
    assert read(path, skip_damaged=True).erased_at([b"ann", b"bob", b"cid"]).tolist() == [1, 0, 3]


ROOT = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def mounted(kind: str, options: str, place: str = "/mnt/share") -> str:
    return f"{ROOT}\n90 22 0:50 / {place} rw,relatime shared:9 - {kind} host:/export rw,{options}\n"


@pytest.mark.parametrize(
    ("mounts", "told"),
    [
        (ROOT, None),
        (mounted("nfs4", "vers=4.2,hard,lookupcache=none"), None),
        (mounted("nfs", "vers=3,hard,noac"), None),
        (mounted("nfs4", "vers=4.2,hard"), "without lookupcache=none"),
        (mounted("nfs4", "soft,lookupcache=none"), "mount it hard"),
        (mounted("cifs", "vers=3.1"), "is cifs, of which it is not known"),
        (mounted("xfs", "attr2"), None),
        ("broken line\n" + mounted("fuse.sshfs", "user_id=0"), "is fuse.sshfs"),
    ],
)
def test_mounts(mounts: str, told: str | None) -> None:
    found = problem_in(mounts, "/mnt/share/archive/foldin")
    assert (found is None) == (told is None)
    assert told is None or told in str(found)
    assert problem_in(mounts, "/mnt/shared") is None


async def test_loops_are_compiled_once_so_many_events_are_archived_that_a_fit_may_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archived, ran = iter([0, MANY_RATINGS // 100, MANY_RATINGS // 2]), tmp_path / "ran"
    script = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", script])
    monkeypatch.setattr(compiling, "_LOOK_S", 0.01)
    await compile_ahead(lambda: next(archived))
    assert ran.exists()
    assert not list(archived)
    assert caplog.text == ""
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", "exit(1)"])
    await compile_ahead(lambda: MANY_RATINGS)
    assert "loops_not_compiled_apart exit_code=1" in caplog.text


CALM = Situation(100.0, requested=False, held=False, fitted_events=0, files_missing=False)
PACED = {"fitted_events": 10**6, "paced_until": 150.0}
GOOD = Evidence(True, *(10, 5, 10, 5), 1000, 0.9, 1.0, n_newest=500, live_ratio=1.0, live_ratio_error=0.01)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Decision(None)),
        ({"requested": True, "held": True, "not_before": 1e9}, Decision("requested")),
        ({"new_events": 100}, Decision("events")),
        # While an import runs the first fit waits for its end, within bounds.
        ({"new_events": 100, "first_new_at": 95.0, "importing": True}, Decision(None, 595.0)),
        ({"new_events": 100, "first_new_at": -500.0, "importing": True}, Decision("events")),
        ({"new_events": 100, "fitted_events": 1, "importing": True}, Decision("events")),
        ({"requested": True, "importing": True}, Decision("requested")),
        ({"new_events": 99, "first_new_at": 95.0}, Decision(None, 55.0)),
        ({"new_events": 1, "first_new_at": 40.0}, Decision("seconds")),
        ({"new_events": 1000, "lately": 100, "first_new_at": 95.0}, Decision(None, 55.0)),
        ({"new_events": 1000, "held": True}, Decision(None)),
        ({"new_events": 1000, "not_before": 130.0}, Decision(None, 30.0)),
        ({"files_missing": True}, Decision("files")),
        ({"head_missing": True, "paced_until": 10_000.0}, Decision("head")),
        (PACED | {"new_events": 5_000}, Decision(None, 50.0)),
        (PACED | {"new_events": 1, "first_new_at": 0.0}, Decision(None, 50.0)),
        (PACED | {"new_events": 1, "first_new_at": 99.0}, Decision(None, 59.0)),
        (PACED | {"new_events": 5_000, "paced_until": 100.0}, Decision("events")),
        (PACED | {"new_events": 5_000, "requested": True}, Decision("requested")),
        (PACED | {"new_events": 5_000, "files_missing": True}, Decision("files")),
        # The first fit of a store comes at once, and then as it grows.
        (PACED | {"new_events": 100, "fitted_events": 0}, Decision("events")),
        (PACED | {"new_events": 99, "fitted_events": 0, "first_new_at": 95.0}, Decision(None, 55.0)),
        (PACED | {"new_events": 200, "fitted_events": 1_000, "paced_until": 100.0}, Decision("events")),
    ],
)
def test_when_to_fit(changes: dict[str, float], expected: Decision) -> None:
    rules = Rules() if "paced_until" in changes else Rules(100, 60.0)
    assert decide(replace(CALM, **changes), rules) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"finite": False}, "not finite"),
        ({"n_users": 9}, "9 users"),
        ({"n_items": 4}, "4 items"),
        ({"loss": 1.06}, "baseline"),
        ({"loss": math.nan}, "baseline"),
        ({"loss": 1.06, "n_held_out": 99}, None),
        ({"live_ratio": 1.05, "live_ratio_error": 0.016}, "live generation"),
        ({"live_ratio": 1.05, "live_ratio_error": 0.017}, None),
        ({"live_ratio": 1.05, "n_newest": 99}, None),
        ({"live_ratio": 1.019, "live_ratio_error": 0.0}, None),
    ],
)
def test_what_may_go_live(changes: dict[str, float], reason: str | None) -> None:
    why = judge(replace(GOOD, **changes), Policy())  # type: ignore[arg-type]
    assert (why is None) if reason is None else (why is not None and reason in why)


def test_leadership_ends_before_the_lease_does() -> None:
    now = 0.0
    leadership = Leadership(None, 5.0, 0.0, clock=lambda: now)  # type: ignore[arg-type]  # the lease is not asked
    now = 4.9
    leadership.check()
    now = 5.0
    with pytest.raises(LeaseLost):
        leadership.check()


def test_archive_that_missed_trimmed_events_is_incomplete() -> None:
    snapshot = Snapshot(1, (), {0: Span((1, 0), (9, 0), 10)}, 10)
    assert not is_incomplete(snapshot, {0: Progress((9, 12), 10)}, holes=False)
    assert is_incomplete(snapshot, {0: Progress((9, 12), 11)}, holes=False)
    assert is_incomplete(snapshot, {1: Progress((9, 1), 1)}, holes=False)
    assert is_incomplete(snapshot, {}, holes=True)
