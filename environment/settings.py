"""Settings of the environment's server. Frozen, read once, every mistake reported together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from environment.world import WorldOptions
from processes.settings import load, nested, setting, whole

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The environment's server. Without a seed every reset draws a world that nobody has seen."""

    host: str = field(default="127.0.0.1", metadata=setting("address to listen on"))
    port: int = field(
        default=8081, metadata=setting("port to listen on, 0 for any free one", whole(0, 65_535))
    )
    seed: int | None = field(
        default=None, metadata=setting("makes the worlds of each token repeatable", whole(0, MAX_SEED))
    )
    max_tokens: int = field(
        default=10_000,
        metadata=setting("players remembered at once; then the longest silent one goes", whole(1, 1_000_000)),
    )
    world: WorldOptions = field(default_factory=WorldOptions, metadata=nested())

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "ServerSettings":
        """Read flags and FOLDIN_ENVIRONMENT_* variables. Raises SettingsError naming every mistake."""
        about = "The rating environment of the lecture over HTTP."
        return load(cls, "FOLDIN_ENVIRONMENT", argv, environ, command="python -m environment", about=about)

    def problems(self) -> list[str]:
        """What is contradictory in these settings, one sentence each."""
        return self.world.problems()
