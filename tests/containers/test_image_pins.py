"""deploy/image/pin.sh replaces what it has found a digest for, and nothing else of .env.

Needs no engine: one that answers from a list stands for it, which has just the images that a case asks for.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# `images` has a line for each tag: that, and its digests.
ENGINE = """#!/bin/sh
for tag; do :; done
if [ "$1" = pull ]; then
  echo "$tag" >>pulled
  while [ -e hang ]; do sleep 0.1; done
fi
grep -q "^$tag " images && sed -n "s|^$tag ||p" images | tr ' ' '\\n'
"""
REDIS_8, REDIS_7, NGINX, OTHER = (f"@sha256:{digit * 64}" for digit in "8790")
HERE = {"redis:8": f"redis{REDIS_8}", "redis:7": f"redis{REDIS_7}", "nginx:stable": f"nginx{NGINX}"}
PINNED_REDIS = f"FOLDIN_REDIS_IMAGE=redis{REDIS_8} # pinned: redis:8\n"
PINNED_NGINX = f"FOLDIN_NGINX_IMAGE=nginx{NGINX} # pinned: nginx:stable\n"
PINNED = PINNED_NGINX + PINNED_REDIS


class Checkout:
    """A folder with the compose file, the script, and an engine that has some images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, folder / ".env"
        shutil.copy(ROOT / "docker-compose.yml", folder)
        (folder / "deploy/image").mkdir(parents=True)
        self.script = Path(shutil.copy(ROOT / "deploy/image/pin.sh", folder / "deploy/image"))
        (folder / "engine").write_text(ENGINE)
        (folder / "engine").chmod(0o755)
        self.environ = {"PATH": os.environ["PATH"], "ENGINE": "./engine"}
        self.have(HERE)

    def have(self, images: dict[str, str]) -> None:
        """Give the engine these images: digests, parted by blanks, by tag."""
        (self.folder / "images").write_text("".join(f"{tag} {each}\n" for tag, each in images.items()))

    def pin(self, *arguments: str) -> str:
        """Run the script; what it says on standard error. .env.new is never left."""
        done = subprocess.run(
            [self.script, *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert not (self.folder / ".env.new").exists()
        return done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_a_file_what_is_here_is_pinned_for_its_owner_alone(checkout: Checkout) -> None:
    said = checkout.pin()
    assert checkout.env.read_text() == PINNED
    assert checkout.env.stat().st_mode & 0o777 == 0o600
    assert "grafana/grafana:12.1.0 is not here" in said
    assert checkout.pin() == said
    assert checkout.env.read_text() == PINNED


def test_where_nothing_is_here_nothing_is_written(checkout: Checkout) -> None:
    checkout.have({})
    checkout.pin()
    assert not checkout.env.exists()


@pytest.mark.parametrize(
    "line",
    [
        f"FOLDIN_GRAFANA_IMAGE=grafana/grafana{OTHER}",
        f"FOLDIN_REDIS_IMAGE=redis{OTHER}",
        f"export FOLDIN_REDIS_IMAGE='redis{OTHER}' # since March",
        "FOLDIN_REDIS_IMAGE=mirror.test:5000/redis:8",
        "FOLDIN_GRAFANA_IMAGE=mirror.test:5000/grafana",
        # Made here: no registry has it.
        "FOLDIN_REDIS_IMAGE=local",
        "#FOLDIN_GRAFANA_IMAGE=grafana/grafana",
    ],
)
def test_a_line_stays_whose_image_is_not_here_or_is_by_digest(checkout: Checkout, line: str) -> None:
    checkout.have({**HERE, "local": ""})
    # The last line ends without a line feed.
    checkout.env.write_text(f"FOLDIN_PARTITIONS=8\n{line}")
    said = checkout.pin()
    others = PINNED_NGINX if "REDIS" in line else PINNED
    assert checkout.env.read_text() == f"FOLDIN_PARTITIONS=8\n{line}\n{others}"
    if not line.startswith("#"):
        assert "stays" in said


@pytest.mark.parametrize(
    ("line", "pinned"),
    [
        ("FOLDIN_REDIS_IMAGE=redis:7", f"FOLDIN_REDIS_IMAGE=redis{REDIS_7} # pinned: redis:7"),
        (
            "  export  FOLDIN_REDIS_IMAGE=redis:7",
            f"  export  FOLDIN_REDIS_IMAGE=redis{REDIS_7} # pinned: redis:7",
        ),
        (
            'FOLDIN_REDIS_IMAGE = "redis:7" # not yet 8',
            f"FOLDIN_REDIS_IMAGE =redis{REDIS_7} # pinned: redis:7",
        ),
        ("FOLDIN_REDIS_IMAGE=", PINNED_REDIS.strip()),
        # As Podman has it, and by a mirror, which has the digest of its own name.
        (
            "FOLDIN_REDIS_IMAGE=docker.io/library/redis:6",
            f"FOLDIN_REDIS_IMAGE=docker.io/library/redis{OTHER} # pinned: docker.io/library/redis:6",
        ),
        (
            "FOLDIN_REDIS_IMAGE=mirror.test:5000/redis:6",
            f"FOLDIN_REDIS_IMAGE=mirror.test:5000/redis{OTHER} # pinned: mirror.test:5000/redis:6",
        ),
    ],
)
def test_what_the_file_names_is_pinned_in_its_place(checkout: Checkout, line: str, pinned: str) -> None:
    both = f"docker.io/library/redis{OTHER} mirror.test:5000/redis{OTHER}"
    checkout.have({**HERE, "docker.io/library/redis:6": both, "mirror.test:5000/redis:6": both})
    checkout.env.write_text(f"{line}\nFOLDIN_IMAGE=mine\n")
    for _ in range(2):
        checkout.pin()
        assert checkout.env.read_text() == f"{pinned}\nFOLDIN_IMAGE=mine\n{PINNED_NGINX}"


def test_what_was_pinned_before_is_pinned_anew_as_its_tag_names_it(checkout: Checkout) -> None:
    checkout.env.write_text("FOLDIN_REDIS_IMAGE=redis:7\n")
    checkout.pin()
    every = {**HERE, "python:3.13-slim": f"python{OTHER}"}
    every |= {
        "prom/prometheus:v3.5.0": f"prom/prometheus{OTHER}",
        "grafana/grafana:12.1.0": f"grafana/grafana{OTHER}",
    }
    checkout.have({**every, "redis:7": f"redis{OTHER}"})
    checkout.pin("--pull")
    assert f"FOLDIN_REDIS_IMAGE=redis{OTHER} # pinned: redis:7\n" in checkout.env.read_text()
    pulled = (checkout.folder / "pulled").read_text().split()
    assert sorted(pulled) == sorted(set(every) - {"redis:8"})


def test_a_file_behind_a_link_is_written_with_the_rights_that_it_has(checkout: Checkout) -> None:
    real = checkout.folder / "elsewhere"
    real.write_text("FOLDIN_PARTITIONS=8\n")
    real.chmod(0o640)
    checkout.env.symlink_to("elsewhere")
    before = real.stat()
    checkout.pin()
    assert checkout.env.is_symlink()
    assert real.read_text() == f"FOLDIN_PARTITIONS=8\n{PINNED}"
    after = real.stat()
    # The same file: its owner is, too.
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_interrupted_leaves_the_file_and_nothing_else(
    checkout: Checkout, shell: str, number: signal.Signals
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    checkout.env.write_text("FOLDIN_REDIS_IMAGE=redis:7\n")
    (checkout.folder / "hang").touch()
    process = subprocess.Popen(
        [shell, checkout.script, "--pull"],
        env=checkout.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until((checkout.folder / "pulled").exists, "a pull")
        os.killpg(process.pid, number)
        assert process.wait(30) != 0
    finally:
        (checkout.folder / "hang").unlink()
        process.kill()
        process.wait()
    assert checkout.env.read_text() == "FOLDIN_REDIS_IMAGE=redis:7\n"
    assert not (checkout.folder / ".env.new").exists()
