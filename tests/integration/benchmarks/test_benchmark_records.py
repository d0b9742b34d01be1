"""Figures of the documents name their commit; a busy machine reports none; what is fetched runs nothing."""

import lzma
import pickle
import re
from pathlib import Path

import pytest

from benchmarks.data import datasets
from benchmarks.harness import machine
from benchmarks.harness.command import Options, carry_out
from benchmarks.harness.recorded import DOCS, FIRST, LAST, Origin, write_rows
from benchmarks.harness.report import Row, Target

BUSY = machine.Watched(1.0, 0.5, 0.0)


def rows_of(path: Path) -> list[list[str]]:
    """The cells of the recorded rows."""
    inside = path.read_text().split(FIRST)[1].split(LAST)[0]
    lines = [line for line in inside.split("\n") if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", ["performance", "accuracy"])
def test_every_row_of_the_documents_names_its_commit(name: str) -> None:
    rows = rows_of(DOCS / f"{name}.md")
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 7, row
        assert re.fullmatch(r"[0-9a-f]{7,}\+?|not noted", row[-1]), row


def test_a_benchmark_replaces_its_own_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{FIRST}\n{LAST}\nafter\n")
    runs = (("predict", "a", "aaaaaaa"), ("fit", "c", "aaaaaaa"), ("predict", "b", "bbbbbbb"))
    for name, work, commit in runs:
        row = Row(work, "x", (1.0,), Target(1, 1))
        write_rows(path, name, [row], Origin(commit, "a machine"), whole=True)
    assert [(row[0], row[1], row[-1]) for row in rows_of(path)] == [
        ("`predict`", "b", "bbbbbbb"),
        ("`fit`", "c", "aaaaaaa"),
    ]


@pytest.mark.parametrize(("force", "code"), [(False, 3), (True, 0)])
def test_a_busy_machine_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, code: int
) -> None:
    monkeypatch.setattr(machine.Watch, "since", lambda _: BUSY)
    options = Options(force=force, output=tmp_path)
    assert carry_out("name", lambda *_: [Row("work", "x", (1.0,))], options) == code
    assert (tmp_path / "name.json").exists() == force


def test_a_pickle_that_wants_to_do_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        datasets.read_frame(lzma.compress(pickle.dumps(Path)))
