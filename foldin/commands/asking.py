"""`foldin recommend`, `status`, `train` and `forget`: one call each of a running service, over its API.

Invariant: what the service answers is printed as text alone. No title or id reaches a terminal as markup or
as a control character.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foldin.address import api_client, find_api, told_problem, told_silence
from foldin.errors import StoppedError
from foldin.progress import Shown
from foldin.settings import AskOptions, ForgetOptions, FrontDoorSettings, RecommendOptions
from foldin_client import AsyncClient, FoldinError, ProblemError
from foldin_client.errors import RefusedError
from foldin_client.problems import TrainingRefusedError
from foldin_client.wire import without_user
from processes.errors import CannotStartError
from processes.settings import api_key_of

_T = TypeVar("_T")


def run_recommend(options: RecommendOptions, settings: FrontDoorSettings) -> int:
    """Print the best items for a user; return the exit code. Raises CannotStartError, StoppedError."""
    found = _answer(
        options.service,
        settings,
        lambda client: client.recommend(
            options.user, n=options.n, scenario=options.scenario, include="title"
        ),
    )
    settings.emit(msgspec.to_builtins(found))
    if not found.items:
        print(f"No items: {found.reason or 'all that may be shown were seen'}.")
        return 0
    titled = any(each.title for each in found.items)
    rows = (
        (each.item_id, *([each.title or ""] if titled else []), f"{each.score:.4g}", f"{each.rating:.2f}")
        for each in found.items
    )
    _print(rows, ("item", *(["title"] if titled else [])), ("score", "rating"))
    return 0


def run_status(options: AskOptions, settings: FrontDoorSettings) -> int:
    """Print what is live; return the exit code, 1 where the store does not answer.

    Raises CannotStartError, StoppedError.
    """
    found = _answer(options, settings, AsyncClient.status)
    settings.emit(msgspec.to_builtins(found))
    lines = {
        "store": "answers" if found.store_up else "does not answer: see `foldin doctor`",
        "refuses ratings": found.refusing,
        "live generation": f"{found.generation}, {found.engine} of rank {found.rank}"
        if found.generation
        else "none yet: the first fit makes it",
        "fitted": _moment(found.created),
        "users": f"{found.users:,}",
        "items": f"{found.items:,}",
        "ratings": f"{found.ratings:,}",
        "ratings and events known": _number(found.known_events, ",d"),
        "scale": _scale(found.scale),
        "error of ratings before they were learned (RMSE)": _number(found.rmse, ".4f"),
        "in the last minute": _number(found.recent_rmse, ".4f"),
        "ratings a second": f"{found.ratings_per_s:,.1f}",
        "workers": f"{len(found.workers)}",
        "last backup": _moment(found.backed_up.at if found.backed_up else None),
    }
    _print(((name, value) for name, value in lines.items() if value), ("", ""))
    return 0 if found.store_up else 1


def run_train(options: AskOptions, settings: FrontDoorSettings) -> int:
    """Fit again, and wait until that is live; return the exit code. Raises CannotStartError, StoppedError."""
    began = time.monotonic()
    with Shown("Training"):
        generation = _answer(options, settings, AsyncClient.refit)
    took_s = time.monotonic() - began
    print(f"Generation {generation} is live, after {took_s:.1f} s.")
    settings.emit({"generation": generation, "seconds": round(took_s, 3)})
    return 0


def run_forget(options: ForgetOptions, settings: FrontDoorSettings) -> int:
    """Forget a user who is confirmed; return the exit code. Raises CannotStartError, StoppedError."""
    if not options.yes and not _confirmed(f"Forget {options.user!r} everywhere, for good? [y/N] "):
        raise CannotStartError("nothing was forgotten: answer y on a terminal, or give --yes")
    found = _answer(options.service, settings, lambda client: client.forget_user(options.user))
    settings.emit(msgspec.to_builtins(found))
    lines = {"user": options.user, "ratings": _number(found.ratings, ",d"), "archive": found.archive}
    _print(((name, value) for name, value in {"receipt": found.receipt, **lines}.items() if value), ("", ""))
    if found.archive != "erased":
        print(f"The trainer erases the archive: GET /receipts/{found.receipt} says when it has.")
    return 0


def _answer(
    options: AskOptions, settings: FrontDoorSettings, call: Callable[[AsyncClient], Awaitable[_T]]
) -> _T:
    """Return what the service answers to a call. Raises CannotStartError where it refuses or is not there,
    StoppedError where it failed.
    """
    url = find_api(options.url, options.data, settings)
    key = api_key_of(options.key, options.key_file)

    async def ask() -> _T:
        async with api_client(url, key) as client:
            return await call(client)

    try:
        return asyncio.run(ask())
    except ProblemError as exc:
        begun = not isinstance(exc, RefusedError) or isinstance(exc, TrainingRefusedError)
        kind = StoppedError if begun else CannotStartError
        raise kind(f"{without_user(url)} answers {told_problem(exc)}") from exc
    except FoldinError as exc:
        raise CannotStartError(told_silence(url, exc)) from exc


def _confirmed(question: str) -> bool:
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _print(rows: Iterable[Sequence[str]], names: Sequence[str], numbers: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns; a value that is too wide goes on in the next line."""
    table = Table(box=None, pad_edge=False, show_header=any(names))
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text("".join(c if c.isprintable() else "\ufffd" for c in value)) for value in row))
    Console(highlight=False).print(table)


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _scale(scale: Sequence[float | None]) -> str:
    low, high, step = (*scale, None, None, None)[:3]
    return f"{low:g} to {high:g}" + (f" in steps of {step:g}" if step else "")
