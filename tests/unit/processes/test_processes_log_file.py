"""Log files are bounded, and cost lines at most."""

from pathlib import Path

from processes.log_file import BoundedLog


def test_a_log_is_bounded(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "part.log", max_bytes=100)
    for number in range(50):
        log.write(b"%09d\n" % number)
    log.close()
    log.write(b"dropped")
    assert (tmp_path / "part.log").read_bytes().splitlines()[-1] == b"000000049"
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "part.log": 100,
        "part.log.1": 100,
    }


def test_a_log_that_cannot_be_renamed_loses_lines_only(tmp_path: Path) -> None:
    (tmp_path / "part.log.1").mkdir()
    log = BoundedLog(tmp_path / "part.log", max_bytes=10)
    for _ in range(5):
        log.write(b"123456789\n")
    log.close()
