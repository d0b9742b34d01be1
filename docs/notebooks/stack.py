"""What the notebooks share: made ratings, and a stack of their own with a client of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np

from foldin_client import Client

# What a start takes on a busy machine.
START_S = 120.0


class World:
    """Users and items with tastes of three dimensions; `truth` float64 (users, items): what would be given,
    before it is rounded to whole stars from 1 to 5.
    """

    def __init__(self, users: int, items: int, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        tastes, items_of = self.rng.normal(size=(users, 3)), self.rng.normal(size=(items, 3))
        quality = self.rng.normal(0, 0.5, items)
        self.truth = 3.3 + quality + 0.6 * tastes @ items_of.T

    def rate(self, user: int, item: int) -> int:
        """Return what a user says of an item, which is not the same each time."""
        return int(np.clip(round(self.truth[user, item] + self.rng.normal(0, 0.5)), 1, 5))

    def ratings(self, share: float, users: range) -> list[dict[str, Any]]:
        """Return ratings of a `share` of all pairs of `users`."""
        return [
            {"user_id": f"user{user}", "item_id": f"item{item}", "rating": self.rate(user, item)}
            for user in users
            for item in np.flatnonzero(self.rng.random(self.truth.shape[1]) < share)
        ]


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def command(folder: Path, line: str) -> str:
    """Run a `foldin ...` in a folder; return what it prints."""
    # A notebook asks for colours, which would bring the bars of progress as well.
    plain = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    plain |= {"TERM": "dumb", "COLUMNS": "120"}
    words = [sys.executable, "-m", *line.split()]
    done = subprocess.run(words, cwd=folder, env=plain, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


@contextmanager
def stack(folder: Path) -> Iterator[Client]:
    """Run `foldin up` on a folder, without a player, while the block runs."""
    command = [sys.executable, "-m", "foldin", "up", "--no-play", "--data", str(folder)]
    command += ["--port", str(free_port()), "--environment-port", str(free_port())]
    with (folder.parent / "stack.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        try:
            end = time.monotonic() + START_S
            while not (folder / "stack.json").exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(Path(log.name).read_text("utf-8"))
                time.sleep(0.1)
            with Client(json.loads((folder / "stack.json").read_text("utf-8"))["url"]) as foldin:
                yield foldin
        finally:
            process.terminate()
            process.wait(60)
