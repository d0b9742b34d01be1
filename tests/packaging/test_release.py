"""`make release`, in a clone that has nowhere to push to: a whole release, or a line and nothing changed."""

import json
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

# The archives and wheels of two distributions are built, twice.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VERSION = "90.1.0"


class Clone:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("clone", "--quiet", str(ROOT), str(folder), cwd=ROOT)
        self.git("remote", "remove", "origin")
        self.git("config", "user.name", "releaser")
        self.git("config", "user.email", "releaser@recommender.test")
        # The script as it is here, be that committed or not.
        shutil.copy(ROOT / ".ci/release.py", folder / ".ci")
        self.commit()

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        command, at = ["git", *arguments], cwd or self.folder
        return subprocess.run(command, cwd=at, stdout=subprocess.PIPE, text=True, check=True).stdout

    def commit(self) -> None:
        self.git("commit", "--quiet", "--allow-empty", "--all", "--message", "for the test")

    @property
    def state(self) -> tuple[str, ...]:
        told = (("rev-parse", "HEAD"), ("tag",), ("status", "--porcelain"), ("diff", "HEAD"))
        return tuple(self.git(*each) for each in told)

    def release(self, version: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ".ci/release.py", version]
        return subprocess.run(
            command, cwd=self.folder, env=environ or None, capture_output=True, text=True, check=False
        )

    def refuses(self, why: str, version: str = VERSION, **environ: str) -> None:
        before = self.state
        done = self.release(version, **environ)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert done.stderr.startswith("no release: ")
        assert why in done.stderr
        assert self.state == before


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if not (ROOT / ".git").exists() or shutil.which("npm") is None:
        missing("git's folder, or npm")
    return Clone(tmp_path / "clone")


def test_a_release_is_made_whole_or_refused_in_a_line(clone: Clone, tmp_path: Path) -> None:
    clone.refuses("'1.2' is no version", "1.2")
    left = clone.folder / "left"
    left.touch()
    clone.refuses("the tree is not clean: ?? left")
    left.unlink()
    changes = clone.folder / "CHANGELOG.md"
    good = changes.read_text("utf-8")
    for wrong, why in (
        (good.replace("## Unreleased", "## Later", 1), "not Unreleased"),
        (good.replace("### Added", "### New", 1), "New is not of Added"),
        (re.sub(r"## Unreleased\n", f"\\g<0>\n## {VERSION} - 2030-01-01\n", good), "is not after"),
        (re.sub(r"## Unreleased\n", "\\g<0>\n## 80.0.0 - 2030-01-01\n", good), "nothing is unreleased"),
    ):
        changes.write_text(wrong, "utf-8")
        clone.commit()
        clone.refuses(why)
    changes.write_text(good, "utf-8")
    clone.commit()
    # The last step before the commit fails, when all files have the version.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(str(shutil.which("git")))
    clone.refuses("npm is not here", PATH=str(tmp_path / "bin"))

    done = clone.release(VERSION)
    assert done.returncode == 0, done.stderr
    head, _, *changed = clone.state
    assert changed == ["", ""]
    assert clone.git("rev-parse", f"v{VERSION}^{{commit}}") == head
    assert clone.git("cat-file", "-t", f"v{VERSION}") == "tag\n"
    day = r"\d{4}-\d\d-\d\d"
    first = re.sub(r"## Unreleased\n", f"\\g<0>\n## {VERSION} - DAY\n", good, count=1)
    assert re.sub(f"(?<={re.escape(VERSION)} - ){day}", "DAY", changes.read_text("utf-8")) == first
    assert f"ARG VERSION={VERSION}\n" in (clone.folder / "Dockerfile").read_text("utf-8")
    # What is published, each of the version: two wheels, their sources, and the package for npm.
    dist = clone.folder / "dist"
    assert len(list(dist.iterdir())) == 5
    for name in ("foldin", "foldin_client"):
        with zipfile.ZipFile(dist / f"{name}-{VERSION}-py3-none-any.whl") as wheel:
            assert f"\nVersion: {VERSION}\n" in wheel.read(f"{name}-{VERSION}.dist-info/METADATA").decode()
        with tarfile.open(dist / f"{name}-{VERSION}.tar.gz") as sources:
            assert f"{name}-{VERSION}/PKG-INFO" in sources.getnames()
    with tarfile.open(dist / f"foldin-client-{VERSION}.tgz") as package:
        content = package.extractfile("package/package.json")
        assert content is not None
        assert json.loads(content.read())["version"] == VERSION
        assert "package/foldin.js" in package.getnames()
    clone.refuses(f"there is a tag v{VERSION} already")
