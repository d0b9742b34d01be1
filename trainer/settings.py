"""Settings of a trainer process. Invariant: read once, all errors told together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from featurestore.settings import EnvironmentReader, StoreSettings, parse_scale
from trainer.engines import ENGINES, EngineName
from trainer.gate import Policy
from trainer.schedule import Rules


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How a trainer works.

    `rules`: when to refit unasked.
    `batch_events`: at most so many events in a batch (2 us of the event loop each); `linger_s`: batches of
    less follow each other no faster. `lease_ttl_s`: how long a leader that is gone keeps others waiting.
    `grace_s`: what a stop may take. `abandon_s`: how long a new history may be prepared without anybody
    asking for it.
    """

    store: StoreSettings
    archive_dir: Path = Path("data/archive")
    engine: EngineName = "variational"
    rules: Rules = field(default_factory=lambda: Rules(5_000, 60.0, 0.2))
    fit_threads: int = 1
    log_level: str = "INFO"
    batch_events: int = 12_800
    linger_s: float = 0.5
    lease_ttl_s: float = 5.0
    grace_s: float = 5.0
    abandon_s: float = 60.0
    gate: Policy = field(default_factory=Policy)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "TrainerSettings":
        """The settings in an environment. Raises `SettingsInvalid`."""
        reader = EnvironmentReader(environ)
        name = reader.choice("FOLDIN_ENGINE", "variational", ENGINES)
        engine = next(known for known in ENGINES if known == name)
        if engine == "neural" and find_spec("torch") is None:
            reader.problem("FOLDIN_ENGINE", "is neural, which needs torch: pip install foldin[neural]")
        settings = cls(
            store=StoreSettings.from_environment(reader),
            archive_dir=Path(reader.text("FOLDIN_ARCHIVE_DIR", "data/archive")),
            engine=engine,
            rules=Rules(
                reader.integer("FOLDIN_REFIT_EVENTS", 5_000),
                reader.seconds("FOLDIN_REFIT_SECONDS", 60.0),
                reader.integer("FOLDIN_REFIT_GROWTH", 20, 0, 1_000_000) / 100.0,
            ),
            fit_threads=reader.integer("FOLDIN_FIT_THREADS", 1, 1, 1024),
            log_level=reader.choice("FOLDIN_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
        )
        reader.finish()
        return settings

    @property
    def scale(self) -> tuple[float, float, float | None]:
        """Low end, high end and step of the ratings."""
        scale = parse_scale(self.store.scale)
        return scale.low, scale.high, scale.step
