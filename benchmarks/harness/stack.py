"""The parts of a deployment as a benchmark needs them: embedded store, service, trainer, yardsticks.

Invariant: each is the program that users run, with its defaults, except for what a parameter here says.
"""

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import synthetic
from benchmarks.errors import BenchmarkError
from benchmarks.harness.command import Options
from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.store import ALLOCATOR, binary
from processes.blocking import BlockingChild, plain_environment, python_command
from processes.errors import CannotStartError, ChildEndedError
from processes.priority import LOOK_FOR_FORKS_S, Forks
from processes.probes import http_ok, redis_pong, unused_port

# No refit but those that are asked for: a figure must not hang on when the trainer would have begun one.
NO_REFITS = {
    "FOLDIN_REFIT_EVENTS": str(2**31 - 1),
    "FOLDIN_REFIT_SECONDS": "86400",
    "FOLDIN_REFIT_GROWTH": "0",
}
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores for the server that is measured, and for everything else. Empty: as the system likes."""

    server: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


def cores(options: Options) -> Cores:
    """Return one core for the server, the others for store and generator, where there are two at least."""
    if options.no_pin or not hasattr(os, "sched_getaffinity"):
        return Cores()
    # A generator on the core of the server would take away what it measures.
    first, *others = sorted(os.sched_getaffinity(0))
    return Cores((first,), tuple(others)) if others else Cores()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    cpus: Sequence[int] = (),
    # A service that loads a table of a million items of rank 50 takes up to a minute.
    within_s: float = 300.0,
) -> Iterator[BlockingChild]:
    """Run a server until the block ends. Raises `BenchmarkError` when it is not `ready` in time."""
    environment = plain_environment(os.environ, environment or {})
    with (
        tempfile.TemporaryDirectory(prefix="foldin-bench-") as folder,
        BlockingChild(command, Path(folder) / "log", environment=environment, cpus=cpus) as child,
    ):
        try:
            child.wait_ready(ready, within_s)
        except ChildEndedError as exc:
            raise BenchmarkError(str(exc)) from exc
        yield child


@contextlib.contextmanager
def store(*, cpus: Sequence[int] = (), fsync: str = "everysec") -> Iterator[str]:
    """Run an embedded Valkey in a temporary folder; its address. Raises `BenchmarkError`. `fsync`: when its
    file is synced.
    """
    try:
        program = str(binary())
    except CannotStartError as exc:
        raise BenchmarkError(str(exc)) from exc
    port = unused_port()
    with tempfile.TemporaryDirectory(prefix="foldin-bench-store-") as folder:
        command = [program, "--port", str(port), "--bind", HOST, "--dir", folder]
        # As `foldin up` has it, except that it syncs every second: mostly the disk is not what is measured.
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
        command += ["--hash-max-listpack-value", "4096", "--auto-aof-rewrite-percentage", "300"]
        ready = partial(redis_pong, (HOST, port))
        with running(command, ready, environment=ALLOCATOR, cpus=cpus) as child:
            forks = Forks(child.pid)
            with looking(lambda: forks.look(time.monotonic()), LOOK_FOR_FORKS_S, "forks of the store"):
                yield f"redis://{HOST}:{port}"


@contextlib.contextmanager
def looking(look: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Call `look` so often in a thread of that name while the block runs."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            look()

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def store_with(generation: synthetic.Generation, *, cpus: Sequence[int] = ()) -> Iterator[str]:
    """Run a store in which that generation is live, and each of its users has rated once; its address."""
    with store(cpus=cpus) as url:
        synthetic.load(url, generation)
        yield url


def add_key(url: str, name: str = "benchmark") -> str:
    """Make a key that may read, so that services on that store ask for one; return it."""

    async def make() -> str:
        opened = await Store.open(StoreSettings(url=url, scale=synthetic.SCALE_TEXT), hot=False)
        try:
            secret = new_secret()
            await opened.access.add(secret, name, "read")
            return secret
        finally:
            await opened.close()

    return asyncio.run(make())


@contextlib.contextmanager
def service(url: str, **options: Any) -> Iterator[int]:
    """Run the service on that store; its port. `options`: those of `service_process`."""
    with service_process(url, **options) as (port, _):
        yield port


@contextlib.contextmanager
def service_process(
    url: str,
    *,
    workers: int = 1,
    cpus: Sequence[int] = (),
    scale: str = synthetic.SCALE_TEXT,
    cache: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, BlockingChild]]:
    """Run the service on that store; its port, and its process, which with one of `workers` is that worker.
    `cache`: folder of item tables; else its own.
    """
    port = unused_port()
    with contextlib.ExitStack() as ends:
        # Its own, unless a start is measured: the table of an earlier service would be found there.
        folder = cache or ends.enter_context(tempfile.TemporaryDirectory(prefix="foldin-bench-cache-"))
        environment = {
            "FOLDIN_REDIS_URL": url,
            "FOLDIN_SCALE": scale,
            "FOLDIN_PORT": str(port),
            "FOLDIN_WORKERS": str(workers),
            "FOLDIN_CACHE_DIR": str(folder),
            "FOLDIN_LOG_LEVEL": "WARNING",
            **(settings or {}),
        }
        ready = partial(http_ok, HOST, port, "/readyz")
        command = python_command("service")
        with running(command, ready, environment=environment, cpus=cpus) as child:
            yield port, child


@contextlib.contextmanager
def trainer(
    url: str, *, scale: str = synthetic.SCALE_TEXT, settings: Mapping[str, str] | None = None
) -> Iterator[BlockingChild]:
    """Run the trainer on that store; its process. It may not lead yet when the block begins."""
    with tempfile.TemporaryDirectory(prefix="foldin-bench-archive-") as folder:
        environment = {
            "FOLDIN_REDIS_URL": url,
            "FOLDIN_SCALE": scale,
            "FOLDIN_ARCHIVE_DIR": folder,
            "FOLDIN_LOG_LEVEL": "WARNING",
            **(settings or {}),
        }
        # It serves nothing that could be asked.
        with running(python_command("trainer"), lambda: True, environment=environment) as child:
            yield child


@contextlib.contextmanager
def yardstick(name: str, path: str, *arguments: str, cpus: Sequence[int] = ()) -> Iterator[int]:
    """Run a server of `benchmarks.yardsticks` that is ready when it answers GET `path`; its port."""
    port = unused_port()
    command = python_command(f"benchmarks.yardsticks.{name}", "--port", str(port), *arguments)
    with running(command, partial(http_ok, HOST, port, path), cpus=cpus):
        yield port
