"""Writes what a benchmark has measured into a document, with the commit that it measured. Run as a program,
it renews the marks of what is older than the code that it is about.

Invariant: but for marks, only lines between markers are changed, and of these only those of what was
measured. Every row and every output says its commit, with a `+` where the checkout was not as it is there.
"""

import re
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.harness import machine
from benchmarks.harness.report import Row, number
from evaluation.report import new_table, write_whole

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FIRST, LAST = "<!-- rows, by --record -->", "<!-- end of rows -->"
HEADINGS = ("benchmark", "row", "figure", "goal", "floor", "verdict", "commit")
# Lines of the table before its first row: headings, and the rule under them.
HEAD_LINES = 2
# As wide as the widest table of docs/accuracy.md.
TEXT_WIDTH = 130
GIT_S = 30.0  # git looks at every file: seconds on a busy disk
# Beside the commit of a row where what it is about has changed since; by benchmark, where that is not all.
OLDER, ABOUT = " (older)", {"`fit`": ("factors",)}
# But for what is written from the rows themselves.
NOT_ABOUT = ":(exclude)foldin/sizing/measured.py"
PRODUCT = "factors", "featurestore", "foldin", "processes", "requirements", "service", "trainer"
# A commit in a line of the table of rows, or above printed tables.
_COMMIT = re.compile(r"^(\| (`\w+`) \|.*\| |Of )([0-9a-f]{7}\+?|unknown)(?: \(older\))?( \||: .*)$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where figures come from. `machine`: in a few words, with what must be known of the run."""

    commit: str
    machine: str

    def about(self, remarks: Iterable[str]) -> "Origin":
        """Return the same with remarks on the run."""
        return Origin(self.commit, "; ".join((self.machine, *remarks)))


def origin(root: Path = ROOT) -> Origin:
    """Return the commit of the checkout and this machine. Take it before the measurement.

    The commit has a `+` where files differ from it, but for the documents, which a record changes; outside of
    a checkout it is `unknown`.
    """
    said = machine.describe()
    text = f"{said['cpu']}, {said['cores']} cores, {said['system']}, Python {said['python']}"
    try:
        name = _git(root, "rev-parse", "--short=7", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)docs")
    except (OSError, subprocess.SubprocessError):
        return Origin("unknown", text)
    return Origin(name + ("+" if changed else ""), text)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_S)
    return done.stdout.strip()


def write_rows(path: Path, name: str, rows: Sequence[Row], of: Origin, *, whole: bool) -> None:
    """Put the rows of a benchmark in place of its earlier ones. `whole`: they are all that it has; else rows
    that were not measured stay as they are, with their commit. Raises `BenchmarkError`: no markers, or two
    rows of one name, of which the page would have the last.
    """
    if len({row.work for row in rows}) < len(rows):
        raise BenchmarkError(f"two rows of {name} have one name")
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _between(lines, FIRST, LAST, path)
    inside = [line for line in lines[start:end] if line.strip()]
    table = [line for line in inside if line.startswith("|")][HEAD_LINES:]
    notes = {_note_of(line): line for line in inside if line.startswith("- ")}
    table = _replaced(table, f"`{name}`", {row.work: _line(name, row, of) for row in rows}, whole=whole)
    key, note = (f"`{name}`", of.commit), f"- `{name}` of {of.commit}: {of.machine}"
    # Rows of another run of that commit may stay, with what was to be known of it.
    notes[key] = note if whole or notes.get(key, note) == note else f"{notes[key]}; or: {of.machine}"
    kept = {(cells[0], cells[-1].removesuffix(OLDER)) for cells in map(_cells, table)}
    shown = sorted(line for key, line in notes.items() if key in kept)
    head = [_joined(HEADINGS), _joined("---" for _ in HEADINGS)]
    lines[start:end] = [*head, *table, "", *shown, *([""] if shown else [])]
    write_whole(path, "\n".join(_marked(lines)))


def write_output(path: Path, name: str, shown: Sequence[RenderableType], of: Origin) -> None:
    """Put the printed tables of a part of a benchmark in place of its earlier ones. Raises `BenchmarkError`:
    the document has no place for them.
    """
    text = StringIO()
    console = Console(file=text, width=TEXT_WIDTH, highlight=False, color_system=None)
    for each in shown:
        console.print(each)
    printed = [line.rstrip() for line in text.getvalue().strip("\n").split("\n")]
    lines = path.read_text(encoding="utf-8").split("\n")
    start, end = _between(lines, *output_markers(name), path)
    lines[start:end] = ["", f"Of {of.commit}: {of.machine}", "", "```text", *printed, "```", ""]
    write_whole(path, "\n".join(_marked(lines)))


def narrowed(table: Table, without: Collection[str]) -> Table:
    """Return a table for a document, without the columns of these headings."""
    kept = [column for column in table.columns if column.header not in without]
    left = [str(column.header) for column in kept if column.justify == "left"]
    found = new_table(str(table.title), (str(column.header) for column in kept), left=left)
    for cells in zip(*(column.cells for column in kept), strict=True):
        found.add_row(*cells)
    return found


def output_markers(name: str) -> tuple[str, str]:
    """Return what stands before and after the printed tables of a part."""
    return f"<!-- output of {name}, by --record -->", f"<!-- end of output of {name} -->"


def has_output(path: Path, name: str) -> bool:
    """Whether a document has a place for the printed tables of a part."""
    return output_markers(name)[0] in path.read_text(encoding="utf-8").split("\n")


def _is_older(name: str, commit: str) -> bool:
    """Return whether what a benchmark is about was changed after a commit, or git cannot tell."""
    since, about = f"{commit.removesuffix('+')}..HEAD", ABOUT.get(name, PRODUCT)
    try:
        return bool(_git(ROOT, "log", "-1", "--format=%h", since, "--", *about, NOT_ABOUT))
    except (OSError, subprocess.SubprocessError):
        return True


def _marked(lines: Sequence[str]) -> list[str]:
    """Return the lines of a document, each commit marked that is older than what was measured of it."""
    is_older = lru_cache(maxsize=None)(_is_older)

    def marked(found: re.Match[str]) -> str:
        before, name, commit, after = found.groups()
        return f"{before}{commit}{OLDER * is_older(name or '', commit)}{after}"

    return [_COMMIT.sub(marked, line) for line in lines]


def _replaced(table: Sequence[str], name: str, rows: Mapping[str, str], *, whole: bool) -> list[str]:
    found: list[str] = []
    left, at = dict(rows), None
    for line in table:
        who, work, *_ = _cells(line)
        if who == name:
            new = left.pop(work, None)
            found += [line] if new is None and not whole else [new] if new is not None else []
            at = len(found)
        else:
            found.append(line)
    # Rows that were not there stand after the last one of their benchmark.
    at = len(found) if at is None else at
    return [*found[:at], *left.values(), *found[at:]]


def _line(name: str, row: Row, of: Origin) -> str:
    goal, floor = ("", "") if row.target is None else row.target.cells()
    figure = f"{number(row.median)} {row.unit}".strip()
    remarks = [row.against, row.detail]
    if len(row.values) > 1:
        remarks.append(f"{len(row.values)} values, spread {row.spread:.0%}")
    if row.skipped:
        figure, remarks = "", [row.skipped]
    remark = "; ".join(text for text in remarks if text)
    shown = f"{figure} ({remark})" if figure and remark else figure or remark
    return _joined((f"`{name}`", row.work, shown, goal, floor, row.verdict, of.commit))


def _joined(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _note_of(line: str) -> tuple[str, str]:
    name, _, commit = line.removeprefix("- ").partition(":")[0].partition(" of ")
    return name, commit


def _between(lines: Sequence[str], first: str, last: str, path: Path) -> tuple[int, int]:
    """Return which lines stand between two markers."""
    if lines.count(first) != 1 or last not in lines[lines.index(first) :]:
        raise BenchmarkError(f"{path} has no place for what was measured: add the lines {first} and {last}")
    start = lines.index(first) + 1
    return start, lines.index(last, start)


if __name__ == "__main__":
    for page in ("performance.md", "accuracy.md"):
        found = _marked((DOCS / page).read_text(encoding="utf-8").split("\n"))
        write_whole(DOCS / page, "\n".join(found))
