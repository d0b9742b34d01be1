"""The course's protocol: every player alone in the same worlds, 1,000 steps, 3 runs, mean squared error.

Invariant: all players of a run face the same pairs in the same order, none of which they were shown before.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

import aiohttp
from rich.console import Console

from environment.client import EnvironmentClient, EnvironmentFailedError
from environment.server import running_server
from environment.settings import MAX_SEED
from evaluation.course.command import run_command
from evaluation.course.seat import GameOverError, Seat
from evaluation.course.settings import EvaluationSettings
from evaluation.pictures import draw_course, drawn
from evaluation.players import (
    BROUGHT_PLAYERS,
    MakePlayer,
    PlayerFailedError,
    SharedApi,
    make_player,
    seeing,
)
from evaluation.report import new_console, players_table, print_whole, write_course_files
from evaluation.results.course import EvaluationReport, Result
from foldin_client import FoldinError
from processes.settings import SettingsError

PROGRESS_STEPS = 250  # steps between two reports: a second or two of most players
LEARNS_MEANWHILE = "deployed"  # for the others time stands still between two steps


@dataclass(frozen=True, slots=True)
class Moment:
    """Where an evaluation is: `player` is at `step` of `run` with `known` ratings, and this wrong so far; it
    is the `game`th of all `games`, counted from 1.
    """

    game: int
    games: int
    known: int
    run: int
    runs: int
    player: str
    step: int
    steps: int
    mse: float


async def evaluate(
    settings: EvaluationSettings,
    on_progress: Callable[[Moment], None] = lambda _moment: None,
    brought: Mapping[str, MakePlayer] = MappingProxyType({}),
) -> EvaluationReport:
    """Play all runs. A failing player counts as missing.

    `brought`: players by name that the caller adds. Raises SettingsError for a player of the settings that
    cannot be made and for an API that does not answer, EnvironmentFailedError when the environment does not.
    """
    lineup = settings.lineup(brought)
    _check(lineup, brought)
    # Drawn anew unless one is wanted: a figure must not hang on one lucky world.
    base_seed = settings.seed if settings.seed is not None else secrets.randbelow(MAX_SEED)
    timeout = aiohttp.ClientTimeout(total=settings.prepare_timeout_s)
    results: list[Result] = []
    worlds: dict[int, set[bytes]] = {}
    async with (
        _environment(settings) as address,
        aiohttp.ClientSession(timeout=timeout) as session,
        _api(settings) as api,
    ):
        tag = secrets.token_hex(4)
        evaluation = _Evaluation(settings, session, address, api, tag, on_progress, brought)
        games = tuple(product(settings.known, range(1, settings.runs + 1), lineup))
        for game, (known, run, name) in enumerate(games, 1):
            # The run decides the world: the same for all players and all lengths of history.
            seed = (base_seed + run) % MAX_SEED
            at = Moment(game, len(games), known, run, settings.runs, name, 0, settings.steps, 0.0)
            result, world = await evaluation.play(at, seed=seed)
            results.append(result)
            # An environment that ignores the seed gives each player a world of its own.
            worlds.setdefault(run, set()).add(world)
    same_worlds = all(len(histories) == 1 for histories in worlds.values())
    return EvaluationReport(tuple(results), settings.steps, base_seed, same_worlds)


def _check(lineup: Sequence[str], brought: Mapping[str, MakePlayer]) -> None:
    # Before the first game: a run takes minutes.
    for name in lineup:
        if seeing(name) in BROUGHT_PLAYERS:
            try:
                make_player(name, seed=0, api=None, tag="", brought=brought)
            except PlayerFailedError as error:
                raise SettingsError(
                    f"{error}: leave it out of --players, or install what it needs"
                ) from error


@asynccontextmanager
async def _environment(settings: EvaluationSettings) -> AsyncIterator[str]:
    if settings.environment is not None:
        yield settings.environment
        return
    async with running_server(settings.server) as address:
        yield address


@asynccontextmanager
async def _api(settings: EvaluationSettings) -> AsyncIterator[SharedApi | None]:
    if settings.api is None:
        yield None
        return
    async with settings.client(settings.api) as client:
        try:
            # Before a game: a run takes minutes, and one that is not asked scores as one that fails.
            await client.status()
        except FoldinError as error:
            raise SettingsError(
                f"{error}: start one with `foldin up`, name another with --api, or leave that out"
            ) from error
        yield SharedApi(client)


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What the games of one evaluation share. `tag` begins the tokens of its games and its own ids."""

    settings: EvaluationSettings
    session: aiohttp.ClientSession
    environment: str
    api: SharedApi | None
    tag: str
    on_progress: Callable[[Moment], None]
    brought: Mapping[str, MakePlayer]

    async def play(self, at: Moment, *, seed: int) -> tuple[Result, bytes]:
        """Play one game, from the moment before its first step, with one player. Return the result and the
        digest of its history.
        """
        settings, name, known, run = self.settings, at.player, at.known, at.run
        started = time.perf_counter()
        tag = f"{self.tag}-{known}-{run}-{name}"
        player = make_player(
            name, seed=seed, api=self.api, tag=tag, replace=settings.replace, brought=self.brought
        )
        client = EnvironmentClient(self.session, self.environment, f"evaluate-{tag}")
        seat = Seat(name, player, client, answer_timeout_s=settings.answer_timeout_s)
        pause_s = settings.delay_ms / 1_000 if seeing(name) == LEARNS_MEANWHILE else 0.0
        try:
            history = await seat.reset(seed)
            with suppress(PlayerFailedError):  # its answers are missing from here on, as its note says
                await seat.prepare(history.latest(known), timeout_s=settings.prepare_timeout_s)
            for step in range(1, settings.steps + 1):
                await asyncio.sleep(pause_s)
                await seat.step()
                if step % PROGRESS_STEPS == 0 or step == settings.steps:
                    self.on_progress(replace(at, step=step, mse=seat.tally().mse))
        except GameOverError as error:
            raise EnvironmentFailedError(
                f"the world had fewer than {settings.steps} pairs to play"
            ) from error
        finally:
            await seat.close()
        seconds = time.perf_counter() - started
        shown = min(known, history.rating.size)
        return Result(name, shown, run, seat.tally(), seat.prepare_s, seconds, seat.note), history.digest()


def _line_a_game(console: Console, on_progress: Callable[[Moment], None]) -> Callable[[Moment], None]:
    def show(moment: Moment) -> None:
        if moment.step == moment.steps:
            line = (
                f"{moment.known} known, run {moment.run} of {moment.runs}, {moment.player}: "
                f"step {moment.step} of {moment.steps}, mean squared error {moment.mse:.3f}"
            )
            console.print(line, soft_wrap=True)
        on_progress(moment)

    return show


async def _evaluate_and_show(
    settings: EvaluationSettings,
    console: Console,
    brought: Mapping[str, MakePlayer],
    on_progress: Callable[[Moment], None],
) -> EvaluationReport:
    report = await evaluate(settings, _line_a_game(console, on_progress), brought)
    print_whole(console, players_table(report))
    if not report.same_worlds:
        console.print("This environment gave each player a world of its own: compare roughly.")
    if settings.output is not None:
        for line in write_files(report, settings.output):
            console.print(line, markup=False, soft_wrap=True)
    return report


def write_files(report: EvaluationReport, folder: Path) -> list[str]:
    """Write the CSV files and the pictures; return a line a file for the reader. Raises OSError."""
    written = [f"wrote {path}" for path in write_course_files(report, folder)]
    return [*written, *drawn(draw_course, report, folder)]


def main(
    argv: Sequence[str],
    brought: Mapping[str, MakePlayer] = MappingProxyType({}),
    environ: Mapping[str, str] | None = None,
    tell: Callable[[EvaluationReport], None] = lambda _report: None,
    on_progress: Callable[[Moment], None] = lambda _moment: None,
    *,
    failed: Callable[[str], None] = lambda _why: None,
) -> int:
    """Run the command; return its exit code, see `run_command`. `brought`: players that the caller adds;
    `environ`: in place of the variables of this process; `tell` is given the report, `on_progress` where the
    evaluation is, `failed` why it has none.
    """
    variables = os.environ if environ is None else environ

    async def run() -> None:
        settings = EvaluationSettings.load(argv, variables)
        tell(await _evaluate_and_show(settings, new_console(), brought, on_progress))

    return run_command("evaluate", run, failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
