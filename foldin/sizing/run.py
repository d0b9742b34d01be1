"""`foldin size`: prints what a deployment takes, and what each figure rests on."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from factors import MAX_RANK
from foldin.settings import FrontDoorSettings
from foldin.sizing.model import Deployment, Figure
from processes.settings import setting, whole

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_MINUTE, _HOUR = 60, 3600  # seconds


def amount(low: float, high: float) -> Callable[[str], float]:
    """Make a parser of a number between `low` and `high` that may end in k, M, G or B, or T."""

    def parse(text: str) -> float:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kMGBT]?)", text, re.ASCII)
        number = float(found[1]) * _UNITS[found[2]] if found else -1.0
        if not low <= number <= high:
            raise ValueError(
                f"must be a number from {low:g} to {high:g}, as 250000, 10M or 1.5B, not {text!r}"
            )
        return number

    return parse


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """Options of `foldin size`. `sessions`: 16 where ratings of one evening have something in common."""

    users: float = setting(..., "users who rated, as 10M", amount(1, 1e12), metavar="N")
    items: float = setting(..., "items", amount(1, 1e10), metavar="N")
    ratings: float = setting(
        ..., "ratings, those that replaced others included", amount(1, 1e14), metavar="N"
    )
    rank: int = setting(16, "of the model", whole(1, MAX_RANK))
    sessions: int = setting(0, "that a user's record keeps: 16 at most", whole(0, 16))
    server: float = setting(
        32e9, "bytes of memory of a server of the store", amount(1e8, 1e14), shown="32G", metavar="N"
    )
    replicas: int = setting(1, "of each server", whole(0, 5))

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        return ["--ratings are no fewer than --users, who rated"] if self.ratings < self.users else []


def run_size(options: SizeOptions, settings: FrontDoorSettings) -> int:
    """Print the figures; return the exit code."""
    size = Deployment(
        options.users,
        options.items,
        options.ratings,
        rank=options.rank,
        sessions=options.sessions,
        server_bytes=options.server,
        replicas=options.replicas,
    )
    figures = list(size.figures())
    table, part = Table(box=None, pad_edge=False), ""
    table.add_column("")
    table.add_column("what")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("rests on")
    for each in figures:
        table.add_row("" if each.part == part else each.part, each.name, shown(each), each.rests_on)
        part = each.part
    Console(highlight=False).print(table)
    settings.emit({"figures": [each._asdict() for each in figures]})
    return 0


def shown(figure: Figure) -> str:
    """Return a figure for people, with its unit."""
    value = figure.value
    if figure.unit == "bytes":
        steps = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
        least, unit = next((step for step in steps if value >= step[0]), steps[-1])
        return f"{value / least:,.1f} {unit}"
    if figure.unit == "s":
        steps = ((_HOUR, "h"), (_MINUTE, "min"), (1, "s"))
        least, unit = next((step for step in steps if value >= 2 * step[0]), steps[-1])
        return f"{value / least:,.0f} {unit}"
    return f"{value:,.0f}"
