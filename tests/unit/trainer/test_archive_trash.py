"""The trash of an archive: whole entries in, out by age or size, and no forgotten user in it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.event_tables import events_in, filled, free
from trainer.archive.events import ALWAYS
from trainer.archive.item_list import read_items, write_items
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import METADATA_KEY
from trainer.archive.trash import Overdue, Removal, Trash, TrashEntry, surplus
from trainer.errors import ArchiveRefusedError

AT = datetime(2026, 11, 26, 6, 30, 0, 125_000, tzinfo=UTC)
DAY_S = 86_400.0


def events_of(folder: Path) -> list[tuple[str, float]]:
    return events_in(sorted(folder.glob("*.parquet")), "user_id", "rating")


@pytest.fixture
def trash(tmp_path: Path) -> Trash:
    return Trash(tmp_path / "trash", guard=free, clock=lambda: AT)


def test_moved_epoch_is_whole_and_says_why(tmp_path: Path, trash: Trash) -> None:
    folder = tmp_path / "epoch-000003"
    filled(folder)
    write_items(folder, [b"i0", b"i1", b"never rated"])
    (folder / "fits" / "generation-000001").mkdir(parents=True)
    (folder / "0000000009-0000000009.r0.parquet.damaged").write_bytes(b"kept for a person")
    before = events_of(folder)
    entry = trash.move(folder, 3, "abcdef0123456789" * 2, "replaced")
    assert entry is not None
    assert entry.path == tmp_path / "trash" / "epoch-000003.abcdef01.20261126T063000125000Z"
    assert not folder.exists()
    assert events_of(entry.path) == before
    assert read_items(entry.path / "items.list").to_pylist() == ["i0", "i1", "never rated"]
    assert not (entry.path / "fits").exists()
    assert (entry.path / "0000000009-0000000009.r0.parquet.damaged").exists()
    assert (entry.epoch, entry.why, entry.at) == (3, "replaced", AT.timestamp())
    assert (entry.ratings, entry.users) == (4, 2)
    assert trash.entries() == [entry]
    assert entry.size_bytes > 1_000


def test_forgotten_user_leaves_every_entry(tmp_path: Path, trash: Trash) -> None:
    for epoch in (1, 2):
        folder = tmp_path / f"epoch-{epoch:06d}"
        filled(folder)
        Trash(tmp_path / "trash", guard=free).move(folder, epoch, "x" * 32, "replaced")
    kept = filled(tmp_path / "epoch-000003")
    entry = trash.keep(kept.snapshot().paths, 3, "x" * 32, "rebuilt")
    assert (entry.why, entry.ratings, entry.users, len(events_of(entry.path))) == ("rebuilt", 4, 2, 4)
    assert trash.erase({b"ann": ALWAYS}) == 6
    assert trash.erase({b"ann": ALWAYS}) == 0
    files = [path for path in (tmp_path / "trash").rglob("*") if path.is_file()]
    assert files
    assert not any(b"ann" in path.read_bytes() for path in files)
    assert [len(events_of(entry.path)) for entry in trash.entries()] == [2, 2, 2]
    assert len(events_of(kept.directory)) == 4, "the files that a rebuild goes on with are its own"


def entry(at_days: float, size: int) -> TrashEntry:
    return TrashEntry(Path(f"e{at_days}"), 1, "x", "replaced", at_days * DAY_S, 1, 1, size)


@pytest.mark.parametrize(
    ("entries", "removed"),
    [
        ([entry(9, 10), entry(9.5, 10)], []),
        ([entry(1, 10), entry(9, 10)], [(1, "age")]),
        ([entry(2.9, 60), entry(9.2, 80), entry(9.5, 30)], [(2.9, "age"), (9.2, "size")]),
        # One that alone is too much stays for its time, and what came before it goes.
        ([entry(8, 10), entry(9, 500)], [(8, "size")]),
    ],
)
def test_what_leaves_the_trash(entries: list[TrashEntry], removed: list[tuple[float, str]]) -> None:
    found = surplus(entries, now=10 * DAY_S, keep_s=7 * DAY_S, most_bytes=100)
    assert [(each.at / DAY_S, why) for each, why in found] == removed


def test_a_clock_that_jumps_ahead_empties_no_trash() -> None:
    old, large, keep_s = entry(1.0, 10), entry(9.0, 10), 7 * DAY_S
    overdue = Overdue()
    found: list[tuple[TrashEntry, Removal]] = [(old, "age"), (large, "size")]
    assert overdue.confirmed(found, 0.0, keep_s) == [(large, "size")]
    assert overdue.confirmed(found[:1], 3_000.0, keep_s) == []
    # It was set right, and ahead once more.
    assert overdue.confirmed([], 3_500.0, keep_s) == []
    assert overdue.confirmed(found[:1], 3_700.0, keep_s) == []
    assert overdue.confirmed(found[:1], 7_200.0, keep_s) == []
    assert overdue.confirmed(found[:1], 7_300.0, keep_s) == [(old, "age")]
    # Who keeps nothing waits for nothing.
    assert Overdue().confirmed(found[:1], 0.0, 0.0) == [(old, "age")]


def test_what_a_kill_left_half_made_is_gone_at_the_next_start(tmp_path: Path, trash: Trash) -> None:
    """No erasure looks into it."""
    kept = filled(tmp_path / "epoch-000001")
    entry = trash.keep(kept.snapshot().paths, 1, "x" * 32, "rebuilt")
    for name in ("epoch-000002.unfinished", "epoch-000003.xxxxxxxx.20261126T063000000000Z.removing"):
        (tmp_path / "trash" / name).mkdir()
        (tmp_path / "trash" / name / "0000000001-0000000001.r0.parquet").write_bytes(b"ann")
    ArchiveRoot(tmp_path, guard=free).take([])
    assert list((tmp_path / "trash").iterdir()) == [entry.path]
    assert len(events_of(kept.directory)) == 4


@pytest.mark.parametrize("number", [1, "another program"])
def test_segment_of_another_format_is_refused_untouched(tmp_path: Path, number: object) -> None:
    archive = filled(tmp_path / "epoch-000001")
    victim = archive.snapshot().paths[1]
    table = pq.read_table(victim)
    header = json.loads(table.schema.metadata[METADATA_KEY]) | {"format": number}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()}), victim)
    before = {path.name: path.read_bytes() for path in archive.directory.iterdir()}
    root = ArchiveRoot(tmp_path, guard=free)
    for look in (root.state, lambda: root.epoch(1)):
        with pytest.raises(ArchiveRefusedError, match=f"has format {number}, this version reads 2"):
            look()
    assert {path.name: path.read_bytes() for path in archive.directory.iterdir()} == before
    with pytest.raises(ArchiveRefusedError):
        archive.erase({b"ann": ALWAYS})
    assert victim.read_bytes() == before[victim.name]
