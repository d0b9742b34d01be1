"""A whole stack as a person would start it (`foldin up`), for campaigns that kill its parts.

Invariant: when the context ends, no process of the stack is left, whatever happened in between.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import free_port

READY_WITHIN_S = 90.0
ENDED_WITHIN_S = 40.0
# What a part's command line holds, by its name.
PARTS = {"store": "valkey-server", "trainer": "trainer", "service": "service"}


@dataclass(frozen=True, slots=True)
class DeployedStack:
    """A running stack: where it answers, its store, its data, and the process that supervises it."""

    url: str
    redis_url: str
    data: Path
    supervisor: asyncio.subprocess.Process

    def pids(self, part: str) -> list[int]:
        """Process ids of `part` (a key of `PARTS`) right now; empty while it is down."""
        return [
            pid
            for pid, command in _children(self.supervisor.pid)
            # The store writes its address behind its name, into the same word.
            if any(Path(word.split(" ")[0]).name == PARTS[part] for word in command[:6])
        ]

    def kill(self, part: str) -> bool:
        """SIGKILL the processes of `part`; whether there were any."""
        pids = self.pids(part)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)


def _children(parent: int) -> list[tuple[int, list[str]]]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text("utf-8", "replace")
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent:
            found.append((int(entry.name), command))
    return found


@asynccontextmanager
async def deployed(
    data: Path, *, workers: int = 1, settings: dict[str, str] | None = None
) -> AsyncIterator[DeployedStack]:
    """`foldin up --no-play` on `data` with free ports. RuntimeError with its last words if it fails."""
    port, environment_port = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FOLDIN_")} | (settings or {})
    options = ["--data", str(data), "--port", str(port), "--environment-port", str(environment_port)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "foldin", "up", "--no-play", "--workers", str(workers), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )
    lines: list[str] = []
    reader = asyncio.create_task(_drain(process, lines), name="output of the stack")
    where = data / "stack.json"
    try:
        for _ in range(int(READY_WITHIN_S * 10)):
            if process.returncode is not None or where.exists():
                break
            await asyncio.sleep(0.1)
        if process.returncode is not None or not where.exists():
            raise RuntimeError("the stack did not come up:\n" + "\n".join(lines[-20:]))
        known = json.loads(where.read_text("utf-8"))
        yield DeployedStack(known["url"], known["store"]["FOLDIN_REDIS_URL"], data, process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), ENDED_WITHIN_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        await reader


async def _drain(process: asyncio.subprocess.Process, lines: list[str]) -> None:
    assert process.stdout is not None
    lines.extend([line.decode("utf-8", "replace").rstrip() async for line in process.stdout])
