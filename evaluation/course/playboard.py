"""A play in progress as text: a table for a terminal, one line a report elsewhere. Pure."""

import math
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from evaluation.results.course import Tally

BARS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 20  # as wide as a column of a terminal can be beside the others
# Squared errors at the ends of a bar, on a logarithmic scale: what the best player can reach, a bad guess.
LOWEST_BAR, HIGHEST_BAR = 0.02, 5.0
RECENT_STEPS = 100  # their mean has a tenth of the deviation of one step


@dataclass(frozen=True, slots=True)
class Standing:
    """How one player does. `note`: what a reader should know, empty for nothing."""

    player: str
    tally: Tally
    prepare_s: float
    note: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The state after `step` of `steps`. `same_world` is False where an environment gave each player another
    world.
    """

    step: int
    steps: int
    known: int
    same_world: bool
    standings: tuple[Standing, ...]


def progress_line(progress: Progress) -> str:
    """Return one report as one line of plain text."""
    if progress.step == 0:
        learned = ", ".join(
            f"{standing.player} {standing.prepare_s:.1f} s" for standing in progress.standings
        )
        return f"{progress.known} ratings known, learned by: {learned}"
    errors = ", ".join(
        f"{player} {tally.mse:.3f} (last {RECENT_STEPS}: {tally.recent_mse(RECENT_STEPS):.3f})"
        for player, tally in ((standing.player, standing.tally) for standing in progress.standings)
    )
    return f"step {progress.step} of {progress.steps}, mean squared error: {errors}"


def closing_lines(progress: Progress) -> list[str]:
    """Return the end of a play: ranking, missing answers, notes."""
    ranking = sorted(progress.standings, key=lambda standing: standing.tally.mse)
    lines = [f"mean squared error over {progress.step} steps:"]
    for standing in ranking:
        tally = standing.tally
        line = f"  {standing.player:<16}{tally.mse:>9.3f}   answers {tally.answer_ms(50):.1f} ms"
        line += f", {tally.missing} missing" if tally.missing else ""
        line += f"   ({standing.note})" if standing.note else ""
        lines.append(line)
    if not progress.same_world:
        lines.append(
            "The environment gave each player a world of its own, so the errors can only be compared roughly."
        )
    return lines


def progress_table(progress: Progress) -> Table:
    """Return the table for a terminal."""
    known = f"{progress.known} ratings known before: mean squared error"
    title = f"step {progress.step} of {progress.steps}, {known}"
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("player")
    table.add_column("error so far", justify="right")
    table.add_column(f"last {RECENT_STEPS}", justify="right")
    table.add_column("course of the error", min_width=CURVE_POINTS)
    table.add_column("answer", justify="right")
    lowest = min((standing.tally.mse for standing in progress.standings), default=math.nan)
    for standing in progress.standings:
        tally = standing.tally
        style = "bold green" if tally.mse == lowest else ""
        table.add_row(
            Text(standing.player, style=style),
            Text(_figure(tally.mse), style=style),
            _figure(tally.recent_mse(RECENT_STEPS)),
            curve(tally, progress.steps),
            "" if math.isnan(tally.answer_ms(50)) else f"{tally.answer_ms(50):.1f} ms",
        )
    return table


def curve(tally: Tally, steps: int) -> str:
    """Return the squared error in the course of the play: a bar for each twentieth of it."""
    width = max(math.ceil(steps / CURVE_POINTS), 1)
    bars = []
    for first in range(0, tally.steps, width):
        error = float(tally.squared_error[first : first + width].mean())
        height = math.log(max(error, LOWEST_BAR) / LOWEST_BAR) / math.log(HIGHEST_BAR / LOWEST_BAR)
        bars.append(BARS[min(int(height * len(BARS)), len(BARS) - 1)])
    return "".join(bars)


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
