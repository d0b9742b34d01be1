"""Settings of the environment's server. Frozen, read once, every mistake reported together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from environment.world import WorldOptions
from processes import module_name
from processes.settings import load, nested, setting, whole

MAX_SEED = 2**63 - 1  # what JSON readers with 64-bit integers keep
MAX_TOKENS_VARIABLES = 1_000_000  # of the least windows of all tokens these are 0.5 GB


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The environment's server. Without a seed every reset draws a new world."""

    FILE_SECTION: ClassVar[str] = "environment"

    host: str = setting(
        "127.0.0.1", "address to listen on", variable="FOLDIN_ENVIRONMENT_HOST", flag="--host"
    )
    port: int = setting(
        8081,
        "port to listen on, 0 takes a free one",
        whole(0, 65_535),
        variable="FOLDIN_ENVIRONMENT_PORT",
        flag="--port",
    )
    seed: int | None = setting(
        None,
        "the n-th world of a token is then always the same",
        whole(0, MAX_SEED),
        variable="FOLDIN_ENVIRONMENT_SEED",
        flag="--seed",
    )
    max_tokens: int = setting(
        10_000,
        "players remembered at once; beyond that the one that was silent longest is forgotten",
        whole(1, 1_000_000),
    )
    world: WorldOptions = nested(WorldOptions)

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "ServerSettings":
        """Read flags and variables. Raises SettingsError with every mistake."""
        about = "The rating environment of the lecture over HTTP."
        return load(cls, argv, environ, command=f"python -m {module_name('environment')}", about=about)

    def problems(self) -> list[str]:
        """What is contradictory in these settings, one sentence each."""
        found = self.world.problems()
        if self.max_tokens * self.world.n_variables > MAX_TOKENS_VARIABLES:
            found.append(f"max-tokens times variables must be at most {MAX_TOKENS_VARIABLES}")
        return found
