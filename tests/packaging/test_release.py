"""`make release` in a checkout of its own: what it makes, and that a refusal leaves everything as it was."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import house
from tests.support.servers import missing

pytestmark = pytest.mark.slow


CHANGES = """# Changelog

## Unreleased

### Added

- One thing.

## 1.0.0 - 2026-01-31

### Fixed

- Another.
"""
BUILDER = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "foldin"
version = "1.1.0.dev0"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["foldin"]
"""


def script() -> Any:
    spec = importlib.util.spec_from_file_location("release", house.ROOT / ".ci/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Checkout:
    """A small project with the script."""

    def __init__(self, root: Path) -> None:
        self.root = root
        house.write_tree(
            root,
            {
                "CHANGELOG.md": CHANGES,
                "pyproject.toml": BUILDER,
                "Dockerfile": "FROM a:1\nARG VERSION=1.1.0.dev0\n",
                "foldin/__init__.py": "",
                "clients/python/pyproject.toml": BUILDER.replace('"foldin', '"foldin_client'),
                "clients/python/foldin_client/__init__.py": "",
                "clients/javascript/package.json": (
                    '{\n  "name": "foldin-client",\n  "version": "1.1.0-dev.0",\n  "type": "module"\n}\n'
                ),
                ".gitignore": "dist/\n",
                ".ci/release.py": (house.ROOT / ".ci/release.py").read_text("utf-8"),
            },
        )
        self.git("init", "-q")
        self.git("config", "user.name", "t")
        self.git("config", "user.email", "t@example.org")
        self.commit()

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "as it is")

    def release(self, version: str) -> str:
        """The last line that it says; empty where it made the release."""
        done = subprocess.run(
            [sys.executable, ".ci/release.py", version],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode == 0) == (not done.stderr), done.stderr
        return done.stderr.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_release_is_committed_tagged_and_built(checkout: Checkout) -> None:
    if shutil.which("npm") is None:
        missing("npm")
    assert checkout.release("1.1.0") == ""
    assert checkout.git("status", "--porcelain") == ""
    assert checkout.git("tag", "--points-at", "HEAD") == "v1.1.0"
    assert checkout.git("log", "-1", "--format=%s") == "release: 1.1.0"
    assert 'version = "1.1.0"\n' in (checkout.root / "pyproject.toml").read_text()
    assert (checkout.root / "Dockerfile").read_text() == "FROM a:1\nARG VERSION=1.1.0\n"
    changes = (checkout.root / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n\n## 1.1.0 - 20" in changes
    # As the tests of the tagged commit have it.
    assert script().wrong_changes(changes) == []
    built = sorted(path.name for path in (checkout.root / "dist").iterdir())
    names = ("foldin-1.1.0", "foldin_client-1.1.0")
    wheels = [f"{name}{kind}" for name in names for kind in ("-py3-none-any.whl", ".tar.gz")]
    assert built == sorted([*wheels, "foldin-client-1.1.0.tgz"])
    assert json.loads((checkout.root / "clients/javascript/package.json").read_text())["version"] == "1.1.0"
    assert (checkout.root / "clients/python/pyproject.toml").read_text().count('version = "1.1.0"\n') == 1


def test_what_is_not_ready_is_refused_and_nothing_is_changed(checkout: Checkout) -> None:
    def refused(version: str) -> str:
        before = checkout.git("rev-parse", "HEAD"), checkout.git("status", "--porcelain"), checkout.git("tag")
        why = checkout.release(version)
        assert (
            checkout.git("rev-parse", "HEAD"),
            checkout.git("status", "--porcelain"),
            checkout.git("tag"),
        ) == before
        return why

    assert "is no version" in refused("")
    assert "is no version" in refused("1.1.0.dev0")
    assert "is not after 1.0.0" in refused("1.0.0")
    (checkout.root / "new.py").touch()
    assert "not clean: ?? new.py" in refused("1.1.0")
    (checkout.root / "new.py").unlink()
    checkout.git("tag", "v1.1.0")
    assert "tag v1.1.0 already" in refused("1.1.0")
    # A build that fails is found after the files were written.
    (checkout.root / "pyproject.toml").write_text(
        f'{BUILDER}[tool.hatch.build.hooks.custom]\npath = "gone.py"\n'
    )
    checkout.commit()
    assert "build" in refused("1.2.0")
    (checkout.root / "CHANGELOG.md").write_text(
        CHANGES.replace("- One thing.\n\n", "").replace("### Added\n\n", "")
    )
    checkout.commit()
    assert "nothing is unreleased" in refused("1.2.0")


def test_the_changelog_is_one_that_can_be_released() -> None:
    assert script().wrong_changes((house.ROOT / "CHANGELOG.md").read_text("utf-8")) == []
