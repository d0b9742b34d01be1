"""What the pages have of others is what `make vendor` made."""

from hashlib import sha256
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[3] / "service/static/vendor"


def test_vendored_files_are_those_that_were_summed() -> None:
    sums = dict(line.split("  ")[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["SHA256SUMS"]
    assert found == sums
