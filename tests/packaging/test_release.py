"""`make release`, in a clone that has nowhere to push to: a whole release, or a line and nothing changed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.house import ROOT
from tests.support.servers import missing

VERSION = "90.1.0"
UNRELEASED = "## Unreleased\n"


# The archives and wheels of two distributions are built, twice.
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_release_is_made_whole_or_refused_in_a_line(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists() or shutil.which("npm") is None:
        missing("git's folder, or npm")
    clone, changes = tmp_path / "clone", tmp_path / "clone/CHANGELOG.md"

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, text=True, check=True).stdout

    def commit() -> None:
        git("commit", "--quiet", "--allow-empty", "--all", "--message", "for the test")

    def state() -> tuple[str, ...]:
        return git("rev-parse", "HEAD"), git("tag"), git("status", "--porcelain")

    def release(version: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command, variables = [sys.executable, ".ci/release.py", version], {**os.environ, **environ}
        return subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, check=False)

    def refused(why: str, version: str = VERSION, **environ: str) -> None:
        before, done = state(), release(version, **environ)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert done.stderr.startswith("no release: ")
        assert why in done.stderr
        assert state() == before

    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    git("remote", "remove", "origin")
    git("config", "user.name", "releaser")
    git("config", "user.email", "releaser@recommender.test")
    # The script as it is here, be that committed or not.
    shutil.copy(ROOT / ".ci/release.py", clone / ".ci")
    commit()
    refused("'1.2' is no version", "1.2")
    (clone / "left").touch()
    refused("the tree is not clean: ?? left")
    (clone / "left").unlink()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(str(shutil.which("git")))
    good = changes.read_text("utf-8")
    for wrong, why in (
        (good.replace(UNRELEASED, "## Later\n", 1), "not Unreleased"),
        (good.replace("### Added", "### New", 1), "New is not of Added"),
        (good.replace(UNRELEASED, f"{UNRELEASED}\n## {VERSION} - 2030-01-01\n", 1), "is not after"),
        (good.replace(UNRELEASED, f"{UNRELEASED}\n## 80.0.0 - 2030-01-01\n", 1), "nothing is unreleased"),
        (good, "npm is not here"),
    ):
        changes.write_text(wrong, "utf-8")
        commit()
        # Of the good one the last step before the commit fails, when all files have the version.
        refused(why, PATH=str(tmp_path / "bin"))

    done = release(VERSION)
    assert done.returncode == 0, done.stderr
    assert state()[::2] == (git("rev-parse", f"v{VERSION}^{{commit}}"), "")
    assert git("cat-file", "-t", f"v{VERSION}") == "tag\n"
    dated = re.sub(rf"(?<=## {VERSION} - )\d{{4}}-\d\d-\d\d$", "DAY", changes.read_text("utf-8"), flags=re.M)
    assert dated == good.replace(UNRELEASED, f"{UNRELEASED}\n## {VERSION} - DAY\n", 1)
    assert f"ARG VERSION={VERSION}\n" in (clone / "Dockerfile").read_text("utf-8")
    # What is published: two wheels, their sources, and the package for npm.
    dist = clone / "dist"
    assert len(list(dist.iterdir())) == 5
    for name in ("foldin", "foldin_client"):
        with zipfile.ZipFile(dist / f"{name}-{VERSION}-py3-none-any.whl") as wheel:
            assert f"\nVersion: {VERSION}\n" in wheel.read(f"{name}-{VERSION}.dist-info/METADATA").decode()
        assert tarfile.is_tarfile(dist / f"{name}-{VERSION}.tar.gz")
    with tarfile.open(dist / f"foldin-client-{VERSION}.tgz") as package:
        assert "package/foldin.js" in package.getnames()
    refused(f"there is a tag v{VERSION} already")
