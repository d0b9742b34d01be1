"""Each promise of docs/reliability.md has a test, in the tier that the document says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"^\| (?P<promise>[^|]+) \| (?P<tier>gate|all) \| `(?P<path>[^`:]+):(?P<name>\w+)` \|$", re.M
)


def is_slow(path: Path, name: str) -> bool:
    """Whether `make test` leaves a test out. Raises KeyError where there is no such test."""
    tree = ast.parse(path.read_text("utf-8"))
    tests = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    marks = [ast.unparse(each) for each in tests[name].decorator_list]
    assert not any("skip" in mark or "xfail" in mark for mark in marks), f"{name} need not pass"
    own = "pytest.mark.slow" in marks
    return own or re.search(r"^pytestmark = .*pytest\.mark\.slow", path.read_text("utf-8"), re.M) is not None


def test_each_promise_has_its_test_in_its_tier() -> None:
    section = (ROOT / "docs/reliability.md").read_text("utf-8").partition("### The test of each promise")[2]
    table = section.partition("\n## ")[0]
    rows = list(ROW.finditer(table))
    assert len(rows) == table.count("\n| ") - 1, "a row without promise, tier and test"
    wrong = [
        row["promise"] for row in rows if is_slow(ROOT / row["path"], row["name"]) != (row["tier"] == "all")
    ]
    assert wrong == []
