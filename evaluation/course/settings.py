"""Settings of one play and of one evaluation. Frozen, read once, every mistake reported together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from environment.settings import MAX_SEED, ServerSettings
from environment.world import MAX_PAIRS, WorldOptions
from evaluation.players import API_PLAYERS, LOCAL_PLAYERS, player_name
from processes.settings import load, nested, real, setting, switch, url, whole


@dataclass(frozen=True, slots=True)
class PlaySettings:
    """One world, several players side by side. `known`: how much of the history the players are shown, its
    latest part.
    """

    environment: str = field(
        default="http://127.0.0.1:8081", metadata=setting("address of the environment", url)
    )
    api: str = field(
        default="http://127.0.0.1:8080",
        metadata=setting("address of the Foldin API, for the deployed players", url),
    )
    steps: int = field(default=1_000, metadata=setting("steps to play", whole(1, MAX_PAIRS)))
    players: tuple[str, ...] = field(
        default=("random", "constant", "bias", "deployed"),
        metadata=setting("who plays", player_name, many=True),
    )
    seed: int | None = field(
        default=None, metadata=setting("world to play, random without", whole(0, MAX_SEED))
    )
    known: int | None = field(
        default=None,
        metadata=setting("show the players only so many ratings of the history", whole(0, MAX_PAIRS)),
    )
    replace: bool = field(
        default=False, metadata=setting("let the API forget all that it knows", switch, switch=True)
    )
    delay_ms: int = field(
        default=0, metadata=setting("pause before each step, in milliseconds", whole(0, 60_000))
    )
    report_every: int = field(default=100, metadata=setting("steps between two reports", whole(1, MAX_PAIRS)))
    answer_timeout_s: float = field(
        default=2.0, metadata=setting("an answer that takes longer is missing", real(0.001, 60))
    )
    prepare_timeout_s: float = field(
        default=120.0, metadata=setting("time to learn the history", real(0.1, 3600))
    )

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "PlaySettings":
        """Read flags and FOLDIN_PLAY_* variables. Raises SettingsError naming every mistake."""
        about = "Play one world of the environment with several players and show how wrong each is."
        return load(
            cls, "FOLDIN_PLAY", argv, environ, command="python -m evaluation.course.play", about=about
        )


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """The course's protocol. Without `environment` a server of its own plays, with the options in `world`.

    `players` empty: all that need no API, and the deployed ones where `api` is given. `known`: one evaluation
    for each length of history; the players are shown its latest part. `output` None: nothing is written.
    """

    environment: str | None = field(
        default=None, metadata=setting("address of an environment; without, one is started", url)
    )
    api: str | None = field(
        default=None, metadata=setting("address of the Foldin API, for the deployed players", url)
    )
    players: tuple[str, ...] = field(
        default=(), metadata=setting("who plays; without, all that can", player_name, many=True)
    )
    steps: int = field(default=1_000, metadata=setting("steps in a run", whole(1, MAX_PAIRS)))
    runs: int = field(
        default=3, metadata=setting("independent runs, each in a world of its own", whole(1, 1_000))
    )
    seed: int | None = field(
        default=None, metadata=setting("makes the evaluation repeatable", whole(0, MAX_SEED))
    )
    known: tuple[int, ...] = field(
        default=(10_000,),
        metadata=setting("ratings known at the start; several for a curve", whole(0, MAX_PAIRS), many=True),
    )
    replace: bool = field(
        default=False, metadata=setting("let the API forget all that it knows", switch, switch=True)
    )
    delay_ms: int = field(
        default=0,
        metadata=setting("pause of `deployed` before each step, in ms (the course: 100)", whole(0, 60_000)),
    )
    answer_timeout_s: float = field(
        default=2.0, metadata=setting("an answer that takes longer is missing", real(0.001, 60))
    )
    prepare_timeout_s: float = field(
        default=120.0, metadata=setting("time to learn the history", real(0.1, 3600))
    )
    output: Path | None = field(
        default=Path("results/evaluation"), metadata=setting("folder for the CSV files and the picture", Path)
    )
    world: WorldOptions = field(default_factory=WorldOptions, metadata=nested(without=("n_known",)))

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "EvaluationSettings":
        """Read flags and FOLDIN_EVALUATE_* variables. Raises SettingsError naming every mistake."""
        about = (
            "The course's protocol: mean squared error of 1,000 steps, 3 runs; a missing answer counts 1,000."
        )
        return load(cls, "FOLDIN_EVALUATE", argv, environ, command="foldin evaluate", about=about)

    def lineup(self, brought: Collection[str] = ()) -> tuple[str, ...]:
        """The players in the order in which they play; `brought` are those that the caller adds. The frozen
        one before the one that adds to the API's ratings.
        """
        if self.players:
            return self.players
        return (*LOCAL_PLAYERS, *brought, *(reversed(API_PLAYERS) if self.api else ()))

    @property
    def server(self) -> ServerSettings:
        """The server that plays when no environment is given: loopback, any free port, enough history for
        every `known`.
        """
        return ServerSettings(port=0, world=replace(self.world, n_known=max(self.known)))

    def problems(self) -> list[str]:
        """What is contradictory in these settings, one sentence each."""
        found = []
        if not self.known:
            found.append("known needs at least one number")
        elif self.environment is None:
            found.extend(self.server.world.problems())
            unseen = self.world.n_users * self.world.n_items - max(self.known)
            if not found and self.steps > unseen:
                found.append(f"steps must be at most the {unseen} pairs that are not known, not {self.steps}")
        elif self.world != WorldOptions():
            found.append("a world's options can only be set where no environment is given")
        if self.api is None and any(name in API_PLAYERS for name in self.players):
            found.append(f"the players {' and '.join(API_PLAYERS)} need the address of an API")
        return found
