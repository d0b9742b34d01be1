"""The folder of fits beside an archive on an object store: what was not made there stays, whatever it is."""

from pathlib import Path

import pytest

from trainer.archive.storage.host_fits import HostFits
from trainer.errors import CannotStartError
from trainer.fit_job.folder import FitFolder

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


def taken(folder: Path, own: str, before: str) -> HostFits:
    fits = HostFits(folder)
    fits.look()
    fits.take(own, before, ["epoch-000001"])
    return fits


def test_trainer_that_was_replaced_reaches_no_fit_of_its_successor(tmp_path: Path) -> None:
    folder = tmp_path / "ns.fits"
    first = taken(folder, "1.a", "")
    frozen = FitFolder(first.of_epoch("1.a", "epoch-000001"))
    frozen.begin_fit()
    put(frozen.new / "fit.json")
    second = taken(folder, "2.b", "1.a")
    fits = FitFolder(second.of_epoch("2.b", "epoch-000001"))
    assert (fits.new / "fit.json").exists()
    fits.begin_fit()
    # Of the fit of the first, which does not know.
    with pytest.raises(FileNotFoundError):
        frozen.new.with_name("new.tmp").mkdir()
    put(fits.new / "model.bin")
    frozen.end_fit()
    first.discard("1.a", "epoch-000001")
    with pytest.raises(FileNotFoundError):
        first.of_epoch("1.a", "epoch-000001")
    assert left(folder) == {"foldin-fits", "term-2.b/epoch-000001/fits/new/model.bin"}


def test_trainer_frozen_as_it_takes_the_fits_leaves_those_of_its_successor(tmp_path: Path) -> None:
    folder = tmp_path / "ns.fits"
    put(taken(folder, "1.a", "").of_epoch("1.a", "epoch-000001") / "fits" / "fit.json")
    frozen = HostFits(folder)
    frozen.look()
    put(taken(folder, "3.c", "2.b").of_epoch("3.c", "epoch-000001") / "fits" / "fit.json")
    frozen.take("2.b", "1.a", [])
    assert left(folder) == {"foldin-fits", "term-3.c/epoch-000001/fits/fit.json"}
