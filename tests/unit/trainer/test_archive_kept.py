"""What holds ratings is never deleted by inference: damage removes no file that something else could need."""

from pathlib import Path

import pytest

from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, spans_of
from trainer.archive.segments import read_segment
from trainer.archive.trash import Trash
from trainer.errors import ArchiveFailedError


def filled(folder: Path, segments: int = 8) -> EpochArchive:
    archive = EpochArchive(folder, 1, guard=free)
    for k in range(segments):
        table = event_table(
            ["ann", "bob"], [k + 1, k + 1], [0, 1], [3.0, 4.0], stream_ms=[10 * k + 1, 10 * k + 2]
        )
        archive.append(table, spans_of(table))
    return archive


def milliseconds(archive: EpochArchive) -> list[int]:
    return [ms for path in archive.snapshot().paths for ms in read_segment(path)[0]["stream_ms"].to_pylist()]


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["torn", "flipped"])
def test_a_damaged_segment_takes_along_none_of_those_that_it_covers(tmp_path: Path, how: str) -> None:
    archive = filled(tmp_path)
    expected = milliseconds(archive)
    before = {path: path.read_bytes() for path in archive.snapshot().paths}
    assert archive.merge()
    (merged,) = archive.snapshot().paths
    # As a kill leaves them: the merged one is there, and those that it covers are still.
    for path, content in before.items():
        path.write_bytes(content)
    again = EpochArchive(tmp_path, 1, guard=free)
    assert milliseconds(again) == expected
    assert [path.name for path in tmp_path.glob("*.parquet")] == [merged.name]
    for path, content in before.items():
        path.write_bytes(content)
    damaged(merged, how)
    again = EpochArchive(tmp_path, 1, guard=free)
    assert milliseconds(again) == expected
    assert [each.path.name for each in again.damaged] == [merged.name]
    assert merged.with_name(merged.name + ".damaged").exists()


def test_an_erasure_removes_no_damaged_file_of_the_trash(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash", guard=free)
    filled(tmp_path / "epoch-000001", segments=2)
    entry = trash.move(tmp_path / "epoch-000001", 1, "x" * 32, "replaced")
    assert entry is not None
    first, second = sorted(entry.path.glob("*.parquet"))
    damaged(first, "flipped")
    content = first.read_bytes()
    for _ in range(2):
        with pytest.raises(ArchiveFailedError, match="cannot be searched"):
            trash.erase({b"ann": ALWAYS})
        kept = first.with_name(first.name + ".damaged")
        assert kept.read_bytes() == content
    # It has gone through all the others.
    (after,) = entry.path.glob("*.parquet")
    assert after.name != second.name
    assert set(read_segment(after)[0]["user_id"].to_pylist()) == {"bob"}
    # A person decides: then the erasure ends.
    kept.unlink()
    assert trash.erase({b"ann": ALWAYS}) == 0
