"""A `foldin up` of real processes, for tests that begin where a person does."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from foldin.commands.table import COMMANDS, Command
from processes.blocking import BlockingChild, plain_environment, python_command
from processes.probes import unused_port
from tests.support.waiting import PATIENCE_S, wait_until

# Each by the words that call it.
EVERY_COMMAND: dict[str, Command] = {
    (each.name if each is command else f"{command.name} {each.name}"): each
    for command in COMMANDS.values()
    for each in command.commands or (command,)
}


def processes(data: Path) -> list[int]:
    """Ids of the processes that have this data directory in their environment, except the supervisor."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if f"{data}/".encode() in words and not zombie:
            found.append(int(folder.name))
    return found


def foldin(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foldin", *map(str, arguments)]
    env = plain_environment(os.environ, settings)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=env, check=False)


class Stack:
    """A `foldin up` of its own."""

    def __init__(self, data: Path, *arguments: str, **settings: str) -> None:
        self.data = data
        self.port, self.environment_port = unused_port(), unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ports = ("--port", str(self.port), "--environment-port", str(self.environment_port))
        up = ("--data", str(data), *arguments, *ports)
        self.process = BlockingChild(
            python_command("foldin", "up", *up),
            data.with_name(f"{data.name}-{self.port}.log"),
            # A store on busy cores takes its time.
            environment=plain_environment(os.environ, {"FOLDIN_STORE_TIMEOUT_S": "5", **settings}),
        )

    @property
    def text(self) -> str:
        return self.process.text

    def says(self, words: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it says `words`."""
        wait_until(
            lambda: re.search(words, self.text) or self.process.code is not None,
            f"{words!r} in its output",
            timeout_s=timeout_s,
        )
        assert re.search(words, self.text), (
            f"ended with {self.process.code} before it said {words!r}:\n{self.text}"
        )

    def call(self, method: str, path: str, body: object = None, key: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode(errors="replace"))
            raise

    def part(self, name: str) -> int:
        program = "valkey-server" if name == "store" else f"-m\0{name}"
        for pid in processes(self.data):
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            except OSError:
                continue
            if program in words and parent == self.process.pid:
                return pid
        return 0

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@contextmanager
def stack(data: Path, *arguments: str, **settings: str) -> Iterator[Stack]:
    """A stack that is up, and gone in the end."""
    running = Stack(data, *arguments, **settings)
    try:
        running.says("Everything runs|cannot|foldin:")
        assert "Everything runs" in running.text, running.text
        yield running
    finally:
        running.process.end(grace_s=PATIENCE_S)


@asynccontextmanager
async def local_stack(data: Path, *, workers: int = 1) -> AsyncIterator[Stack]:
    """A stack in which nothing plays, for tests that await its answers."""
    with stack(data, "--no-play", "--workers", str(workers)) as running:
        yield running
