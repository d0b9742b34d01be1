"""Settings of a trainer process. Invariant: read once, all errors reported together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from featurestore.settings import StoreSettings, host_and_port
from featurestore.telemetry.log_lines import FORMS
from processes import module_name
from processes.settings import LOG_LEVELS, choice, data_folder, load, nested, real, setting, whole
from trainer.engines import ENGINES, EngineName
from trainer.gate import Policy
from trainer.schedule import Rules


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _address(text: str) -> Address:
    try:
        host, port = host_and_port(text, 0)
    except ValueError:
        host, port = "", 0
    if not host or not port:
        raise ValueError(f"must be an address and a port like 127.0.0.1:9108 or [::1]:9108, not {text!r}")
    return Address(host, port)


def _engine(text: str) -> EngineName:
    name = choice(ENGINES)(text)
    if name == "neural" and find_spec("torch") is None:
        raise ValueError("is neural, which needs torch: pip install foldin[neural]")
    return name


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How a trainer works.

    `rules`: when to refit unasked. `batch_events`: at most so many events in a batch; `linger_s`: smaller
    batches follow each other no faster. `lease_ttl_s`: how long a leader that is gone keeps others waiting.
    `grace_s`: what a stop may take. `abandon_s`: how long a new epoch may be prepared unasked.
    """

    store: StoreSettings = nested(StoreSettings)
    archive_dir: Path = setting(
        Path("data/archive"),
        "folder of the archive of ratings",
        data_folder,
        variable="FOLDIN_ARCHIVE_DIR",
    )
    linger_s: float = setting(
        0.5,
        "seconds between two segments of the archive while few ratings come in; items learn from a rating "
        "once it is archived",
        real(0.05, 60.0, "seconds"),
        variable="FOLDIN_LINGER_S",
    )
    store_dir: Path | None = setting(
        None,
        "folder on the store's disk, where that is one of this host: ratings are refused before it is full",
        Path,
        variable="FOLDIN_STORE_DIR",
    )
    engine: EngineName = setting(
        "variational",
        "how to fit: `variational`, `implicit`, or `neural`, which needs the extra of that name",
        _engine,
        variable="FOLDIN_ENGINE",
    )
    rules: Rules = nested(Rules)
    fit_threads: int | None = setting(
        None,
        "threads of a fit; what it learns does not depend on them",
        whole(1, 1024),
        variable="FOLDIN_FIT_THREADS",
        shown="the cores that the trainer may use, of which a refit that was not asked for leaves one",
    )
    trash_days: float = setting(
        7.0,
        "days for which replaced epochs stay in the trash of the archive",
        real(0.0, 36_500.0, "days"),
        variable="FOLDIN_TRASH_DAYS",
    )
    trash_bytes: int = setting(
        10_000_000_000,  # 700 million ratings, on a disk that has room for the archive and its merges
        "bytes of the trash: beyond, the oldest entries go before their time; the newest stays",
        whole(0, 2**53),
        variable="FOLDIN_TRASH_BYTES",
    )
    address: Address | None = setting(
        None,
        "address and port of the trainer's own `/livez` and `/metrics`, like `127.0.0.1:9108`",
        _address,
        variable="FOLDIN_TRAINER_ADDRESS",
        shown="none: not served",
    )
    adopt: bool = setting(
        False, "go on with the store as it is when the archive is not its own: that goes to the trash"
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
    batch_events: int = 12_800  # 25 ms of the event loop, at 2 us an event
    lease_ttl_s: float = 5.0
    grace_s: float = 5.0
    abandon_s: float = 60.0
    gate: Policy = field(default_factory=Policy)

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "TrainerSettings":
        """Read the FOLDIN_* variables. Raises SettingsError with every mistake."""
        about = "Archives ratings, fits them, publishes the fits."
        return load(cls, argv, environ, command=f"python -m {module_name('trainer')}", about=about)

    @property
    def archive_folder(self) -> Path:
        """Folder of this namespace's archive."""
        return self.archive_dir / self.store.namespace
