"""Settings of the service. Invariant: read once at the start, frozen, every error reported together."""

import ipaddress
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featurestore.settings import StoreSettings
from featurestore.telemetry.log_lines import FORMS
from processes import module_name
from processes.settings import HIDDEN, LOG_LEVELS, choice, load, nested, setting, whole

# In the folder that a supervisor shares with its workers: when it was touched last, the supervisor was well.
SIGN_OF_LIFE = "supervisor.alive"


def _host(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?", text) is None:
        raise ValueError(f"must be names like foldin.example.com, not {text!r}")
    return text


def _origin(text: str) -> str:
    if re.fullmatch(r"https?://[^/\s]+", text) is None:
        raise ValueError(f"must be origins like https://shop.example, without a path, not {text!r}")
    return text


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f"must be addresses or networks like 10.0.0.0/8, not {text!r}") from None


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How a service process behaves. Limits bound memory: what is beyond them is refused at once. How many
    requests there may be is bounded by nginx, by address.

    `connections`: that a worker has; `address_connections`: of one address that is no proxy of `proxies`.
    `key_ratings`: that a key may give a worker in a second. `history_entries`: that one user may have.
    `large_bytes`: bodies of so many bytes are worked on at once, or two calls, of predictions and of ratings
    each; `batch_waiting_bytes`, `import_waiting_bytes`: so many wait. `rankings_waiting`: rankings of large
    catalogues that wait.
    `body_bytes`, `train_body_bytes`: largest bodies; `bodies_bytes`: all bodies that a worker holds at once.
    `start_wait_s`: how long a start waits for a store that does not answer. `grace_s`: how long requests in
    flight may take at the end. `train_wait_s`: how long POST /train waits. `manual_dir`: where the manual
    is that is served at /manual, if it is there.
    """

    store: StoreSettings = nested(StoreSettings)
    host: str = setting("127.0.0.1", "address to listen on", variable="FOLDIN_HOST", flag="--host")
    port: int = setting(
        8080, "port to listen on, 0 takes a free one", whole(0, 65_535), variable="FOLDIN_PORT", flag="--port"
    )
    workers: int = setting(
        1, "worker processes on that port", whole(1, 256), variable="FOLDIN_WORKERS", flag="--workers"
    )
    # The user's id: two users of one machine do not share a folder that only one of them may write.
    cache_dir: Path = setting(
        Path(tempfile.gettempdir()) / f"foldin-{os.getuid()}",
        "folder of the item table, which the workers of a host map; on a local disk",
        Path,
        variable="FOLDIN_CACHE_DIR",
        shown="`foldin-UID` in the temporary directory",
    )
    log_level: str = setting(
        "INFO", "the least grave lines that are logged", choice(LOG_LEVELS), variable="FOLDIN_LOG_LEVEL"
    )
    log_format: str = setting(
        "text",
        "`text`, or `json`: each line an object, with `request_id` and `trace_id` where there are",
        choice(FORMS),
        variable="FOLDIN_LOG_FORMAT",
    )
    access: Literal["keys", "open"] = setting(
        "keys",
        "`keys`: asks for API keys once there is one, and does not start without where other machines can "
        "reach it; `open`: asks for none",
        choice(("keys", "open")),
        variable="FOLDIN_ACCESS",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "names under which the service is asked (`Host`), besides those of this machine",
        _host,
        variable="FOLDIN_HOSTS",
        many=True,
        shown="any, where keys are asked for",
    )
    origins: tuple[str, ...] = setting(
        (),
        "origins whose web pages may ask, like `https://shop.example`, besides its own",
        _origin,
        variable="FOLDIN_ORIGINS",
        many=True,
        shown="none",
    )
    proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = setting(
        (),
        "addresses or networks of proxies whose `X-Forwarded-For` is believed",
        _network,
        variable="FOLDIN_PROXIES",
        many=True,
        shown="none",
    )
    tls_cert: Path | None = setting(
        None,
        "file with the certificate and its chain (PEM): the service then speaks HTTPS",
        Path,
        variable="FOLDIN_TLS_CERT",
    )
    tls_key: Path | None = setting(
        None, "file with its key", Path, variable="FOLDIN_TLS_KEY", shown="that of the certificate"
    )
    # nginx in front opens as many. With 16 KB of a head each they hold 150 MB at the worst.
    connections: int = 4_096
    # A fourth: it takes several addresses to shut others out, and no program of one machine needs so many.
    address_connections: int = 1_024
    key_ratings: int = 10_000
    history_entries: int = 100_000
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
    # Proxies and clients give up after 60 s by default.
    train_wait_s: float = 50.0
    erase_wait_s: float = 5.0
    # Where a Python environment keeps the documents of what is installed in it; `make docs` puts it there.
    manual_dir: Path = Path(sys.prefix) / "share/doc/foldin"


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """A worker's place among its siblings: its number, the listening socket it inherits, the folder they
    share. The flags are those by which the supervisor starts its workers.
    """

    worker: int = setting(0, HIDDEN, int, flag="--worker")
    socket: int | None = setting(None, HIDDEN, int, flag="--socket")
    folder: Path | None = setting(None, HIDDEN, Path, flag="--folder")


@dataclass(frozen=True, slots=True)
class _CommandLine:
    settings: ServiceSettings = nested(ServiceSettings)
    slot: WorkerSlot = nested(WorkerSlot)


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ServiceSettings, WorkerSlot]:
    """Settings from flags and variables, and where a supervisor put this worker.

    Raises SettingsError with every mistake.
    """
    command = f"python -m {module_name('service')}"
    read = load(_CommandLine, argv, environ, command=command, about="Serve the HTTP API.")
    return read.settings, read.slot
