"""Settings of one play and of one evaluation by the course's protocol."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from environment.settings import MAX_SEED, ServerSettings
from environment.world import COURSE_STEPS, MAX_PAIRS, WorldOptions
from evaluation.players import API_PLAYERS, LOCAL_PLAYERS, player_name, seeing
from foldin_client import AsyncClient
from processes import module_name
from processes.settings import SettingsError, api_key_of, load, nested, real, setting, url, whole


@dataclass(frozen=True, slots=True)
class PlayerLimits:
    """What players may take and do, in a play and in an evaluation."""

    key: str | None = setting(
        None,
        "API key, where the API asks for one; in the variable or a file others cannot see it",
        variable="FOLDIN_API_KEY",
        flag="--key",
        secret=True,
    )
    key_file: Path | None = setting(
        None, "file that holds the API key", Path, variable="FOLDIN_API_KEY_FILE", flag="--key-file"
    )
    replace: bool = setting(False, "let the API forget all that it knows")
    answer_timeout_s: float = setting(
        2.0, "an answer that takes longer is missing, in seconds", real(0.001, 60)
    )
    prepare_timeout_s: float = setting(120.0, "seconds to learn the history", real(0.1, 3600))

    def client(self, api: str) -> AsyncClient:
        """Return a client of an API that sends each call once. Raises SettingsError."""
        key = api_key_of(self.key, self.key_file)
        try:
            return AsyncClient(api, key, timeout_s=self.prepare_timeout_s, attempts=1)
        except ValueError as exc:
            raise SettingsError(str(exc)) from exc


@dataclass(frozen=True, slots=True)
class PlaySettings(PlayerLimits):
    """One world, several players side by side."""

    environment: str = setting("http://127.0.0.1:8081", "address of the environment", url)
    api: str = setting("http://127.0.0.1:8080", "address of the Foldin API, for the deployed players", url)
    steps: int = setting(
        COURSE_STEPS, "steps to play", whole(1, MAX_PAIRS), variable="FOLDIN_PLAY_STEPS", flag="--steps"
    )
    players: tuple[str, ...] = setting(
        ("random", "constant", "bias", "deployed"), "who plays", player_name, many=True
    )
    seed: int | None = setting(None, "world to play, random without", whole(0, MAX_SEED))
    # Fewer let a viewer see the error of a player fall that learns while it plays.
    known: int | None = setting(
        None,
        "show the players only so many ratings of the history, the latest",
        whole(0, MAX_PAIRS),
        shown="all",
    )
    delay_ms: int = setting(0, "pause before each step, in ms (the course: 100)", whole(0, 60_000))
    report_every: int | None = setting(
        None, "steps between two reports", whole(1, MAX_PAIRS), shown="a tenth of the steps"
    )

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "PlaySettings":
        """Read flags and variables. Raises SettingsError with every mistake."""
        about = "Play one world of the environment with several players and show how wrong each is."
        return load(
            cls, argv, environ, command=f"python -m {module_name('evaluation.course.play')}", about=about
        )


@dataclass(frozen=True, slots=True)
class EvaluationSettings(PlayerLimits):
    """The course's protocol. Without `environment` a server of its own plays, with the options in `world`.

    `players` empty: all that need no API, and the deployed ones where `api` is given. `known`: one evaluation
    for each length of history; the players are shown its latest part. `output` None: nothing is written.
    """

    environment: str | None = setting(None, "address of an environment; without, one is started", url)
    api: str | None = setting(None, "address of the Foldin API, for the deployed players", url)
    players: tuple[str, ...] = setting((), "who plays", player_name, many=True, shown="all that can")
    steps: int = setting(COURSE_STEPS, "steps in a run", whole(1, MAX_PAIRS))
    runs: int = setting(3, "independent runs, each in a world of its own", whole(1, 1_000))
    seed: int | None = setting(None, "makes the evaluation repeatable", whole(0, MAX_SEED))
    known: tuple[int, ...] = setting(
        (10_000,), "ratings known at the start; several for a curve", whole(0, MAX_PAIRS), many=True
    )
    delay_ms: int = setting(
        0, "pause of `deployed` before each step, in ms (the course: 100)", whole(0, 60_000)
    )
    # Below the working directory: results are the user's, as those of `foldin evaluate FILE`.
    output: Path | None = setting(
        Path("results/evaluation"), "folder for the CSV files and the pictures", Path
    )
    world: WorldOptions = nested(WorldOptions, without=("n_known",))

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> "EvaluationSettings":
        """Read flags. Raises SettingsError with every mistake."""
        about = (
            "The course's protocol: mean squared error of 1,000 steps, 3 runs; a missing answer counts 1,000."
        )
        return load(cls, argv, environ, command="foldin evaluate", about=about)

    def lineup(self, brought: Collection[str] = ()) -> tuple[str, ...]:
        """Return the players in the order in which they play; `brought` are those that the caller adds."""
        if self.players:
            return self.players
        # The frozen player first: the other one adds to the ratings of the API.
        return (*LOCAL_PLAYERS, *brought, *(reversed(API_PLAYERS) if self.api else ()))

    @property
    def server(self) -> ServerSettings:
        """Settings of the server that is started where no environment is named: any free port, enough history
        for every `known`.
        """
        return ServerSettings(port=0, world=replace(self.world, n_known=max(self.known)))

    def problems(self) -> list[str]:
        """What is contradictory in these settings, one sentence each."""
        found = []
        if not self.known:
            found.append("known needs at least one number")
        elif self.environment is None:
            found.extend(self.server.world.problems())
            unrated = self.world.n_users * self.world.n_items - max(self.known)
            if not found and self.steps > unrated:
                found.append(
                    f"steps must be at most the {unrated} pairs that are not known, not {self.steps}"
                )
        elif self.world != WorldOptions():
            # A server that runs has drawn its options already.
            found.append("a world's options can only be set where no environment is given")
        if self.api is None and any(seeing(name) in API_PLAYERS for name in self.players):
            found.append(f"the players {' and '.join(API_PLAYERS)} need the address of an API")
        return found
