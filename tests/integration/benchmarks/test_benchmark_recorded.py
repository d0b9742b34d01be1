"""What `--record` writes into the documents, and that these have nothing else between their markers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.table import Table

from benchmarks.__main__ import main
from benchmarks.errors import BenchmarkError
from benchmarks.harness import command, machine
from benchmarks.harness.command import Options, carry_out
from benchmarks.harness.recorded import (
    DOCS,
    FIRST,
    LAST,
    Origin,
    has_output,
    origin,
    output_markers,
    write_output,
    write_rows,
)
from benchmarks.harness.report import Row, Target, at_most
from tests.support.servers import missing

OLD, NEW = Origin("aaaaaaa", "a machine"), Origin("bbbbbbb+", "another machine")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "performance.md"
    path.write_text(f"# Title\n\nbefore\n\n{FIRST}\n{LAST}\n\nafter\n")
    return path


def rows_of(path: Path) -> list[list[str]]:
    """The cells of the recorded rows."""
    inside = path.read_text().split(FIRST)[1].split(LAST)[0]
    lines = [line for line in inside.split("\n") if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_a_row_has_figure_goal_floor_verdict_and_commit(document: Path) -> None:
    row = Row("GET | p99", "ms", (4.0, 5.0, 6.0), at_most(3, 5), against="bare", detail="5 against 4")
    write_rows(document, "predict", [row, Row("other", "x", skipped="no faiss")], OLD, whole=True)
    figure = "5 ms (bare; 5 against 4; 3 values, spread 40%)"
    assert rows_of(document) == [
        ["`predict`", "GET \\| p99", figure, "<= 3", "<= 5", "floor", "aaaaaaa"],
        ["`predict`", "other", "no faiss", "", "", "skipped", "aaaaaaa"],
    ]
    text = document.read_text()
    assert "- `predict` of aaaaaaa: a machine" in text
    assert text.startswith("# Title\n\nbefore\n\n")
    assert text.endswith("\n\nafter\n")


def test_a_benchmark_replaces_its_own_rows_alone(document: Path) -> None:
    def recorded(name: str, works: str, of: Origin, *, whole: bool) -> None:
        write_rows(document, name, [Row(work, "x", (1.0,), Target(1, 1)) for work in works], of, whole=whole)

    recorded("predict", "ab", OLD, whole=True)
    recorded("fit", "c", OLD, whole=True)
    recorded("predict", "bd", NEW, whole=True)
    assert [(row[0], row[1], row[-1]) for row in rows_of(document)] == [
        ("`predict`", "b", "bbbbbbb+"),
        ("`predict`", "d", "bbbbbbb+"),
        ("`fit`", "c", "aaaaaaa"),
    ]
    text = document.read_text()
    assert "`predict` of aaaaaaa" not in text
    assert "`fit` of aaaaaaa" in text
    # Of a benchmark that measured a part, the others stay with the commit that they are of.
    recorded("fit", "e", NEW, whole=False)
    assert [row[1:2] + row[-1:] for row in rows_of(document)][2:] == [["c", "aaaaaaa"], ["e", "bbbbbbb+"]]
    assert document.read_text().count("- `fit` of ") == 2
    recorded("fit", "ce", NEW, whole=False)
    assert document.read_text().count("- `fit` of ") == 1


def test_printed_tables_replace_those_before(tmp_path: Path) -> None:
    path, (first, last) = tmp_path / "a.md", output_markers("accuracy cold")
    path.write_text(f"x\n{first}\nbefore\n{last}\ny\n")
    table = Table(title="errors")
    table.add_column("RMSE")
    table.add_row("0.5")
    write_output(path, "accuracy cold", [table], NEW)
    text = path.read_text()
    assert text.startswith(f"x\n{first}\n\nOf bbbbbbb+: another machine\n\n```text\n")
    assert text.endswith(f"```\n\n{last}\ny\n")
    assert "before" not in text
    assert "0.5" in text
    assert not any(line.endswith(" ") for line in text.split("\n"))
    with pytest.raises(BenchmarkError, match="has no place"):
        write_output(path, "accuracy warm", [table], NEW)
    with pytest.raises(BenchmarkError, match="has no place"):
        write_rows(path, "fit", [], NEW, whole=True)


def test_the_commit_says_whether_the_checkout_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    if shutil.which("git") is None:
        missing("git")
    assert origin(tmp_path / "nowhere").commit == "unknown"
    git("init", "-q")
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/a.md"):
        (tmp_path / name).write_text("1\n")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short=7", "HEAD")
    assert origin(tmp_path).commit == commit
    # What a record before has written is no other code.
    (tmp_path / "docs" / "a.md").write_text("2\n")
    assert origin(tmp_path).commit == commit
    (tmp_path / "code.py").write_text("2\n")
    assert origin(tmp_path).commit == f"{commit}+"


def test_a_benchmark_records_what_it_printed(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Watch, "since", lambda _: machine.Watched(1.0, 0.5, 0.0))
    monkeypatch.setattr(command, "DOCS", document.parent)
    options = Options(output=document.parent, record=True, force=True)
    assert carry_out("fit", lambda *_: [Row("work", "x", (1.0,), Target(1, 1))], options) == 0
    assert [row[:2] for row in rows_of(document)] == [["`fit`", "work"]]
    # On a busy machine it says so.
    assert "not to be trusted: other processes used 50%" in document.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "--scale", "0.5"), "full sizes"),
        (("accuracy", "--resume"), "whole sections"),
        (("accuracy", "--folds", "1"), "whole sections"),
        (("ranking", "--repeats", "1"), "whole sets"),
    ],
)
def test_parts_are_not_recorded(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--record"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["performance", "accuracy"])
def test_every_row_of_the_documents_names_its_commit(name: str) -> None:
    rows = rows_of(DOCS / f"{name}.md")
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 7, row
        assert re.fullmatch(r"[0-9a-f]{7,}\+?|not noted", row[-1]), row


def test_the_accuracy_document_has_a_place_for_each_part() -> None:
    from benchmarks.accuracy import NAME, SECTIONS
    from benchmarks.quality import ranking

    parts = [f"{NAME} {each}" for each in SECTIONS] + [f"{ranking.NAME} {each}" for each in ranking.SETS]
    assert [part for part in parts if not has_output(DOCS / "accuracy.md", part)] == []
