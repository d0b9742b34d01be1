"""The codes that the trainer writes, the service reads and the documentation names are the same ones."""

import ast
from pathlib import Path

from featurestore.commands import FAILURE_CODES, REFUSALS

ROOT = Path(__file__).resolve().parents[2]
MAKERS = {"Failure", "_failed", "Outcome"}


def texts(node: ast.expr) -> set[str]:
    """The string constants that `node` may be."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def written_codes() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "trainer").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                if name in MAKERS - {"Outcome"} and node.args:
                    found |= texts(node.args[0])
                found |= {
                    text
                    for keyword in node.keywords
                    if name in MAKERS and keyword.arg == "code"
                    for text in texts(keyword.value)
                }
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "code" and node.value:
                found |= texts(node.value)
    return found


def test_the_trainer_writes_the_codes_that_are_declared() -> None:
    assert written_codes() == FAILURE_CODES
    assert REFUSALS < FAILURE_CODES


def test_the_documentation_names_every_code() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith(("| `training_refused`", "| `training_failed`"))
    ]
    assert len(rows) == 2
    for code in FAILURE_CODES:
        assert f"`{code}`" in rows[0 if code in REFUSALS else 1]
