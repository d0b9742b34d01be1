"""Settings of the service. Invariant: read once at the start, frozen, every error told together."""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.settings import EnvironmentReader, StoreSettings

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How a service process behaves. Limits bound memory: what is beyond them is refused at once.

    `in_flight`: requests that one worker answers at a time. `connections`: that one worker holds.
    `large_bytes`: bodies of so many bytes are worked on at once, or two calls, of predictions and of ratings
    each; `batch_waiting_bytes`, `import_waiting_bytes`: so many wait. `rankings_waiting`: rankings of large
    catalogues that wait.
    `body_bytes`, `train_body_bytes`: largest bodies; `bodies_bytes`: all bodies that a worker holds at once.
    `start_wait_s`: how long a start waits for a store that does not answer. `grace_s`: how long requests in
    flight may take at the end. `train_wait_s`: how long POST /train waits.
    """

    store: StoreSettings
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    cache_dir: Path = Path(tempfile.gettempdir()) / "foldin-cache"
    log_level: str = "INFO"
    in_flight: int = 1024
    connections: int = 8192
    large_bytes: int = 64 * 2**10
    batch_waiting_bytes: int = 5 * 2**20
    import_waiting_bytes: int = 8 * 2**20
    rankings_waiting: int = 256
    body_bytes: int = 10 * 2**20
    train_body_bytes: int = 64 * 2**20
    bodies_bytes: int = 256 * 2**20
    body_timeout_s: float = 30.0
    keepalive_s: float = 75.0
    start_wait_s: float = 30.0
    grace_s: float = 5.0
    train_wait_s: float = 60.0
    erase_wait_s: float = 5.0


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[ServiceSettings, "Place"]:
    """Settings from flags and environment (a flag wins) and what a supervisor tells of the worker's place.

    Raises `SettingsInvalid`; a flag that cannot be read ends the process with code 2, as `argparse` does.
    """
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve the HTTP API.")
    parser.add_argument("--host", help="address to listen on (FOLDIN_HOST, 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on, 0 takes a free one (FOLDIN_PORT, 8080)")
    parser.add_argument("--workers", help="worker processes on that port (FOLDIN_WORKERS, 1)")
    # How the supervisor starts its workers; a person has no use for it.
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    given = {"FOLDIN_HOST": flags.host, "FOLDIN_PORT": flags.port, "FOLDIN_WORKERS": flags.workers}
    reader = EnvironmentReader(
        {**environ, **{name: text for name, text in given.items() if text is not None}}
    )
    default_cache = Path(tempfile.gettempdir()) / f"foldin-{os.getuid()}"
    settings = ServiceSettings(
        store=StoreSettings.from_environment(reader),
        host=reader.text("FOLDIN_HOST", "127.0.0.1"),
        port=reader.integer("FOLDIN_PORT", 8080, 0, 65535),
        workers=reader.integer("FOLDIN_WORKERS", 1, 1, 256),
        cache_dir=Path(reader.text("FOLDIN_CACHE_DIR", str(default_cache))),
        log_level=reader.choice("FOLDIN_LOG_LEVEL", "INFO", LOG_LEVELS),
    )
    reader.finish()
    return settings, Place(flags.worker, flags.socket, flags.folder)


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among its siblings: its number, the listening socket it inherits, the folder they
    share.
    """

    worker: int = 0
    socket: int | None = None
    folder: Path | None = None

    @property
    def supervised(self) -> bool:
        """Whether a supervisor started this process."""
        return self.socket is not None
