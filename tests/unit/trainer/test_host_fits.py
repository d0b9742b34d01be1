"""The folder of fits beside an archive on an object store: what was not made there stays, whatever it is."""

from pathlib import Path

import pytest

from trainer.archive.storage.host_fits import HostFits
from trainer.errors import CannotStartError

RATINGS = Path("epoch-000001") / "0000000001-0000000001.r0.parquet"


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"of another")


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        # The folder that it had before the archive went to an object store.
        (["archive/ns/identity.json", f"archive/ns/{RATINGS}"], "archive/ns"),
        (["archive/ns/identity.json"], "ns.fits"),
        ([f"backup/{RATINGS}"], "backup/more/ns.fits"),
        (["x/ns.fits/epoch-000001/fits/generation-000001/fit.json"], "x/ns.fits"),
        (["x/ns.fits/foldin-fits", "x/ns.fits/export.parquet"], "x/ns.fits"),
    ],
)
def test_folder_of_something_else_is_refused_and_whole(tmp_path: Path, files: list[str], fits: str) -> None:
    for name in files:
        put(tmp_path / name)
    with pytest.raises(CannotStartError, match=r"FOLDIN_FITS_DIR: .*: name a") as refused:
        HostFits(tmp_path / fits).take("9.z", "", [])
    assert "\n" not in str(refused.value)
    assert left(tmp_path) == set(files)
