"""A whole stack as a person would start it (`foldin up`), for campaigns that kill its parts.

Invariant: when the context ends, no process of the stack is left, whatever happened in between.
"""

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from evaluation.api_client import ApiClient
from processes.blocking import plain_environment, python_command
from processes.child import Child, ChildSpec
from processes.probes import unused_port

# What a part's command line holds, by its name.
PARTS = {"store": "valkey-server", "trainer": "trainer", "service": "service"}

# Past the minute in which the service answers a POST /train that has not ended.
CALL_S = 70.0


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A running stack: where it answers, its store, its data, and the process id of its supervisor.

    `api`: a client whose calls each have a connection of their own, perhaps to another worker.
    """

    url: str
    api: ApiClient
    redis_url: str
    data: Path
    supervisor: int

    def pids(self, part: str) -> list[int]:
        """Return the process ids of `part` (a key of `PARTS`) right now; empty while it is down."""
        return [
            pid
            for pid, command in _children(self.supervisor)
            # The store writes its address behind its name, into the same word.
            if any(Path(word.split(" ")[0]).name == PARTS[part] for word in command[:6])
        ]

    def kill(self, part: str) -> bool:
        """SIGKILL the processes of `part`; return whether there were any."""
        pids = self.pids(part)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)


def _children(parent: int) -> list[tuple[int, list[str]]]:
    found = []
    # Looked up each time: a part that was restarted has another process id.
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
        with contextlib.suppress(OSError):  # it ended meanwhile
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
            found.append((int(pid), command.split("\0")))
    return found


@asynccontextmanager
async def local_stack(
    data: Path, *, workers: int = 1, settings: dict[str, str] | None = None
) -> AsyncIterator[LocalStack]:
    """Run `foldin up --no-play` on `data` with free ports. Raises ChildEndedError if it does not come up."""
    options = ["--data", str(data), "--port", str(unused_port()), "--environment-port", str(unused_port())]
    where = data / "stack.json"
    spec = ChildSpec(
        "stack",
        tuple(python_command("foldin", "up", "--no-play", "--workers", str(workers), *options)),
        plain_environment(os.environ, settings or {}),
        probe=where.exists,
        # Its own limit for the service is a minute; it ends its parts within 31 s.
        ready_within_s=90.0,
        grace_s=40.0,
    )
    child = Child(spec, None)
    await child.start()
    try:
        await child.wait_ready()
        known = json.loads(where.read_text("utf-8"))
        assert child.pid is not None
        # Without a limit: all users of a campaign ask at once.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            api = ApiClient(session, known["url"], timeout_s=CALL_S)
            yield LocalStack(known["url"], api, known["store"]["FOLDIN_REDIS_URL"], data, child.pid)
    finally:
        await child.stop()
