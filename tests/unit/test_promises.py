"""Each promise of docs/reliability.md has a test, in the tier that the document says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?P<promise>[^|]+) \| (?P<tier>gate|all) \| `(?P<name>\w+)` \|$", re.M)


def tiers_of(names: set[str]) -> dict[str, set[str]]:
    """The tiers of the tests of each name. A test that need not pass is none."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        if not any(f"def {name}(" in text for name in names):
            continue
        is_slow = re.search(r"^pytestmark = .*pytest\.mark\.slow", text, re.M) is not None
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in names:
                marks = [ast.unparse(each) for each in node.decorator_list]
                assert not any("skip" in mark or "xfail" in mark for mark in marks), (
                    f"{node.name} need not pass"
                )
                found[node.name].add("all" if is_slow or "pytest.mark.slow" in marks else "gate")
    return found


def test_each_promise_has_its_test_in_its_tier() -> None:
    section = (ROOT / "docs/reliability.md").read_text("utf-8").partition("### The test of each promise")[2]
    table = section.partition("\n## ")[0]
    rows = list(ROW.finditer(table))
    assert len(rows) == table.count("\n| ") - 1, "a row without promise, tier and test"
    tiers = tiers_of({row["name"] for row in rows})
    assert [row["promise"] for row in rows if tiers[row["name"]] != {row["tier"]}] == []
