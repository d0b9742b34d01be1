"""Several players at the same world, side by side, and how wrong each is so far: what `foldin up` shows.

Invariant: every player has a token of its own and asks for the same world, so all face the same pairs.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp
from rich.console import Console
from rich.live import Live

from environment.client import EnvironmentClient
from environment.settings import MAX_SEED
from evaluation.course.command import run_command
from evaluation.course.playboard import Progress, Standing, closing_lines, progress_line, progress_table
from evaluation.course.seat import GameOverError, Seat
from evaluation.course.settings import PlaySettings
from evaluation.players import API_PLAYERS, SharedApi, make_player, seeing


async def play(settings: PlaySettings) -> AsyncGenerator[Progress, None]:
    """Play; yield when the players have learned the history, every `report_every` steps, and at the end.

    Ends early when the world has no pair left. Raises EnvironmentFailedError, and PlayerFailedError when a
    player cannot learn the history; single missing answers are counted instead. A caller that leaves early
    closes the generator.
    """
    tag = secrets.token_hex(4)  # plays at one environment do not disturb each other
    seed = settings.seed if settings.seed is not None else secrets.randbelow(MAX_SEED)
    timeout = aiohttp.ClientTimeout(total=settings.prepare_timeout_s)
    async with aiohttp.ClientSession(timeout=timeout) as session, settings.client(settings.api) as client:
        api = SharedApi(client)
        seats = [_seat(settings, position, session, api, tag) for position in range(len(settings.players))]
        try:
            histories = [await seat.reset(seed) for seat in seats]
            same_world = len({history.digest() for history in histories}) == 1
            if settings.known is not None:
                histories = [history.latest(settings.known) for history in histories]
            known = histories[0].rating.size
            for seat, history in zip(seats, histories, strict=True):
                await seat.prepare(history, timeout_s=settings.prepare_timeout_s)
            # Ten reports, however long a play is.
            report_every = settings.report_every or max(settings.steps // 10, 1)
            step = 0
            yield Progress(step, settings.steps, known, same_world, _standings(seats))
            while step < settings.steps:
                try:
                    await _step(seats, settings.delay_ms)
                except GameOverError:
                    break
                step += 1
                if step % report_every == 0 and step < settings.steps:
                    yield Progress(step, settings.steps, known, same_world, _standings(seats))
            yield Progress(step, settings.steps, known, same_world, _standings(seats))
        finally:
            for seat in seats:
                await seat.close()


async def _step(seats: list[Seat], delay_ms: int) -> None:
    await asyncio.sleep(delay_ms / 1_000)  # of 0, too: lets a signal in between two steps
    # One after the other: players that compute would else be timed with each other's work.
    for seat in seats:
        await seat.step()


def _seat(
    settings: PlaySettings, position: int, session: aiohttp.ClientSession, api: SharedApi, tag: str
) -> Seat:
    name = settings.players[position]
    # Players on one API would see each other's ratings: the second and later ones keep to ids of their own.
    own_ids = seeing(name) in API_PLAYERS and any(
        seeing(other) in API_PLAYERS for other in settings.players[:position]
    )
    token = f"{tag}-{position}"
    player = make_player(name, seed=position, api=api, tag=token, replace=settings.replace, own_ids=own_ids)
    client = EnvironmentClient(session, settings.environment, f"play-{token}")
    return Seat(name, player, client, answer_timeout_s=settings.answer_timeout_s)


def _standings(seats: list[Seat]) -> tuple[Standing, ...]:
    return tuple(Standing(seat.name, seat.tally(), seat.prepare_s, seat.note) for seat in seats)


async def show(settings: PlaySettings, console: Console) -> Progress:
    """Play and show the progress on `console`; return the final state. Raises what `play` raises."""
    console.print(f"[dim]playing {settings.environment}, deployed at {settings.api}[/dim]", highlight=False)
    async with aclosing(play(settings)) as reports:
        if console.is_terminal:
            last = await _show_live(reports, console)
        else:
            async for last in reports:
                _print(console, progress_line(last))
    for line in closing_lines(last):
        _print(console, line)
    return last


async def _show_live(reports: AsyncGenerator[Progress, None], console: Console) -> Progress:
    with Live(console=console, auto_refresh=False) as live:
        async for last in reports:
            live.update(progress_table(last), refresh=True)
    return last


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def main(argv: list[str]) -> int:
    """Run the command; return its exit code, see `run_command`."""
    return run_command("play", lambda: show(PlaySettings.load(argv, os.environ), Console()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
