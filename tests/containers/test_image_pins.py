"""deploy/image/pin.sh replaces what it has found a digest for, and nothing else of .env.

Needs no engine: one that answers from a list stands for it, which has just the images that a case asks for.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
