"""The codes that the trainer writes, the service reads and the documentation names are the same ones."""

from pathlib import Path

from featurestore.commands import FAILURE_CODES, REFUSALS

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_names_every_code() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith(("| `training_refused`", "| `training_failed`"))
    ]
    assert len(rows) == 2
    for code in FAILURE_CODES:
        assert f"`{code}`" in rows[0 if code in REFUSALS else 1]
