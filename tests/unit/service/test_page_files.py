"""The files of the pages: what is vendored is what `make vendor` made, and stays small."""

import gzip
from hashlib import sha256
from pathlib import Path

from service.routes.operations.page import FILES

STATIC = Path(__file__).resolve().parents[3] / "service/static"
VENDOR = STATIC / "vendor"


def test_vendored_files_are_those_that_were_summed() -> None:
    sums = dict(line.split("  ")[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["SHA256SUMS"]
    assert found == sums


def test_what_is_sent_in_gzip_is_the_file() -> None:
    for name, file in FILES.items():
        assert gzip.decompress(file.packed) == (STATIC / name).read_bytes()
